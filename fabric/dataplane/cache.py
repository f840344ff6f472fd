"""A node's cache of encoder outputs, by content: shared memory of one tenant, read without a lock.

Rules: a reader finds an entry, copies it, then looks whether it is still the same one and whether its checksum fits;
else it is a miss. Writers exclude each other by a file lock that the kernel takes away at any death; an entry counts
once its state says so, which is the last thing written, and what a killed writer left is free again for the next. A
cache may always say no: `put` never waits longer than `limits.CACHE_LOCK_S`, and nothing ever depends on it.

Eviction is SIEVE (Zhang et al., NSDI 2024): a hand goes from old to new, spares what was read since it last came by,
evicts what was not. A hit only stores one word, so readers need no lock, which LRU would need to move the entry; and
what is read once (most pictures are) leaves before what is read again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from fabric import limits
from fabric.dataplane.cache_layout import (
    BIRTHS_AT,
    CLEARS_AT,
    EVICTIONS_AT,
    FREE,
    HAND_AT,
    THERE,
    USER_COUNTERS,
    WRITING,
    CacheMemory,
)
from fabric.errors import CapacityError, TypeMismatchError

_FLOCK: Final = struct.Struct("hhqqi")  # l_type, l_whence, l_start, l_len, l_pid
_LENGTHS: Final = struct.Struct("<II")  # of the description, and to the data
_ALIGN: Final = 64  # of the data
_RETRY_S: Final = 0.0005
_HIT, _MISS, _PUT, _REFUSED, _HIT_BYTES, _TORN = (1 + at for at in range(len(USER_COUNTERS)))


class _Kind(msgspec.Struct, array_like=True):
    """What the bytes of an entry are: dtype and shape of an array; an empty dtype for plain bytes."""

    dtype: str
    shape: tuple[int, ...]


def content_key(*contents: Any) -> bytes:
    """Return the key of what some contents give: 32 bytes, by BLAKE2b over each, its dtype and shape.

    Parameters
    ----------
    *contents : str, bytes or array
        All that the result depends on: name and version of the model, its settings, the picture.
    """
    digest = hashlib.blake2b(digest_size=32)
    for content in contents:
        kind, data = _plain(content.encode() if isinstance(content, str) else content)
        head = msgspec.msgpack.encode(kind)
        digest.update(struct.pack("<QQ", len(head), len(data)) + head)
        digest.update(data)
    return digest.digest()


class Cache:
    """The cache of this process's user on this node; `Port.cache`. Thread-safe.

    Parameters
    ----------
    fd : int
        Its memory; the caller closes it.

    Notes
    -----
    Not for what a program needs in order to be right: an entry may be gone at any moment.
    """

    def __init__(self, fd: int) -> None:
        from fabric._native import crc32c

        self._crc32c = crc32c
        # Opened anew: a lock belongs to the open file, and the one that was passed is everybody's.
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        self._map = mmap.mmap(self._fd, 0)
        self.memory = CacheMemory(self._map)
        self._threads = threading.Lock()
        self._pid = os.getpid()
        with self._writing() as is_mine:
            self._row = self._take_row(is_mine)

    def get(self, key: str | bytes) -> Any:
        """Return what was put under a key, a copy that is yours: array or bytes; None when it is not there."""
        low, high = _digest(key)
        memory = self.memory
        for at in (memory.digest_low == low).nonzero()[0]:
            generation = memory.generation[
                at
            ]  # before the rest: what changes from here on is noticed
            is_it = memory.digest_low[at] == low and memory.digest_high[at] == high
            if is_it and memory.state[at] == THERE:
                data = self._copy(int(at), generation, low)
                if data is not None:
                    memory.visited[at] = 1
                    self._count(_HIT)
                    self._count(_HIT_BYTES, data.nbytes)
                    return _value(data)
                self._count(_TORN)
        self._count(_MISS)
        return None

    def put(self, key: str | bytes, value: Any) -> bool:
        """Keep an array or bytes under the hash of what it was made of (`content_key`).

        Returns
        -------
        bool
            Whether it is there now. False: another process was writing all the time, or it would take more than
            `limits.CACHE_SHARE_MAX` of the cache.

        Raises
        ------
        TypeMismatchError
            Neither an array of a dtype that travels nor bytes.
        """
        kind, data = _plain(value)
        head = msgspec.msgpack.encode(kind)
        body_at = -(-(_LENGTHS.size + len(head)) // _ALIGN) * _ALIGN
        start = (_LENGTHS.pack(len(head), body_at) + head).ljust(body_at, b"\0")
        payload = b"".join((start, data))
        if len(payload) > self.memory.capacity_bytes * limits.CACHE_SHARE_MAX:
            self._count(_REFUSED)
            return False
        low, high = _digest(key)
        with self._writing() as is_mine:
            if is_mine:
                if self._find(low, high) is None:
                    self._write(low, high, payload)
                self._count(_PUT)
            else:
                self._count(_REFUSED)
        return is_mine

    def stat(self) -> dict[str, int]:
        """Return entries, bytes, capacity, hits, misses, puts, refused puts, evictions: of the whole tenant."""
        return self.memory.counters()

    def entries(self) -> list[dict[str, Any]]:
        """Return what is there, oldest first: digest (hex), bytes with their head, whether it was read lately."""
        memory = self.memory
        there = (memory.state == THERE).nonzero()[0]
        rows = [
            {
                "digest": struct.pack("<QQ", memory.digest_low[at], memory.digest_high[at]).hex(),
                "bytes": int(memory.bytes[at]),
                "read_lately": bool(memory.visited[at]),
                "born": int(memory.born[at]),
            }
            for at in there
        ]
        return sorted(rows, key=lambda row: int(row["born"]))

    def clear(self) -> int:
        """Forget everything and give its pages back; returns how many entries were there.

        Raises
        ------
        CapacityError
            Another process was writing for all of `limits.CACHE_LOCK_S`; try again.
        """
        with self._writing() as is_mine:
            if not is_mine:
                raise CapacityError(
                    f"the cache is being written for more than {limits.CACHE_LOCK_S} s; try again",
                    limit="CACHE_LOCK_S",
                )
            memory = self.memory
            count = int((memory.state == THERE).sum())
            memory.state[:] = FREE
            memory.generation += 1
            memory.owners[:] = 0
            memory.head[CLEARS_AT] += 1
            self._map.madvise(mmap.MADV_REMOVE, memory.data_at, len(self._map) - memory.data_at)
        return count

    def close(self) -> None:
        """Give the row of counters back; the mapping goes with its last array."""
        with self._threads:
            if self._fd >= 0:
                if self._row[0] == os.getpid():
                    self._row[0] = 0
                os.close(self._fd)
                self._fd = -1

    # ---- reading
    def _copy(self, at: int, generation: int, low: int) -> Any:
        """Return an entry's bytes; None when it was changed meanwhile, or is not whole."""
        memory = self.memory
        size = int(memory.bytes[at])
        blocks = (memory.owners == at + 1).nonzero()[0]
        if len(blocks) * memory.block_bytes < size:
            return None
        data = memory.blocks[blocks].reshape(-1)[:size]
        is_same = memory.state[at] == THERE and memory.generation[at] == generation
        return data if is_same and self._checksum(data, low) == memory.checksum[at] else None

    def _checksum(self, data: Any, low: int) -> int:
        """Return the CRC-32C of an entry, begun with its digest: bytes of another key never fit."""
        return int(self._crc32c(data, low & 0xFFFF_FFFF))

    def _find(self, low: int, high: int) -> int | None:
        memory = self.memory
        found = (memory.digest_low == low) & (memory.digest_high == high) & (memory.state == THERE)
        return int(found.argmax()) if found.any() else None

    # ---- writing, under the lock
    def _write(self, low: int, high: int, payload: bytes) -> None:
        import numpy

        memory, size = self.memory, self.memory.block_bytes
        count = -(-len(payload) // size)
        memory.state[memory.state == WRITING] = (
            FREE  # of a writer that was killed: this one has its lock
        )
        free = self._free_blocks()
        while len(free) < count or (memory.state == THERE).all():
            self._evict()
            free = self._free_blocks()
        at, mine = int((memory.state == FREE).argmax()), free[:count]
        memory.state[at] = WRITING
        memory.generation[at] += 1
        memory.owners[memory.owners == at + 1] = 0  # what a killed writer left to this number
        memory.owners[mine] = at + 1
        padded = numpy.zeros(count * size, numpy.uint8)
        padded[: len(payload)] = numpy.frombuffer(payload, numpy.uint8)
        memory.blocks[mine] = padded.reshape(count, size)
        memory.head[BIRTHS_AT] += 1
        memory.digest_low[at], memory.digest_high[at] = low, high
        memory.bytes[at], memory.checksum[at] = len(payload), self._checksum(payload, low)
        memory.born[at], memory.visited[at] = memory.head[BIRTHS_AT], 0
        memory.state[at] = THERE

    def _free_blocks(self) -> Any:
        import numpy

        live = numpy.concatenate(([False], self.memory.state == THERE))
        return (~live[self.memory.owners]).nonzero()[0]

    def _evict(self) -> None:
        """Free the first entry from the hand on, towards the newest and round, that was not read since it came by."""
        memory = self.memory
        there = (memory.state == THERE).nonzero()[0]
        order = there[memory.born[there].argsort()]
        start = int((memory.born[order] > memory.head[HAND_AT]).argmax())
        for at in (*order[start:], *order[:start], *order[start:], *order[:start]):
            if not memory.visited[at]:
                break
            memory.visited[at] = 0
        memory.state[at] = FREE
        memory.generation[at] += 1
        memory.head[HAND_AT] = memory.born[at]
        memory.head[EVICTIONS_AT] += 1

    @contextlib.contextmanager
    def _writing(self) -> Iterator[bool]:
        """Hold the writers' lock; gives False when it could not be had in time."""
        deadline = time.monotonic() + limits.CACHE_LOCK_S
        if not self._threads.acquire(timeout=limits.CACHE_LOCK_S):
            yield False
            return
        try:
            while not (is_mine := self._lock(fcntl.F_WRLCK)) and time.monotonic() < deadline:
                time.sleep(_RETRY_S)
            try:
                yield is_mine
            finally:
                if is_mine:
                    self._lock(fcntl.F_UNLCK)
        finally:
            self._threads.release()

    def _lock(self, kind: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True

    # ---- counters
    def _count(self, at: int, by: int = 1) -> None:
        self._row[at] += by

    def _take_row(self, is_mine: bool) -> Any:
        """Return a row of counters that no living process has; its sums go on. Without one, what is counted is lost."""
        import numpy

        for row in self.memory.users if is_mine else ():
            if row[0] == 0 or not _lives(int(row[0])):
                row[0] = self._pid
                return row
        return numpy.zeros(8, numpy.uint64)


def open_cache(port: Any) -> Cache:
    """Ask the daemon for the memory of this user's cache, and map it."""
    _, fds = port.request("shared_open", {"kind": "cache"})
    try:
        return Cache(fds[0])
    finally:
        for fd in fds:
            os.close(fd)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _digest(key: str | bytes) -> tuple[int, int]:
    data = key.encode() if isinstance(key, str) else key
    if not isinstance(data, bytes) or not 0 < len(data) <= limits.KEY_BYTES_MAX:
        raise TypeMismatchError(
            f"a cache key is text or bytes, 1 to {limits.KEY_BYTES_MAX} bytes long; use fabric.content_key(…)"
        )
    low, high = struct.unpack("<QQ", hashlib.blake2b(data, digest_size=16).digest())
    return low, high


def _plain(value: Any) -> tuple[_Kind, Any]:
    """Return what a value is, and its bytes as a flat buffer."""
    if isinstance(value, bytes | bytearray | memoryview):
        return _Kind("", ()), memoryview(value).cast("B")
    import numpy

    from fabric.messages.tensor import to_array

    array = numpy.asarray(to_array(value)[1], order="C")
    return _Kind(array.dtype.str, array.shape), array.reshape(-1).view(numpy.uint8).data


def _value(data: Any) -> Any:
    length, body_at = _LENGTHS.unpack_from(data)
    described = bytes(data[_LENGTHS.size : _LENGTHS.size + length])
    kind = msgspec.msgpack.decode(described, type=_Kind)
    body = data[body_at:]
    return body.view(kind.dtype).reshape(kind.shape) if kind.dtype else bytes(body)
