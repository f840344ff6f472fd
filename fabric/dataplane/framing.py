"""Frames of a control connection: u32 little-endian length, msgpack map, file descriptors beside the first byte.

Sans-IO core `FrameBuffer`, a blocking face `FrameSocket` (clients), an asyncio face `FrameStream` (daemons; also over
TCP, without descriptors). A map that travels with descriptors says how many in `fds`, so that reads may merge or split
at will: descriptors arrive in order and never after the frame that owns them is complete.
Received descriptors are close-on-exec and belong to whoever took the frame; close() closes those nobody took.
"""

from __future__ import annotations

import array
import asyncio
import collections
import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from fabric import limits
from fabric.errors import (
    BrokenError,
    CapacityError,
    ClosedError,
    DeadlineExceeded,
    PeerProtocolError,
)

Frame = tuple[dict[str, Any], list[int]]

_LENGTH = struct.Struct("<I")
_READ_BYTES = 64 * 1024
_ANCILLARY_BYTES = socket.CMSG_SPACE(limits.FRAME_FDS_MAX * 4)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, Any]).decode


def encode_frame(fields: dict[str, Any], fd_count: int = 0) -> bytes:
    """Return the bytes of one frame; raises `CapacityError` above `limits.FRAME_BYTES_MAX`."""
    if fd_count > limits.FRAME_FDS_MAX:
        raise CapacityError(
            f"{fd_count} descriptors in one frame, FRAME_FDS_MAX is {limits.FRAME_FDS_MAX}"
        )
    body = _encode({**fields, "fds": fd_count} if fd_count else fields)
    if len(body) > limits.FRAME_BYTES_MAX:
        raise CapacityError(
            f"a control frame of {len(body)} bytes, FRAME_BYTES_MAX is {limits.FRAME_BYTES_MAX}",
            limit="FRAME_BYTES_MAX",
            value=len(body),
        )
    return _LENGTH.pack(len(body)) + body


def close_fds(fds: Iterable[int]) -> None:
    """Close every descriptor; one that is already closed is skipped."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            continue


class FrameBuffer:
    """Bytes and descriptors in, frames out. No IO; one user at a time."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._fds: collections.deque[int] = collections.deque()

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> None:
        """Take what one read returned."""
        self._bytes += data
        self._fds.extend(fds)

    def next(self) -> Frame | None:
        """Return the next whole frame, or None; raises `PeerProtocolError` on bytes that cannot be a frame."""
        data = self._bytes
        if len(data) < 4:
            return None
        (size,) = _LENGTH.unpack_from(data)
        if size > limits.FRAME_BYTES_MAX:
            raise PeerProtocolError(
                f"frame of {size} bytes, at most {limits.FRAME_BYTES_MAX}", quote=self._quote()
            )
        if len(data) < 4 + size:
            return None
        try:
            fields = _decode(bytes(data[4 : 4 + size]))
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise PeerProtocolError(
                f"frame is not a msgpack map: {error}", quote=self._quote()
            ) from error
        count = fields.pop("fds", 0)
        if (
            type(count) is not int
            or not 0 <= count <= limits.FRAME_FDS_MAX
            or count > len(self._fds)
        ):
            raise PeerProtocolError(
                f"frame claims {count!r} descriptors, {len(self._fds)} came", quote=self._quote()
            )
        del data[: 4 + size]
        return fields, [self._fds.popleft() for _ in range(count)]

    def close(self) -> None:
        """Close descriptors that no frame claimed."""
        close_fds(self._fds)
        self._fds.clear()
        self._bytes.clear()

    def _quote(self) -> bytes:
        return bytes(self._bytes[: limits.PROTOCOL_QUOTE_BYTES_MAX])


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One recvmsg: bytes and descriptors; b"" at end of stream."""
    data, ancillary, flags, _ = sock.recvmsg(_READ_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        close_fds(fds)
        raise PeerProtocolError(f"more than {limits.FRAME_FDS_MAX} descriptors came with one frame")
    return data, list(fds)


def _rights(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []


class FrameSocket:
    """Blocking face. One reading thread; any thread may send. Owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._buffer = FrameBuffer()
        self._sending = threading.Lock()
        self._closed = False

    def send(
        self,
        fields: dict[str, Any],
        fds: Sequence[int] = (),
        timeout_s: float = limits.CONTROL_CALL_S,
    ) -> None:
        """Write one frame whole.

        Raises
        ------
        BrokenError
            The peer is gone; nothing can be sent any more.
        DeadlineExceeded
            The peer did not read for `timeout_s`; the connection is unusable (a frame may be cut) and is shut down.
        """
        data = memoryview(encode_frame(fields, len(fds)))
        deadline = time.monotonic() + timeout_s
        ancillary = _rights(fds)
        with self._sending:
            while data:
                try:
                    data = data[self.socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL) :]
                    ancillary = []
                except (BlockingIOError, InterruptedError):
                    self._wait(select.POLLOUT, deadline, "the peer to read")
                except OSError as error:
                    raise BrokenError(f"control connection lost while sending: {error}") from error

    def receive(self, timeout_s: float = limits.CONTROL_CALL_S) -> Frame:
        """Return the next frame; `BrokenError` at end of stream, `DeadlineExceeded` after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            frame = self._buffer.next()
            if frame is not None:
                return frame
            try:
                data, fds = _receive(self.socket)
            except (BlockingIOError, InterruptedError):
                self._wait(select.POLLIN, deadline, "a frame")
                continue
            except OSError as error:
                raise BrokenError(f"control connection lost while reading: {error}") from error
            if not data:
                close_fds(fds)
                raise BrokenError("the peer closed the control connection")
            self._buffer.feed(data, fds)

    def shutdown(self) -> None:
        """End both directions: a blocked reader wakes with `BrokenError` and closes. Any thread."""
        with contextlib.suppress(OSError):  # never connected, or the peer was faster
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket and descriptors that no frame claimed. Idempotent; not while another thread reads."""
        if self._closed:
            return
        self._closed = True
        self.shutdown()
        self.socket.close()
        self._buffer.close()

    def _wait(self, event: int, deadline: float, what: str) -> None:
        if self._closed:
            raise ClosedError("the control connection was closed")
        left = deadline - time.monotonic()
        poll = select.poll()
        poll.register(self.socket, event)
        if left <= 0 or not poll.poll(left * 1000):
            if event == select.POLLOUT:
                self.shutdown()
            raise DeadlineExceeded(f"waited for {what} on a control connection")


