"""pyzmq: what two Python modules are most often wired with. PAIR sockets over ipc or tcp, blocking calls.

Small messages are copied, large ones are not: that is what its manual says is fastest for each. Typed messages are
msgpack with the tensor's memory as bytes in it, by one packer that is kept: a new one for each message costs as much as
the packing.

Options: ``transport`` is ``ipc`` (default) or ``tcp``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq

from bench.peers.rendezvous import exchange

GIVE_UP_MS = 60_000


class PairEnd:
    """One half."""

    def __init__(self, context: zmq.Context[Any], socket: zmq.Socket[bytes]) -> None:
        self._context, self._socket = context, socket
        self.send = socket.send
        self.receive = socket.recv
        self._pack = msgpack.Packer().pack
        self._frame: zmq.Frame | None = None

    def send_typed(self, a: int, b: int, c: float, text: str, tensor: np.ndarray[Any, Any]) -> None:
        """Pack one message."""
        self.send(self._pack((a, b, c, text, tensor.data)))

    def receive_typed(self) -> tuple[int, int, float, str, np.ndarray[Any, Any]]:
        """Unpack one; the tensor is a view of what msgpack made."""
        a, b, c, text, data = msgpack.unpackb(self.receive())
        return a, b, c, text, np.frombuffer(data, np.float32)

    def send_array(self, array: np.ndarray[Any, Any]) -> None:
        """Send the array's own memory."""
        self.send(array.data, copy=False)

    def receive_array(self) -> np.ndarray[Any, Any]:
        """Return a view of the frame that came."""
        self._frame = self._socket.recv(copy=False)
        return np.frombuffer(self._frame.buffer, np.uint8)

    def release_array(self) -> None:
        """Drop the frame."""
        self._frame = None

    def close(self) -> None:
        """Close the socket, then the context."""
        self._socket.close(linger=0)
        self._context.term()


def connect(role: str, folder: Path, options: dict[str, Any]) -> PairEnd:
    """Near binds, far connects; both know that the other is there once its first message came."""
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.rcvtimeo = socket.sndtimeo = GIVE_UP_MS
    if role == "near":
        socket.bind(
            "tcp://127.0.0.1:*" if options.get("transport") == "tcp" else f"ipc://{folder}/pair"
        )
        exchange(folder, role, socket.last_endpoint)
    else:
        socket.connect(exchange(folder, role, b"").decode())
    socket.send(b"here")
    socket.recv()
    return PairEnd(context, socket)
