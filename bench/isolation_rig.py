"""Round trips over 99 channels between two processes: what the disturbances must leave alone.

The far process (``python -m bench.isolation_rig echo SOCKET``) answers each channel in turn. It also holds the
receiver of the hundredth channel, and reads it only when told to.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fabric
from fabric import errors

ROOT = Path(__file__).resolve().parent.parent
CHANNELS = 99
UNREAD = "unread"
GO, DRAIN, STOP = 1, 2, 3
START_S = 30.0
CREDIT = 64  # of one receiver; those of a port share a lane
ENDPOINTS = 50  # a port; a process may hold several


@fabric.message("isolation.ping", version=1)
class Ping:
    """A small message."""

    step: int
    data: fabric.Tensor["n", "f32"]


def declare(port: Any, *names: str, **fields: Any) -> None:
    """Declare channels of `Ping`; each end says the same."""
    for name in names:
        port.declare(name, Ping, **{"pattern": "stream", "delivery": "at_most_once", **fields})


def names() -> list[str]:
    """Return the names of the channels whose round trips are measured."""
    return [f"c{number}" for number in range(CHANNELS)]


class RoundTrips:
    """The near end."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.port = fabric.attach("near", socket=socket)
        self.other = fabric.attach("near-other", socket=socket)
        declare(self.port, *names(), "orders", "pong", UNREAD)
        self._far = subprocess.Popen(
            [sys.executable, "-m", "bench.isolation_rig", "echo", socket], cwd=ROOT
        )
        self._orders = self.port.sender("orders", Ping)
        ports = [*[self.port] * ENDPOINTS, *[self.other] * ENDPOINTS]
        self._outs = [p.sender(name, Ping) for p, name in zip(ports, names(), strict=False)]
        self.unread = self.port.sender(UNREAD, Ping)
        self._back = self.port.receiver("pong", Ping)
        self.data = np.arange(16, dtype=np.float32)
        self._back.receive(timeout=START_S).release()
        self.measure(0.5)  # every lane, segment and page is there from here on

    def measure(self, seconds: float, meanwhile: Callable[[], None] | None = None) -> list[int]:
        """Return the time of each round trip in nanoseconds; `meanwhile` is called between some of them."""
        times: list[int] = []
        clock, until = time.perf_counter_ns, time.perf_counter() + seconds
        while time.perf_counter() < until:
            self._order(GO)
            for step, out in enumerate(self._outs):
                start = clock()
                out.send(Ping(step=step, data=self.data))
                with self._back.receive(timeout=START_S) as back:
                    times.append(clock() - start)
                    assert back.step == step
            if meanwhile is not None:
                meanwhile()
        return times

    def fill_unread(self) -> None:
        """Send on the unread channel until it takes no more."""
        try:
            for _ in range(CREDIT * 4):
                self.unread.send(Ping(step=0, data=self.data), deadline=0)
        except errors.WouldBlock:
            return
        raise AssertionError("the unread channel never fills")

    def drain_unread(self) -> None:
        """Have the far end read it empty."""
        self._order(DRAIN)
        self._back.receive(timeout=START_S).release()
        self.unread.flush(START_S)

    def _order(self, kind: int) -> None:
        self._orders.send(Ping(step=kind, data=self.data))

    def stop(self) -> None:
        """End both."""
        self._order(STOP)
        self._far.wait(START_S)
        self.port.close()
        self.other.close()


def echo(socket: str) -> None:
    """Serve the far end."""
    with (
        fabric.attach("far", socket=socket) as port,
        fabric.attach("far-other", socket=socket) as other,
    ):
        declare(port, *names(), "orders", "pong", UNREAD)
        orders = port.receiver("orders", Ping)
        ports = [*[port] * ENDPOINTS, *[other] * ENDPOINTS]
        inns = [p.receiver(n, Ping, messages=CREDIT) for p, n in zip(ports, names(), strict=False)]
        unread = port.receiver(UNREAD, Ping, messages=CREDIT)
        out = port.sender("pong", Ping)
        out.send(Ping(step=-1, data=np.zeros(1, np.float32)))
        while True:
            with orders.receive(timeout=600.0) as order:
                kind = order.step
            if kind == STOP:
                return
            if kind == DRAIN:
                while (message := unread.receive(timeout=0.1)) is not None:
                    message.release()
                out.send(Ping(step=-1, data=np.zeros(1, np.float32)))
                continue
            for inn in inns:
                with inn.receive(timeout=START_S) as message:
                    out.send(Ping(step=message.step, data=message.data))


if __name__ == "__main__":
    echo(sys.argv[2])
