"""Serve one document over HTTP/1.1, GET /metrics, on loopback: bounded in clients, bytes and time.

Runs in the daemon's loop. A client that is slow, speaks nonsense or comes a hundred times costs a connection for
`limits.METRICS_S` at most; beyond `limits.METRICS_CONNECTIONS_MAX` it is turned away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable

from fabric import limits
from fabric.errors import BusyError, ConfigError

_OK, _BAD, _NOT_FOUND, _NOT_ALLOWED, _FULL = (
    "200 OK",
    "400 Bad Request",
    "404 Not Found",
    "405 Method Not Allowed",
    "503 Service Unavailable",
)
_READ_BYTES = 4096


class MetricsServer:
    """`text()` makes the document when it is asked for."""

    def __init__(self, text: Callable[[], bytes], content_type: str) -> None:
        self._text = text
        self._content_type = content_type
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""
        self.served = 0
        self.refused = 0

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 takes a free one, `address` says which.

        Raises
        ------
        BusyError
            The address is taken.
        ConfigError
            It is not an address of this machine.
        """
        try:
            self._server = await asyncio.start_server(
                self._accept, host, port, limit=limits.METRICS_REQUEST_BYTES_MAX
            )
        except OSError as error:
            cls = BusyError if error.errno == errno.EADDRINUSE else ConfigError
            raise cls(
                f"cannot serve metrics on {host}:{port}: {error.strerror or error}; give --metrics another, or off"
            ) from error
        found = self._server.sockets[0].getsockname()
        self.address = f"[{found[0]}]:{found[1]}" if ":" in found[0] else f"{found[0]}:{found[1]}"

    async def close(self) -> None:
        """Stop listening and end what is being served. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            async with asyncio.timeout(limits.METRICS_S):
                status = await self._status(reader)
            await self._answer(writer, status)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            self.refused += 1  # whoever it was has no answer to wait for
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _status(self, reader: asyncio.StreamReader) -> str:
        if len(self._tasks) > limits.METRICS_CONNECTIONS_MAX:
            return _FULL
        head = await reader.readuntil(b"\r\n\r\n")
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _BAD
        if words[0] != b"GET":
            return _NOT_ALLOWED
        return _OK if words[1].split(b"?", 1)[0] == b"/metrics" else _NOT_FOUND

    async def _answer(self, writer: asyncio.StreamWriter, status: str) -> None:
        body = self._text() if status == _OK else f"{status}; ask GET /metrics\n".encode()
        kind = self._content_type if status == _OK else "text/plain; charset=utf-8"
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\nX-Content-Type-Options: nosniff\r\n\r\n"
        )
        writer.transport.set_write_buffer_limits(high=0)
        writer.write(head.encode() + body)
        async with asyncio.timeout(limits.METRICS_S):
            await writer.drain()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        if status == _OK:
            self.served += 1
        else:
            self.refused += 1
