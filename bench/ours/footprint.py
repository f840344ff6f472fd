"""What the fabric costs while nothing is said: to be ready, and in memory for a channel, a port and a node more.

Subject ``bench.ours.footprint``; the near half runs everything, the far one only answers. Options: ``{"nodes": n}``
nodes that are there before anything is asked (1). Workloads:

- ``ready``: ``figures {"ms"}``, from the start of a node's first process to the return of the first attach.
- ``ready_allowance``: what that may be held against, the interpreter with what a daemon imports and `MARGIN_S`.
- ``channels`` and ``ports``, with ``count``: ``figures {"bytes", "stated_bytes", "client_bytes"}``, what one more of
  them costs: the growth of what the node holds for it, shared memory and its own; what the node itself says; and what
  the attached process adds for itself (the stacks of a port's two threads, for the most part).
- ``node``: ``figures {"bytes", "ms"}``, what one more node costs all nodes together, and until it has joined.

Memory is anonymous and shared memory, each page divided by those that map it; code is not in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import fabric
from bench.node import BenchNode
from fabric.controlplane.api.client import ControlClient

MARGIN_S = 0.150
IMPORTS = "import fabric.controlplane.daemon"
WARM = 64  # channels and ports that are there before: pages come in fours and more
WAIT_S = 60.0
SETTLE_S = 0.5
PRIVATE, SHARED = ("Pss_Anon:",), ("Pss_Shmem:",)


class Footprint:
    """The near half."""

    workloads = ("ready", "ready_allowance", "channels", "ports", "node")

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self._folder, self._started = folder, 0
        self._nodes: list[BenchNode] = []
        self._ports: list[Any] = []
        try:
            for _ in range(int(options.get("nodes", 1))):
                self._nodes.append(self._node())
                self._wait_for_members()
        except BaseException:
            self.close()
            raise

    # ---------------------------------------------------------------- time
    def ready(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Serve the workload of this name: a node of its own."""
        folder = self._folder / "ready"
        folder.mkdir()
        node = BenchNode(folder)
        start = time.perf_counter_ns()
        try:
            node.start()
            fabric.attach("first", socket=str(node.socket)).close()
            took = time.perf_counter_ns() - start
        finally:
            node.stop()
            shutil.rmtree(folder)
        return {"figures": {"ms": took / 1e6}}

    def ready_allowance(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Serve the workload of this name."""
        start = time.perf_counter_ns()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True, timeout=WAIT_S)
        return {"figures": {"ms": (time.perf_counter_ns() - start) / 1e6 + MARGIN_S * 1e3}}

    # ---------------------------------------------------------------- memory
    def channels(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Serve the workload of this name."""
        one, other = self._attach(2)
        ends: list[Any] = []

        def add(count: int) -> None:
            for _ in range(count):
                name = f"idle.{len(ends)}"
                one.declare(name, bytes)
                other.declare(name, bytes)
                ends.append((one.sender(name, bytes), other.receiver(name, bytes)))

        return self._grown(add, order["count"], "channel")

    def ports(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Serve the workload of this name."""
        return self._grown(self._attach, order["count"], "port")

    def _grown(self, add: Callable[[int], object], count: int, what: str) -> dict[str, Any]:
        """Return what `count` more of something cost, each; everything is closed afterwards."""
        add(WARM)
        before, own = self._held(), memory_bytes([os.getpid()], PRIVATE)
        add(count)
        after, own = self._held(), memory_bytes([os.getpid()], PRIVATE) - own
        with self._control() as control:
            stated = control.status()["memory"][f"{what}_bytes"]
        for port in self._ports:
            port.close()
        self._ports.clear()
        each = {"bytes": (after - before) / count, "client_bytes": own / count}
        return {"figures": {**each, "stated_bytes": stated}}

    def _held(self) -> int:
        """Return what the nodes hold, with the pages that this process shares with them."""
        return memory_bytes(self._pids()) + memory_bytes([os.getpid()], SHARED)

    def _attach(self, count: int) -> list[Any]:
        socket, first = str(self._nodes[0].socket), len(self._ports)
        made = [fabric.attach(f"port-{first + n}", socket=socket) for n in range(count)]
        self._ports += made
        return made

    # ---------------------------------------------------------------- nodes
    def node(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Serve the workload of this name: one more joins, and leaves."""
        before = memory_bytes(self._pids())
        start = time.perf_counter_ns()
        self._nodes.append(self._node())
        self._wait_for_members()
        took = time.perf_counter_ns() - start
        time.sleep(SETTLE_S)  # links between all of them are made meanwhile
        after = memory_bytes(self._pids())
        self._nodes.pop().stop()
        return {"figures": {"bytes": float(after - before), "ms": took / 1e6}}

    def _node(self) -> BenchNode:
        self._started += 1
        join = self._nodes[0].listen if self._nodes else None
        node = BenchNode(self._folder, f"n{self._started}", join=join)
        node.start()
        fabric.attach(
            "hello", socket=str(node.socket)
        ).close()  # its keeper listens before its daemon serves
        return node

    def _wait_for_members(self) -> None:
        """Wait until the newest node is known to the first as one that serves."""
        deadline = time.monotonic() + WAIT_S
        name = f"n{self._started}"
        while True:
            with self._control() as control:
                rows = {row["name"]: row for row in control.ls("node")}
            if rows.get(name, {}).get("state") == "serving":
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} did not join within {WAIT_S:g} s: {rows}")
            time.sleep(0.01)

    def _control(self) -> ControlClient:
        return ControlClient(f"{self._nodes[0].socket}.ctl", deadline_s=WAIT_S)

    def _pids(self) -> list[int]:
        return [pid for node in self._nodes for pid in node.pids()]

    def daemons_cpu_ns(self) -> int:
        """Return what the nodes have used so far."""
        return sum(node.cpu_ns() for node in self._nodes)

    def close(self) -> None:
        """Detach, then stop the nodes, the first one last."""
        for port in self._ports:
            port.close()
        for node in reversed(self._nodes):
            node.stop()


class Nobody:
    """The far half: it takes part in nothing."""

    workloads = Footprint.workloads

    def ready(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Answer."""
        return {}

    ready_allowance = channels = ports = node = ready

    def close(self) -> None:
        """Nothing is open."""


def connect(role: str, folder: Path, options: dict[str, Any]) -> Footprint | Nobody:
    """Near runs everything."""
    return Footprint(folder, options) if role == "near" else Nobody()


def memory_bytes(pids: Iterable[int], kinds: tuple[str, ...] = PRIVATE + SHARED) -> int:
    """Return the anonymous and shared memory of some processes, or one of the two."""
    found = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            words = line.split()
            if words[0] in kinds:
                found += int(words[1]) * 1024
    return found
