"""Channels whose large messages fill the way to a node share it by their weights."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import fabric
from tests.integration.kill_nodes import Node, clusters, wait_for

pytestmark = pytest.mark.promise("P4")
cluster = pytest.fixture(clusters)
KIB, MIB = 1 << 10, 1 << 20
SIZE, RATE = 256 * KIB, 32 * MIB
WARM_S, MEASURED_S = 0.7, 2.5


class Flood:
    """Keeps one channel full from one node to another; counts what arrives in `arrived`."""

    def __init__(
        self,
        a: Node,
        b: Node,
        channel: str,
        weight: int,
        arrived: Counter[str],
        stop: threading.Event,
    ) -> None:
        self._arrived, self._stop, self._channel = arrived, stop, channel
        self._out = fabric.attach(f"out-{channel}", socket=a.socket)
        self._inn = fabric.attach(f"in-{channel}", socket=b.socket)
        self._inn.declare(channel, bytes, pattern="queue", klass="bulk", weight=weight)
        self._receiver = self._inn.receiver(channel, bytes)
        self._sender = self._out.sender(channel, bytes)
        self._threads = [threading.Thread(target=each) for each in (self._send, self._take)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        data = bytes(SIZE)
        while not self._stop.is_set():
            self._sender.send(data, deadline=20.0)
        self._sender.flush(20.0)

    def _take(self) -> None:
        while self._threads[0].is_alive():
            got = self._receiver.receive(timeout=0.2)
            if got is not None:
                got.release()
                self._arrived[self._channel] += SIZE

    def end(self) -> None:
        for thread in self._threads:
            thread.join(30.0)
        self._out.close()
        self._inn.close()


@contextmanager
def floods(a: Node, b: Node, **weights: int) -> Iterator[Counter[str]]:
    arrived: Counter[str] = Counter()
    stop = threading.Event()
    running = [Flood(a, b, name, weight, arrived, stop) for name, weight in weights.items()]
    try:
        yield arrived
    finally:
        stop.set()
        for flood in running:
            flood.end()


def parts(arrived: Counter[str], seconds: float) -> dict[str, float]:
    before = Counter(arrived)
    time.sleep(seconds)  # what is measured takes this long
    moved = {name: count - before[name] for name, count in arrived.items()}
    assert sum(moved.values()) > 0.6 * RATE * seconds, "the way between the nodes is full"
    return {name: count / sum(moved.values()) for name, count in moved.items()}


def shared_as_declared(found: dict[str, float]) -> bool:
    return found == {
        "light": pytest.approx(0.25, abs=0.05),
        "heavy": pytest.approx(0.75, abs=0.05),
    }


@pytest.mark.deadline(120)
def test_channels_share_the_way_to_a_node_by_their_weights_also_under_the_next_daemon(
    cluster, monkeypatch
):
    monkeypatch.setenv("FABRIC_FAULTS", "1")
    monkeypatch.setenv("FABRIC_ENGINE_FAULT", f"link_rate_bytes:{RATE}")
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    with floods(a, b, light=1, heavy=3) as arrived:
        time.sleep(WARM_S)
        found = parts(arrived, MEASURED_S)
        assert shared_as_declared(found), found
        before = Counter(arrived)
        a.kill_daemon()
        wait_for("messages again", lambda: all(arrived[n] > before[n] + MIB for n in before), 20)
        time.sleep(WARM_S)
        found = parts(arrived, MEASURED_S)
        assert shared_as_declared(found), found
