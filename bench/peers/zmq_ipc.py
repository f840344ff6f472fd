"""pyzmq over ipc:// with msgpack: what two co-located Python modules are most often wired with.

PAIR sockets, blocking calls, copies left on (faster than not for small messages), one dict per message.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq

from bench.echo import START_S, EchoProcess
from bench.harness import Placement

ECHO, COUNT, STOP = 1, 2, 3


def encode(step: int, data: np.ndarray[Any, Any]) -> bytes:
    """Pack one message."""
    packed: bytes = msgpack.packb({"step": step, "data": data.tobytes()})
    return packed


def decode(frame: bytes) -> tuple[int, np.ndarray[Any, Any]]:
    """Unpack one message; the tensor is a view of the frame."""
    fields = msgpack.unpackb(frame)
    return fields["step"], np.frombuffer(fields["data"], np.float32)


class ZmqIpc:
    """The near half."""

    name = "pyzmq ipc + msgpack"

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fab-bench-")
        self._data = np.arange(16, dtype=np.float32)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    def start(self, placement: Placement) -> None:
        """Bind, bring up the echo, and wait for its first message."""
        address = f"ipc://{Path(self._folder.name) / 'pair'}"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.linger = 0
        self._socket.rcvtimeo = int(START_S * 1e3)
        self._socket.sndtimeo = int(START_S * 1e3)
        self._socket.bind(address)
        self._echo = EchoProcess(__name__, address, placement)
        self._socket.recv()

    def round_trips(self, count: int) -> list[int]:
        """Time each round trip."""
        self._socket.send(bytes([ECHO]) + count.to_bytes(4, "little"))
        socket, data, clock = self._socket, self._data, time.perf_counter_ns
        times = []
        for step in range(count):
            start = clock()
            socket.send(encode(step, data))
            back, tensor = decode(socket.recv())
            assert tensor[1] == 1.0
            times.append(clock() - start)
            assert back == step
        return times

    def one_way(self, count: int) -> int:
        """Time `count` messages and the confirmation of the last."""
        self._socket.send(bytes([COUNT]) + count.to_bytes(4, "little"))
        socket, data = self._socket, self._data
        start = time.perf_counter_ns()
        for step in range(count):
            socket.send(encode(step, data))
        socket.recv()
        return time.perf_counter_ns() - start

    def stop(self) -> None:
        """Ask the echo to leave, then close."""
        if self._context is None:
            return
        self._socket.send(bytes([STOP]) + bytes(4))
        self._echo.stop()
        self._socket.close()
        self._context.term()
        self._context = None
        self._folder.cleanup()


def echo(address: str) -> None:
    """Serve the far half."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.connect(address)
        socket.send(b"ready")
        while True:
            order = socket.recv()
            count = int.from_bytes(order[1:], "little")
            if order[0] == STOP:
                return
            for _ in range(count):
                step, data = decode(socket.recv())
                assert data[1] == 1.0
                if order[0] == ECHO:
                    socket.send(encode(step, data))
            if order[0] == COUNT:
                socket.send(b"done")
