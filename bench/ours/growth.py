"""The fabric with much else open: what a round trip, an attach and an open cost then.

Subject ``bench.ours.growth``. Options: ``{"channels": n}`` opens n channels between near and far, the measured one
last; ``{"ports": n}`` attaches n ports to the node, those beside near and far in a third process, in pairs that share
a channel. Near and far are on a CPU each, wherever the driver puts them. Workloads beside those of `bench.loops`, each
with ``figures {"p50_us"}``:

- ``{"run": "attach", "count": …}``: `fabric.attach`, until it returned.
- ``{"run": "open", "count": …}``: `Port.receiver` and `Port.sender` in turn, until each returned.
- ``{"run": "connect", "count": …}``: what stands beside an attach: a ``multiprocessing.connection`` to the far half,
  with its key.
"""

from __future__ import annotations

import os
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import fabric
from bench.node import BenchNode
from bench.ours.ends import FabricEnd, attach, tell, wait_for

SPARE = "spare"
KEY_BYTES = 32
STOP_S = 10.0
READY_LINE = b"ready\n"


class Crowded(FabricEnd):
    """One half, with channels of its own opened before those of the measurement."""

    workloads = ("attach", "open", "connect")

    def __init__(
        self, role: str, port: Any, channels: int, places: dict[str, str], *more: Any
    ) -> None:
        self._places, self._others = places, []
        for number in range(channels - 1):
            name = f"idle.{number}"
            port.declare(name, bytes)
            end = port.sender if role == "near" else port.receiver
            self._others.append(end(name, bytes))
        super().__init__(role, port, *more)
        port.declare(SPARE, bytes)
        self._listener = None if role == "near" else Connections(places)

    def attach(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Attach again and again; the far half has nothing to do."""
        if role == "far":
            return {}
        socket, ports = self._places["near"], []

        def one(number: int) -> None:
            ports.append(fabric.attach(f"again-{number}", socket=socket))

        return timed(one, order["count"], lambda: ports.pop().close())

    def open(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Open a receiving end, then a sending end, and close each."""
        if role == "far":
            return {}
        made: list[Any] = []
        calls: tuple[Callable[..., Any], ...] = (self._port.receiver, self._port.sender)

        def one(number: int) -> None:
            made.append(calls[number % 2](SPARE, bytes))

        return timed(one, order["count"], lambda: made.pop().close())

    def connect(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Connect to the far half's listener as often."""
        if role == "far":
            return {}
        address, key = self._places["listener"], bytes.fromhex(self._places["key"])
        made: list[Any] = []

        def one(_: int) -> None:
            made.append(Client(address, authkey=key))

        return timed(one, order["count"], lambda: made.pop().close())

    def close(self) -> None:
        """Stop listening, then as ever."""
        if self._listener is not None:
            self._listener.close()
        super().close()


class Connections:
    """Accepts connections and drops them, on a thread of its own."""

    def __init__(self, places: dict[str, str]) -> None:
        self._key = bytes.fromhex(places["key"])
        self._address = places["listener"]
        self._listener = Listener(self._address, "AF_UNIX", authkey=self._key)
        self._is_closing = False
        self._thread = threading.Thread(target=self._serve, name="connections", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._is_closing:
            self._listener.accept().close()

    def close(self) -> None:
        """End the thread with a last connection."""
        self._is_closing = True
        Client(self._address, authkey=self._key).close()
        self._thread.join(STOP_S)
        self._listener.close()


class Others:
    """A third process that holds ports; ends with its stdin."""

    def __init__(self, socket: str, ports: int) -> None:
        command = [sys.executable, "-m", __name__, socket, str(ports)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != READY_LINE:
            raise RuntimeError("the process with the other ports has ended; its error is above")

    def cpu_ns(self) -> int:
        """Return nothing: they are idle, and what they use is not a message's."""
        return 0

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def timed(call: Callable[[int], None], count: int, undo: Callable[[], None]) -> dict[str, Any]:
    """Return the median time of a call that is undone outside of the timed part."""
    times = []
    for number in range(count):
        start = time.perf_counter_ns()
        call(number)
        times.append(time.perf_counter_ns() - start)
        undo()
    return {"figures": {"p50_us": statistics.median(times) / 1e3}}


def stand_apart(role: str) -> None:
    """Take a CPU of one's own: whether the halves happen to share one decides more than what else is open."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) > 1:
        os.sched_setaffinity(0, {cpus[0 if role == "near" else 1]})


def connect(role: str, folder: Path, options: dict[str, Any]) -> Crowded:
    """Near brings up the node and the other ports, far waits for it; both attach."""
    channels = int(options.get("channels", 1))
    if role == "far":
        places = wait_for(folder)
        stand_apart(role)
        return Crowded(role, attach(role, places["far"], options), channels, places)
    node = BenchNode(folder)
    node.start()
    more: list[Any] = [node]
    try:
        if options.get("ports", 2) > 2:
            more.insert(0, Others(str(node.socket), options["ports"] - 2))
        places = {"near": str(node.socket), "far": str(node.socket)}
        places |= {"listener": str(folder / "listener"), "key": secrets.token_hex(KEY_BYTES)}
        stand_apart(role)  # the node and the others go where they like
        port = attach(role, str(node.socket), options)
        tell(folder, places)
        return Crowded(role, port, channels, places, *more)
    except BaseException:
        for each in more:
            each.stop()
        raise


def hold(socket: str, count: int) -> None:
    """Attach `count` ports, each pair with a channel between, until stdin ends."""
    ports = [fabric.attach(f"other-{number}", socket=socket) for number in range(count)]
    ends: list[Any] = []
    for number in range(0, count - 1, 2):
        ports[number].declare(f"pair.{number}", bytes)
        ends.append(ports[number].sender(f"pair.{number}", bytes))
        ends.append(ports[number + 1].receiver(f"pair.{number}", bytes))
    sys.stdout.buffer.write(READY_LINE)
    sys.stdout.buffer.flush()
    sys.stdin.buffer.read()
    for port in ports:
        port.close()


if __name__ == "__main__":
    hold(sys.argv[1], int(sys.argv[2]))
