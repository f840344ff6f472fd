"""A join under an open-loop load: prompts meet their embeddings, some late, some never; every request ends once.

Subject ``bench.ours.fusion``; the near half runs the node, sends and receives, the far one only answers. One workload,
``{"run": "fusion", "seconds": s, "rate": requests a second, "late": share, "missing": share}``: two parts a request,
sent at its moment whatever else is slow. Of those that are late or missing half lack the prompt (dropped), half the
embedding (partial). ``figures``:

- ``astray``: requests that did not end exactly once, outputs too many or too few, and 1 for an audit out of balance;
- ``growth``: memory of the node and of shared memory in the last third, over that of the second third (medians);
- ``k_per_s``: requests that were sent a second; ``p50_us``: from the later part's send until its output was received;
- ``fused``, ``partial``, ``dropped``: how many ended so.
"""

from __future__ import annotations

import heapq
import statistics
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from fabric_plugins.fuse import Embedding, Fused, Prompt

import fabric
from bench.node import BenchNode
from bench.ours.footprint import memory_bytes
from fabric.controlplane.api.client import ControlClient

WINDOW_S = 0.1
LATE_S = 3 * WINDOW_S
LOOK_S = 0.25
SETTLE_S = 20.0
DIM, ROWS, TOKENS = 64, 64, 32  # 8 KiB and 4 KiB of float16
SPEC = f"""
version: 1
channels:
  embeddings: {{type: fuse.embedding, delivery: at_least_once, class: embedding, credit: {{messages: 1024}}}}
  prompts: {{type: fuse.prompt, delivery: at_least_once, credit: {{messages: 1024}}}}
  fused: {{type: fuse.fused, delivery: at_least_once, class: embedding}}
joins:
  fusion:
    use: fabric_plugins.fuse:Fuse
    inputs: {{embedding: embeddings, prompt: prompts}}
    output: fused
    window: {int(WINDOW_S * 1000)}ms
    late: partial
    partial: [embedding]
"""


