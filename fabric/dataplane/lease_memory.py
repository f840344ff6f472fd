"""The memory of one lease as a mapping: who may read it now, and copies in and out under that right.

A lease lies in a segment of its own: a head, then the bytes. The exposer holds a file lock on byte `_LIVE` as long as
the lease is good; the kernel takes it away when the process ends, however it ends. Readers ask for that lock and look
at the head's state before and after every copy, so a revoked or dead exposer's bytes are never returned. In a writable
lease a `put` holds byte `_ACCESS` alone and a `get` shares it. A put that dies half way leaves its range in the head.

Locks belong to the open file: each mapping opens the segment anew. One thread at a time copies in a writable mapping.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, Final

from fabric.dataplane.deadlines import left_s, monotonic_ns
from fabric.errors import BrokenError, DeadlineExceeded, StaleHandleError

HEAD_BYTES: Final = 64
_HEAD: Final = struct.Struct(
    "<QQQQQQQQ"
)  # magic, lease, port, incarnation, bytes, state, dirty from, to
_MAGIC: Final = 0x31534145_4C424146
_STATE_AT: Final = 40
_DIRTY_AT: Final = 48
_LIVE, _ACCESS = 0, 1  # bytes that are locked; no data lies under a lock
_FLOCK: Final = struct.Struct("hhqqi")  # l_type, l_whence, l_start, l_len, l_pid
_RETRY_S: Final = (0.0002, 0.005)  # while another process holds the access lock: first, longest


def slot_bytes(size_bytes: int) -> int:
    """Return the slot that a lease of `size_bytes` needs, head included; a multiple of 64."""
    return HEAD_BYTES + -(-size_bytes // 64) * 64


class LeaseMemory:
    """One mapping of a lease's segment, by its exposer or a reader.

    Attributes
    ----------
    data : numpy.ndarray
        The leased bytes, uint8.
    """

    def __init__(self, fd: int, key: tuple[int, int, int], size_bytes: int, writable: bool) -> None:
        import numpy

        self.key = key
        self.size_bytes = size_bytes
        # Two openings: a mapping keeps a duplicate of its own, which must not keep the locks of a forked parent.
        self._fd, whole = -1, os.fstat(fd).st_size
        if whole < slot_bytes(size_bytes):
            raise StaleHandleError("the segment is smaller than the lease says")
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        with _opened(fd, writable) as opened:
            self._map = mmap.mmap(opened, whole, mmap.MAP_SHARED, protection)
        with _opened(fd, writable) as opened:
            self._fd = os.dup(opened)
        self._head_at = whole - slot_bytes(size_bytes)
        begin = self._head_at + HEAD_BYTES
        self.data = numpy.frombuffer(self._map, numpy.uint8)[begin : begin + size_bytes]
        self.threads = threading.Lock()
        self._using = threading.Lock()
        self._users, self._is_closed = 0, False
        _all.add(self)

    # ---- exposer

    def publish(self) -> None:
        """Write the head and take the lock that says that the lease is good."""
        lease = (self.key[2], self.key[0], self.key[1])
        self._lock(_LIVE, fcntl.F_WRLCK)
        _HEAD.pack_into(self._map, self._head_at, _MAGIC, *lease, self.size_bytes, 1, 0, 0)

    def withdraw(self) -> None:
        """End the lease; what reads now finds out after its copy."""
        struct.pack_into("<Q", self._map, self._head_at + _STATE_AT, 0)
        self._lock(_LIVE, fcntl.F_UNLCK)

    # ---- everybody

    def check(self) -> None:
        """Raise `StaleHandleError` unless the lease is good."""
        magic, lease, port, incarnation, size, state, _, _ = _HEAD.unpack_from(
            self._map, self._head_at
        )
        is_same = magic == _MAGIC and (port, incarnation, lease) == self.key
        if not is_same or size != self.size_bytes or state != 1 or not self.is_live():
            raise StaleHandleError(
                "the lease was revoked, or its exposer is gone; ask for a new one",
                lease=self.key[2],
            )

    def is_live(self) -> bool:
        """Tell whether the exposer still holds its lock."""
        asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _LIVE, 1, 0)
        try:
            with self._in_use():
                found: int = _FLOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, asked))[0]
                return found != fcntl.F_UNLCK or self in _published
        except StaleHandleError:
            return False

    def read(self, copy: Any, shared: bool, deadline_ns: int) -> None:
        """Call ``copy(data)`` between two checks; `shared`: puts are kept out meanwhile.

        Raises
        ------
        StaleHandleError, DeadlineExceeded
        BrokenError
            A put died half way and nobody wrote its range again.
        """
        access = self._access(fcntl.F_RDLCK, deadline_ns) if shared else contextlib.nullcontext()
        with self._in_use(), access:
            self.check()
            if shared and self._dirty()[1]:
                raise BrokenError(
                    f"a put into bytes {self._dirty()[0]} to {self._dirty()[1]} of the lease was not finished; "
                    "put that range again"
                )
            copy(self.data)
            self.check()

    def write(self, copy: Any, start: int, stop: int, deadline_ns: int) -> None:
        """Call ``copy(data)``, which writes inside [start, stop), alone and between two checks; raises like `read`."""
        with self._in_use(), self._access(fcntl.F_WRLCK, deadline_ns):
            self.check()
            left, right = self._dirty()
            repairs = not right or start <= left <= right <= stop
            whole = (min(start, left), max(stop, right)) if right else (start, stop)
            struct.pack_into("<QQ", self._map, self._head_at + _DIRTY_AT, *whole)
            copy(self.data)
            rest = (0, 0) if repairs else (left, right)
            struct.pack_into("<QQ", self._map, self._head_at + _DIRTY_AT, *rest)
            self.check()

    def close(self) -> None:
        """Forget the mapping; arrays over it keep the memory, and a thread that copies now ends first. Idempotent."""
        with self._using:
            self._is_closed = True
            if not self._users:
                self._shut()

    def forget(self) -> None:
        """Close in a forked child, where the threads of the parent that used it do not run."""
        self._using = threading.Lock()
        self._is_closed = True
        self._shut()

    def _shut(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            _published.discard(self)
        self.data = self.data[:0]

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep the descriptor open meanwhile: once it is closed, its number may be that of any other file."""
        with self._using:
            if self._is_closed:
                raise StaleHandleError("the lease was revoked", lease=self.key[2])
            self._users += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._using:
            self._users -= 1
            if self._is_closed and not self._users:
                self._shut()

    # ---- locks

    def _dirty(self) -> tuple[int, int]:
        found: tuple[int, int] = struct.unpack_from("<QQ", self._map, self._head_at + _DIRTY_AT)
        return found

    def _lock(self, byte: int, kind: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
        if byte == _LIVE:
            (_published.discard if kind == fcntl.F_UNLCK else _published.add)(self)

    @contextlib.contextmanager
    def _access(self, kind: int, deadline_ns: int) -> Iterator[None]:
        if not self.threads.acquire(timeout=max(left_s(deadline_ns), 0.0)):
            raise DeadlineExceeded("waited for another thread to leave the lease")
        try:
            self._wait_for_access(kind, deadline_ns)
            try:
                yield
            finally:
                self._lock(_ACCESS, fcntl.F_UNLCK)
        finally:
            self.threads.release()

    def _wait_for_access(self, kind: int, deadline_ns: int) -> None:
        pause, longest = _RETRY_S
        while True:
            try:
                return self._lock(_ACCESS, kind)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise BrokenError(f"the lease cannot be locked: {error}") from error
            if monotonic_ns() >= deadline_ns:
                raise DeadlineExceeded("waited for another process to leave the lease")
            time.sleep(min(pause, left_s(deadline_ns)))
            pause = min(pause * 2, longest)


@contextlib.contextmanager
def _opened(fd: int, writable: bool) -> Iterator[int]:
    """Open the file behind a descriptor anew: locks and rights of its own."""
    mode = os.O_RDWR if writable else os.O_RDONLY
    opened = os.open(f"/proc/self/fd/{fd}", mode | os.O_CLOEXEC)
    try:
        yield opened
    finally:
        os.close(opened)


_all: weakref.WeakSet[LeaseMemory] = weakref.WeakSet()
_published: weakref.WeakSet[LeaseMemory] = weakref.WeakSet()


def _forget_in_child() -> None:
    """A forked child shares the open files: it must not keep the locks of its parent alive."""
    for memory in list(_all):
        memory.forget()


os.register_at_fork(after_in_child=_forget_in_child)