class FrameStream:
    """Asyncio face. Belongs to the loop that made it; one reading task; `send` never waits. Owns the socket."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop | None = None) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._loop = loop or asyncio.get_running_loop()
        self._buffer = FrameBuffer()
        self._frames: collections.deque[Frame] = collections.deque()
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._out: collections.deque[tuple[memoryview, list[tuple[int, int, bytes]], list[int]]] = (
            collections.deque()
        )
        self._backlog_bytes = 0
        self._error: Exception | None = None
        self._loop.add_reader(sock.fileno(), self._readable)

    async def receive(self) -> Frame:
        """Return the next frame; `BrokenError` at end of stream, `PeerProtocolError` on bytes that are no frame."""
        while not self._frames:
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._frames.popleft()

    def send(self, fields: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Queue one frame; descriptors are duplicated, the caller keeps its own.

        Raises
        ------
        BrokenError
            The connection is gone, or its backlog exceeds `limits.FRAME_BACKLOG_BYTES_MAX` (it is then closed).
        """
        if self._error is not None:
            raise self._error
        data = memoryview(encode_frame(fields, len(fds)))
        if self._backlog_bytes + len(data) > limits.FRAME_BACKLOG_BYTES_MAX:
            self._fail(
                BrokenError(
                    f"the peer left more than {limits.FRAME_BACKLOG_BYTES_MAX} bytes unread"
                )
            )
            assert self._error is not None
            raise self._error
        copies = [os.dup(fd) for fd in fds]
        self._out.append((data, _rights(copies), copies))
        self._backlog_bytes += len(data)
        if len(self._out) == 1:
            self._writable()

    async def drain(self) -> None:
        """Wait until everything queued was written, or the connection failed."""
        while self._out and self._error is None:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def close(self) -> None:
        """Close socket, queue and unclaimed descriptors. Idempotent; a waiting `receive` gets `BrokenError`."""
        self._fail(BrokenError("the control connection was closed"))

    def _readable(self) -> None:
        try:
            data, fds = _receive(self.socket)
            self._buffer.feed(data, fds)
            while (frame := self._buffer.next()) is not None:
                self._frames.append(frame)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            broken = BrokenError(f"control connection lost while reading: {error}")
            broken.__cause__ = error
            return self._fail(broken)
        except PeerProtocolError as error:
            return self._fail(error)
        if not data:
            return self._fail(BrokenError("the peer closed the control connection"))
        if self._frames:
            self._wake(self._waiter)

    def _writable(self) -> None:
        while self._out:
            data, ancillary, copies = self._out[0]
            try:
                sent = self.socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self.socket.fileno(), self._writable)
                return
            except OSError as error:
                broken = BrokenError(f"control connection lost while sending: {error}")
                broken.__cause__ = error
                return self._fail(broken)
            self._backlog_bytes -= sent
            close_fds(copies)
            if sent < len(data):
                self._out[0] = (data[sent:], [], [])
            else:
                self._out.popleft()
        self._loop.remove_writer(self.socket.fileno())
        self._wake(self._drained)
        self._drained = None

    def _fail(self, error: Exception) -> None:
        if self._error is not None:
            return
        self._error = error
        self._loop.remove_reader(self.socket.fileno())
        self._loop.remove_writer(self.socket.fileno())
        self.socket.close()
        self._buffer.close()
        for _, _, copies in self._out:
            close_fds(copies)
        self._out.clear()
        self._wake(self._waiter)
        self._wake(self._drained)

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
