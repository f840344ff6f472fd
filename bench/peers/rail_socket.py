"""A stream socket over rails: plain tcp over one, or MPTCP, for which the kernel opens a subflow over each.

Options: ``{"address": FAR, "mptcp": bool}``: far listens there and keeps listening, or MPTCP joins no further path. The
driver gives the kernel the addresses of the other rails (``ip mptcp endpoint``).
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from bench.paths.stream import Streaming, clock
from bench.peers.rendezvous import exchange

IPPROTO_MPTCP = 262
CONNECT_S = 30.0
JOIN_S = 1.0  # subflows are opened once the first bytes went both ways
CONGESTION_CONTROL = b"cubic"
HELLO = b"hello"


class SocketEnd(Streaming):
    """One half."""

    def __init__(self, stream: socket.socket, *more: socket.socket) -> None:
        self._stream, self._more = stream, more
        self._memory = np.ones(0, np.uint8)

    def prepare(self, order: dict[str, Any]) -> None:
        """Learn the size."""
        if len(self._memory) != order["size"]:
            self._memory = np.ones(order["size"], np.uint8)

    def post(self, array: np.ndarray[Any, Any], until_ns: int) -> None:
        """Write all of it into the socket."""
        self._stream.settimeout(max(1e-3, (until_ns - clock()) / 1e9))
        self._stream.sendall(array)

    def finish(self, handle: None, until_ns: int) -> None:
        """Nothing to wait for: the kernel has it."""

    def take(self, until_ns: int) -> np.ndarray[Any, Any] | None:
        """Read the next message."""
        view, have = memoryview(self._memory), 0
        while have < len(view):
            self._stream.settimeout(max(1e-3, (until_ns - clock()) / 1e9))
            try:
                count = self._stream.recv_into(view[have:])
            except TimeoutError:
                return None
            if count == 0:
                raise ConnectionError("the other half has gone")
            have += count
        return self._memory

    def release(self) -> None:
        """Nothing to give back."""

    def close(self) -> None:
        """Close the connection, then the listener."""
        for each in (self._stream, *self._more):
            each.close()


def connect(role: str, folder: Path, options: dict[str, Any]) -> SocketEnd:
    """Far listens, near connects; a greeting each way."""
    protocol = IPPROTO_MPTCP if options["mptcp"] else socket.IPPROTO_TCP
    end = accept(folder, options, protocol) if role == "far" else dial(folder, options, protocol)
    with suppress(OSError):
        end._stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL)
    end._stream.settimeout(CONNECT_S)
    end._stream.sendall(HELLO)
    if end._stream.recv(len(HELLO), socket.MSG_WAITALL) != HELLO:
        raise ConnectionError("something else answered")
    if options["mptcp"]:
        time.sleep(JOIN_S)
    return end


def accept(folder: Path, options: dict[str, Any], protocol: int) -> SocketEnd:
    """Return the far half."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    # Subflows come to the other addresses, too.
    listener.bind(("" if options["mptcp"] else options["address"], 0))
    listener.listen(8)
    listener.settimeout(CONNECT_S)
    exchange(folder, "far", str(listener.getsockname()[1]).encode())
    stream, _ = listener.accept()
    return SocketEnd(stream, listener)


def dial(folder: Path, options: dict[str, Any], protocol: int) -> SocketEnd:
    """Return the near half."""
    port = int(exchange(folder, "near", b""))
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    stream.settimeout(CONNECT_S)
    stream.connect((options["address"], port))
    return SocketEnd(stream)
