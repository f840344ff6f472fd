"""Routing policies: a slow replica under load, cached prefixes on a real trace, and what a policy costs its sender.

Subject ``bench.ours.routing``; the near half does everything, the far one only answers. Workloads, each ``figures``:

- ``slow``, with `route`: four replicas behind a queue, `SERVICE_S` a message, one thread that sends at its moments,
  60 % of what they can do; then one is ten times slower for `SLOW_S`, then as before. ``p50_us`` and ``slow_p99_us``
  of the messages sent while it was slow, send to acknowledgement; ``recover_s``: from when it was fast again to
  the first tenth of a second whose p99 is within twice what it was before.
- ``prefix``: the Mooncake conversation trace over eight replicas, each with a cache of its own. ``hit_share``: blocks
  found, over those that one cache without bounds would find; ``imbalance``: the largest over the mean, of the
  blocks that had to be computed.
- ``send``, with `route` or null: ``cpu_us`` of the sending thread a message, in bursts that find room.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fabric_routes.prefix_affinity import PrefixAffinity

import fabric
from bench.node import BenchNode
from bench.sides import ROOT
from fabric.abc.route import Header, Target
from fabric.controlplane.api.client import ControlClient

TRACE = ROOT.parent / "shared" / "data" / "traces" / "conversation_trace.jsonl"
REPLICAS, CACHES = 4, 8
SERVICE_S, SLOWER = 0.004, 10
LOAD = 0.6
BEFORE_S, SLOW_S, AFTER_S = 1.0, 2.5, 2.0
WINDOW_S = 0.1
BURST, KEYS = 128, 16
START_S = 20.0
POLICY = """import fabric
@fabric.route("bench_cached")
def bench_cached(header, targets):
    return min(targets, key=lambda t: (hash(header.key) ^ t.endpoint) % 7919)
