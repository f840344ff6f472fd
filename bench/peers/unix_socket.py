"""A stream socket of the unix family: what Python itself offers two processes of a host."""

from __future__ import annotations

import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

CONNECT_S = 30.0
LARGEST = 256 << 20
BUFFER_BYTES = (
    1 << 20
)  # with the default of 208 KiB a sender of bulk stops more often, which costs a fifth or more


class StreamEnd:
    """One half, over any connected stream socket. Messages have no bounds: both halves know their length."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.send = stream.sendall
        self.send_array = stream.sendall
        self.receive = partial(stream.recv, 0, socket.MSG_WAITALL)
        self._memory = np.zeros(LARGEST, np.uint8)
        self._memory[:] = 1  # touched: fresh pages would be measured otherwise
        self._array_bytes = 0

    def prepare(self, order: dict[str, Any]) -> None:
        """Learn the lengths."""
        self.receive = partial(self.stream.recv, order["message_bytes"], socket.MSG_WAITALL)
        self._array_bytes = order.get("size", 0)

    def receive_array(self) -> np.ndarray[Any, Any]:
        """Fill the same memory again."""
        array = self._memory[: self._array_bytes]
        if self.stream.recv_into(array, 0, socket.MSG_WAITALL) != len(array):
            raise ConnectionError("the other half has gone")
        return array

    def release_array(self) -> None:
        """Nothing to give back: one buffer."""

    def close(self) -> None:
        """Close the socket."""
        self.stream.close()


def connect(role: str, folder: Path, options: dict[str, Any]) -> StreamEnd:
    """Near listens, far connects."""
    stream = meet(role, socket.AF_UNIX, str(folder / "socket"))
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    return StreamEnd(stream)


def meet(role: str, family: int, address: Any) -> socket.socket:
    """Return the connected socket of this half.

    Raises
    ------
    OSError
        The other half was not there within `CONNECT_S`.
    """
    if role == "near":
        with socket.socket(family) as listener:
            listener.settimeout(CONNECT_S)
            listener.bind(address)
            listener.listen(1)
            stream, _ = listener.accept()
            stream.settimeout(None)
            return stream
    deadline = time.monotonic() + CONNECT_S
    while True:
        stream = socket.socket(family)
        if stream.connect_ex(address) == 0:
            return stream
        stream.close()
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody listens at {address}")
        time.sleep(0.02)
