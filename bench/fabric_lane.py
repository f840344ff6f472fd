"""The fabric over a direct lane: two attached processes, one typed message, default settings.

The node is a real one, brought up for the run in a directory of its own.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import fabric
from bench.echo import START_S, EchoProcess
from bench.harness import Placement
from bench.node import BenchNode

ECHO, COUNT, COUNT_MANY, STOP = 1, 2, 3, 4
BATCH = 64


@fabric.message("bench.ping", version=1)
class Ping:
    """One small message, as a decode step sends one."""

    step: int
    data: fabric.Tensor["n", "f32"]


@fabric.message("bench.order", version=1)
class Order:
    """What the echo does next."""

    kind: int
    count: int


class FabricLane:
    """The near half."""

    name = "fabric"
    batch = 1

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fab-bench-")
        self._data = np.arange(16, dtype=np.float32)
        self._node: BenchNode | None = None

    def start(self, placement: Placement) -> None:
        """Bring up a node and the echo, and wait for the echo's first message."""
        self._node = BenchNode(Path(self._folder.name))
        self._node.start()
        self._port = fabric.attach("near", socket=str(self._node.socket))
        declare(self._port)
        self._orders = self._port.sender("orders", Order)
        self._out = self._port.sender("ping", Ping)
        self._inn = self._port.receiver("pong", Ping)
        self._echo = EchoProcess(__name__, str(self._node.socket), placement)
        self._inn.receive(timeout=START_S).release()

    def round_trips(self, count: int) -> list[int]:
        """Time each round trip."""
        self._orders.send(Order(kind=ECHO, count=count))
        out, inn, data, clock = self._out, self._inn, self._data, time.perf_counter_ns
        times = []
        for step in range(count):
            start = clock()
            out.send(Ping(step=step, data=data))
            with inn.receive() as back:
                assert back.data[1] == 1.0
                times.append(clock() - start)
                assert back.step == step
        return times

    def one_way(self, count: int) -> int:
        """Time `count` messages and the confirmation of the last."""
        self._orders.send(Order(kind=COUNT, count=count))
        out, data = self._out, self._data
        start = time.perf_counter_ns()
        for step in range(count):
            out.send(Ping(step=step, data=data))
        self._inn.receive().release()
        return time.perf_counter_ns() - start

    def stop(self) -> None:
        """Ask the echo to leave, then take the node down."""
        if self._node is None:
            return
        self._orders.send(Order(kind=STOP, count=0))
        self._echo.stop()
        self._port.close()
        self._node.stop()
        self._node = None
        self._folder.cleanup()


class FabricLaneMany(FabricLane):
    """The same, one way with `send_many` and `receive_many`."""

    name = f"fabric send_many({BATCH})"

    def one_way(self, count: int) -> int:
        """Time `count` messages in batches and the confirmation of the last."""
        self._orders.send(Order(kind=COUNT_MANY, count=count))
        out, data = self._out, self._data
        start = time.perf_counter_ns()
        for first in range(0, count, BATCH):
            steps = range(first, min(first + BATCH, count))
            out.send_many([Ping(step=step, data=data) for step in steps])
        self._inn.receive().release()
        return time.perf_counter_ns() - start


def declare(port: Any) -> None:
    """Declare the three channels; the same from either side."""
    for name, message in (("orders", Order), ("ping", Ping), ("pong", Ping)):
        port.declare(name, message, pattern="stream", delivery="at_most_once")


def echo(address: str) -> None:
    """Serve the far half."""
    with fabric.attach("far", socket=address) as port:
        declare(port)
        orders = port.receiver("orders", Order)
        inn = port.receiver("ping", Ping)
        out = port.sender("pong", Ping)
        nothing = np.zeros(1, np.float32)
        out.send(Ping(step=-1, data=nothing))
        while True:
            with orders.receive(timeout=600.0) as order:
                kind, count = order.kind, order.count
            if kind == STOP:
                return
            if kind == COUNT_MANY:
                take_many(inn, count)
            else:
                take(inn, count, out if kind == ECHO else None)
            if kind != ECHO:
                out.send(Ping(step=count, data=nothing))


def take(inn: Any, count: int, out: Any) -> None:
    """Receive one at a time, touch the tensor, and send it back when there is an `out`."""
    for _ in itertools.repeat(None, count):
        with inn.receive() as message:
            data = message.data
            assert data[1] == 1.0
            if out is not None:
                out.send(Ping(step=message.step, data=data))


def take_many(inn: Any, count: int) -> None:
    """Receive in batches and touch every tensor."""
    while count:
        for message in inn.receive_many(min(count, BATCH)):
            assert message.data[1] == 1.0
            message.release()
            count -= 1