class Fusion:
    """The near half."""

    workloads = ("fusion",)

    def __init__(self, folder: Path) -> None:
        self._node = BenchNode(folder)
        self._node.start()
        self._port = fabric.attach("load", socket=str(self._node.socket))
        with self._control() as control:
            control.apply(SPEC)
        self._embeddings = self._port.sender("embeddings", Embedding)
        self._prompts = self._port.sender("prompts", Prompt)
        self._outputs = self._port.receiver("fused", Fused)
        self._runs = 0
        self._rows = np.ones((ROWS, DIM), np.float16)
        self._tokens = np.arange(TOKENS), np.zeros((TOKENS, DIM), np.float16)

    def fusion(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Serve the workload of this name."""
        self._runs += 1
        before = self._counted()
        taken = Taken(self._outputs)
        memory = Memory(self._node)
        try:
            requests, took_s, last_sent = self._send(order)
            memory.stop()
            ended = self._settled(before, requests)
        finally:
            memory.stop()
            taken.stop()
        outputs = ended["fused"] + ended["partial"]
        astray = abs(requests - sum(ended.values())) + abs(outputs - sum(taken.seen.values()))
        astray += sum(count - 1 for count in taken.seen.values()) + (not self._is_balanced())
        waits = [at - last_sent[key] for key, at in taken.at_ns.items()]
        return {
            "figures": {
                "astray": float(astray),
                "growth": memory.growth(),
                "k_per_s": requests / took_s / 1e3,
                "p50_us": statistics.median(waits) / 1e3,
                **{name: float(count) for name, count in ended.items()},
            }
        }

    # ---------------------------------------------------------------- load
    def _send(self, order: dict[str, Any]) -> tuple[int, float, dict[str, int]]:
        """Send every part at its moment; returns the requests, the seconds and when each request's last part went."""
        sent: dict[str, int] = {}
        start = time.perf_counter()
        parts = schedule(order, self._runs)
        for at_s, name, is_prompt in parts:
            left = at_s - (time.perf_counter() - start)
            if left > 0:
                time.sleep(left)  # the load's own clock
            sent[name] = time.monotonic_ns()
            if is_prompt:
                self._prompts.send(Prompt(name, *self._tokens), key=name)
            else:
                self._embeddings.send(Embedding(name, self._rows), key=name)
        took_s = time.perf_counter() - start - LATE_S
        return int(order["seconds"] * order["rate"]), took_s, sent

    # ---------------------------------------------------------------- what came of it
    def _counted(self) -> dict[str, int]:
        with self._control() as control:
            (row,) = [row for row in control.ls("plugin") if row["name"] == "fusion"]
        counts: dict[str, int] = row["join"]
        dropped = sum(count for name, count in counts.items() if name.startswith("dropped"))
        return {"fused": counts["fused"], "partial": counts["partial"], "dropped": dropped}

    def _settled(self, before: dict[str, int], requests: int) -> dict[str, int]:
        """Return how requests ended since `before`, once all parts have ended and as many requests, or time is up."""
        self._embeddings.flush(SETTLE_S)
        self._prompts.flush(SETTLE_S)
        deadline = time.monotonic() + SETTLE_S
        while True:
            ended = {name: count - before[name] for name, count in self._counted().items()}
            if sum(ended.values()) >= requests or time.monotonic() > deadline:
                return ended
            time.sleep(LOOK_S)

    def _is_balanced(self) -> bool:
        with self._control() as control:
            return bool(control.audit()["verdict"] == "balanced")

    def _control(self) -> ControlClient:
        return ControlClient(f"{self._node.socket}.ctl", deadline_s=SETTLE_S)

    def daemons_cpu_ns(self) -> int:
        """Return what the node's processes have used, the join's among them."""
        return self._node.cpu_ns()

    def close(self) -> None:
        """End the node."""
        self._port.close()
        self._node.stop()


def schedule(order: dict[str, Any], run: int) -> list[tuple[float, str, bool]]:
    """Return (seconds, request, is prompt) of every part, in order; the same for the same order and run."""
    chance = np.random.default_rng(run)
    count, rate = int(order["seconds"] * order["rate"]), order["rate"]
    fate, which = chance.random(count), chance.random(count) < 0.5
    parts: list[tuple[float, str, bool]] = []
    for number in range(count):
        at_s, name = number / rate, f"{run}-{number}"
        for is_prompt in (True, False):
            is_it = bool(which[number]) == is_prompt
            if is_it and fate[number] < order["missing"]:
                continue
            is_late = is_it and fate[number] < order["missing"] + order["late"]
            heapq.heappush(parts, (at_s + LATE_S * is_late, name, is_prompt))
    return [heapq.heappop(parts) for _ in range(len(parts))]


class Taken(threading.Thread):
    """Receives outputs and counts them by request."""

    def __init__(self, outputs: Any) -> None:
        super().__init__(daemon=True)
        self._outputs, self._ended = outputs, threading.Event()
        self.seen: Counter[str] = Counter()
        self.at_ns: dict[str, int] = {}
        self.start()

    def run(self) -> None:
        """Take what comes until told to stop and nothing comes any more."""
        while True:
            message = self._outputs.receive(timeout=LOOK_S)
            if message is None:
                if self._ended.is_set():
                    return
                continue
            with message:
                self.at_ns[str(message.request)] = time.monotonic_ns()
                self.seen[message.request] += 1
                message.ack()

    def stop(self) -> None:
        """Take the rest, then end."""
        self._ended.set()
        self.join(SETTLE_S)


class Memory(threading.Thread):
    """Samples what the node holds: its processes' own memory, and all that is shared."""

    def __init__(self, node: BenchNode) -> None:
        super().__init__(daemon=True)
        self._node, self._ended = node, threading.Event()
        self.samples: list[int] = []
        self.start()

    def run(self) -> None:
        """Look again and again until told to stop."""
        while not self._ended.wait(LOOK_S):
            self.samples.append(memory_bytes(self._node.pids()))

    def growth(self) -> float:
        """Return the last third over the second: by then everything has been used once."""
        third = len(self.samples) // 3
        middle, last = self.samples[third : 2 * third], self.samples[2 * third :]
        return statistics.median(last) / statistics.median(middle)

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        self.join(SETTLE_S)


class Idle:
    """The far half: there is nothing for it to do."""

    workloads = ("fusion",)

    def fusion(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Answer."""
        return {}

    def close(self) -> None:
        """There is nothing to end."""


def connect(role: str, folder: Path, options: dict[str, Any]) -> Fusion | Idle:
    """Return one half."""
    return Fusion(folder) if role == "near" else Idle()