"""


@fabric.message("bench.routed", version=1)
class Routed:
    """A request."""

    number: int
    sent_ns: int


class Replica(threading.Thread):
    """Works on one message after the other, `service_s` each; keeps (sent, done) in ns."""

    def __init__(self, port: Any, channel: str) -> None:
        super().__init__(daemon=True)
        self.receiver = port.receiver(channel, Routed)
        self.service_s = SERVICE_S
        self.done: list[tuple[int, int]] = []
        self.stopping = False

    def run(self) -> None:
        while not self.stopping:
            message = self.receiver.receive(0.05)
            if message is None:
                continue
            time.sleep(self.service_s)
            self.done.append((message.sent_ns, time.monotonic_ns()))
            message.ack()


class Routing:
    """The near half."""

    workloads = ("slow", "prefix", "send")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._node: BenchNode | None = None
        self._count = 0

    def slow(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Return latencies beside a slow replica, and how long they outlast it."""
        if role == "far":
            return {}
        with contextlib.ExitStack() as stack:
            out, replicas = self._joined(stack, order["route"])
            slow_ns, fast_ns = self._send_on_time(out, replicas)
            done = sorted(pair for replica in replicas for pair in replica.done)
        before = [end - sent for sent, end in done if sent < slow_ns]
        beside = [end - sent for sent, end in done if slow_ns <= sent < fast_ns]
        after = [(sent - fast_ns, end - sent) for sent, end in done if sent >= fast_ns]
        return {
            "figures": {
                "p50_us": _quantile(beside, 0.5) / 1e3,
                "slow_p99_us": _quantile(beside, 0.99) / 1e3,
                "recover_s": _recovery_s(after, 2 * _quantile(before, 0.99)),
            }
        }

    def prefix(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Return what of a real trace is found in caches, and how even the work is."""
        if role == "far":
            return {}
        prompts = [json.loads(line)["hash_ids"] for line in TRACE.read_text().splitlines()]
        policy = PrefixAffinity()
        targets = [Target(flow=i, endpoint=i + 1) for i in range(CACHES)]
        caches: list[set[int]] = [set() for _ in targets]
        computed = [0] * CACHES
        one: set[int] = set()
        best = found = 0
        for blocks in prompts:
            best += _known(one, blocks)
            chosen = policy.select(Header("prefill", fields={"block_hashes": blocks}), targets).flow
            hits = _known(caches[chosen], blocks)
            found += hits
            computed[chosen] += len(blocks) - hits
        imbalance = max(computed) * CACHES / sum(computed)
        return {"figures": {"hit_share": found / best, "imbalance": imbalance}}

    def send(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Return what the sending thread uses a message."""
        if role == "far":
            return {}
        with contextlib.ExitStack() as stack:
            out, receivers = self._opened(stack, order["route"])
            keys = [f"key-{number}" for number in range(KEYS)]
            self._burst(out, receivers, keys)
            used = sum(
                self._burst(out, receivers, keys) for _ in range(int(order["count"]) // BURST)
            )
        return {"figures": {"cpu_us": used / 1e3 / (int(order["count"]) // BURST * BURST)}}

    def close(self) -> None:
        """End the node."""
        if self._node is not None:
            self._node.stop()

    # ---- inside

    def _channel(
        self, stack: contextlib.ExitStack, route: str | None, delivery: str
    ) -> tuple[Any, str]:
        if self._node is None:
            self._node = BenchNode(self._folder)
            self._node.start()
            with ControlClient(f"{self._node.socket}.ctl", deadline_s=START_S) as client:
                _wait("the daemon serves", client.is_serving)
                client.plugin_load("bench_cached.py", POLICY)
        self._count += 1
        name = f"routed-{self._count}"
        port = stack.enter_context(fabric.attach("sender", socket=str(self._node.socket)))
        port.declare(name, Routed, pattern="queue", delivery=delivery, route=route)
        return port, name

    def _attach(self, stack: contextlib.ExitStack, number: int) -> Any:
        name = f"replica-{number}"
        return stack.enter_context(fabric.attach(name, socket=str(self._folder / "a.sock")))

    def _opened(self, stack: contextlib.ExitStack, route: str | None) -> tuple[Any, list[Any]]:
        port, name = self._channel(stack, route, "at_most_once")
        receivers = [self._attach(stack, n).receiver(name, Routed) for n in range(REPLICAS)]
        out = port.sender(name, Routed)
        _wait("all flows are open", lambda: len(out.stats()["flows"]) == REPLICAS)
        return out, receivers

    def _joined(self, stack: contextlib.ExitStack, route: str) -> tuple[Any, list[Replica]]:
        port, name = self._channel(stack, route, "at_least_once")
        replicas = [Replica(self._attach(stack, n), name) for n in range(REPLICAS)]
        out = port.sender(name, Routed)
        _wait("all flows are open", lambda: len(out.stats()["flows"]) == REPLICAS)
        for replica in replicas:
            replica.start()

        def stop() -> None:
            for replica in replicas:
                replica.stopping = True
            for replica in replicas:
                replica.join()

        stack.callback(stop)
        return out, replicas

    def _send_on_time(self, out: Any, replicas: list[Replica]) -> tuple[int, int]:
        """Send at fixed moments, whatever is slow; returns when one replica became slow, and fast again."""
        pause_ns = int(SERVICE_S / REPLICAS / LOAD * 1e9)
        start = time.monotonic_ns()
        slow_ns, fast_ns = start + int(BEFORE_S * 1e9), start + int((BEFORE_S + SLOW_S) * 1e9)
        count = int((BEFORE_S + SLOW_S + AFTER_S) * 1e9) // pause_ns
        for number in range(count):
            due = start + number * pause_ns
            while (left := due - time.monotonic_ns()) > 0:
                time.sleep(left / 1e9)
            replicas[0].service_s = SERVICE_S * (SLOWER if slow_ns <= due < fast_ns else 1)
            out.send(Routed(number, due))
        out.flush(60.0)
        return slow_ns, fast_ns

    def _burst(self, out: Any, receivers: Sequence[Any], keys: list[str]) -> int:
        """Send a burst and take it in; returns the ns of CPU of the sends."""
        messages = [Routed(number, 0) for number in range(BURST)]
        send = out.send
        started = time.thread_time_ns()
        for number, message in enumerate(messages):
            send(message, keys[number % KEYS])
        used = time.thread_time_ns() - started
        taken = 0
        while taken < BURST:
            for receiver in receivers:
                for message in receiver.receive_many(BURST, 0):
                    message.release()
                    taken += 1
        out.flush(10.0)
        return used


class Far:
    """Answers only."""

    workloads = Routing.workloads

    def close(self) -> None:
        """Nothing is open."""

    def slow(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Answer."""
        return {}

    prefix = send = slow


def _known(cache: set[int], blocks: list[int]) -> int:
    """Return how many leading blocks are in a cache, which then has all of them."""
    found = next((i for i, block in enumerate(blocks) if block not in cache), len(blocks))
    cache.update(blocks)
    return found


def _wait(what: str, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {START_S:g} s until {what}")
        time.sleep(0.01)


def _quantile(values: Sequence[int], share: float) -> float:
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * share))])


def _recovery_s(after: list[tuple[int, int]], bound_ns: float) -> float:
    """Return the end of the first window in which latencies are as before; the whole time where none is."""
    for window in range(int(AFTER_S / WINDOW_S)):
        low, high = window * WINDOW_S * 1e9, (window + 1) * WINDOW_S * 1e9
        inside = [took for since, took in after if low <= since < high]
        if inside and _quantile(inside, 0.99) <= bound_ns:
            return (window + 1) * WINDOW_S
    return AFTER_S


def connect(role: str, folder: Path, options: dict[str, Any]) -> Any:
    """Return a half."""
    return Routing(folder) if role == "near" else Far()
