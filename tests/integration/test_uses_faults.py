"""Faults beside every way to use a port: polling, blocking, asyncio, batched, loaned; of messages and of bytes.

All ways at once, each on a channel of its own: what is killed is killed for all of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.uses import USES
from tests.integration.kill_nodes import Cluster, Node, balanced, settled, wait_for
from tests.integration.test_link_cut import cut_connections

pytestmark = [pytest.mark.promise("P1", "P2", "P6")]

WAYS = list(USES)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes for all tests of this file."""
    folder = Path(tempfile.mkdtemp(prefix="fab-", dir="/tmp"))
    made = Cluster(folder)
    try:
        made.node("b", join=made.node("a"))
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[tuple[Node, Node]]:
    """The two nodes; the test's processes end with it."""
    a, b = cluster.nodes
    yield a, b
    for worker in cluster.workers:
        if worker.process.poll() is None:
            worker.kill()
    cluster.workers.clear()


def of(worker: Any, key: str, use: str) -> list[Any]:
    return [report[key] for report in worker.reports(key) if report["use"] == use]


def each_has(worker: Any, key: str, count: int, seconds: float = 30.0) -> None:
    """Wait until every way has reported `key` so often."""

    def enough() -> bool:
        assert worker.killed or worker.process.poll() in (None, 0), worker.trouble()
        return all(len(of(worker, key, use)) >= count for use in WAYS)

    wait_for(f"{count} x {key!r} of every way at {worker.name}", enough, seconds)


def start(cluster: Cluster, node: Node, role: str, name: str, channel: str, **job: Any) -> Any:
    worker = cluster.worker(node, role, name, channel=channel, uses=WAYS, **job)
    if role == "consume":
        each_has(worker, "ready", 1)
    return worker


def all_arrived(inn: Any, count: int) -> None:
    """Expect every message once, whole and in order, in every way."""
    each_has(inn, "acked", count)
    for use in WAYS:
        assert of(inn, "got", use) == list(range(count)), use


def all_ended(node: Node, channel: str, count: int) -> None:
    for use in WAYS:
        row = settled(node, f"{channel}-{use}")
        assert (row["accepted"], row["delivered"]) == (count, count), use
    balanced(node)


def test_unacknowledged_work_of_a_killed_consumer_is_redone_by_another(
    cluster: Cluster, nodes: tuple[Node, Node]
) -> None:
    a, b = nodes
    victim = start(cluster, a, "consume", "victim", "work", pattern="queue", hold_s=0.05)
    survivor = start(cluster, b, "consume", "survivor", "work", pattern="queue")
    producer = start(cluster, a, "produce", "out", "work", pattern="queue", count=150)
    each_has(victim, "got", 3)
    victim.kill()
    producer.finish(40.0)
    for use in WAYS:
        done = [*of(survivor, "acked", use), *of(victim, "acked", use)]
        assert set(done) == set(range(150)), f"{use}: a message was lost, or is not whole"
        redone = {r["got"] for r in survivor.reports("got") if r["use"] == use and r["redelivered"]}
        held = set(of(victim, "got", use)) - set(of(victim, "acked", use))
        assert held <= redone, f"{use}: what the victim held came again, flagged"
        assert all(done.count(number) == 1 or number in redone for number in done), use
    all_ended(a, "work", 150)


def test_what_a_killed_producer_had_sent_arrives(
    cluster: Cluster, nodes: tuple[Node, Node]
) -> None:
    a, b = nodes
    inn = start(cluster, b, "consume", "in", "cut-off")
    victim = start(cluster, a, "produce", "out", "cut-off", interval_s=0.0, size=16_384)
    each_has(inn, "got", 20)
    victim.kill()
    for use in WAYS:
        row = settled(a, f"cut-off-{use}")
        got = of(inn, "got", use)
        assert got == list(range(len(got))), use
        assert row["accepted"] == row["delivered"] == len(got), use
        assert len(got) > of(victim, "sent", use)[-1], use


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_messages_survive_the_death_of_a_daemon(
    cluster: Cluster, nodes: tuple[Node, Node], side: str
) -> None:
    a, b = nodes
    inn = start(cluster, b, "consume", "in", f"far-{side}")
    out = start(cluster, a, "produce", "out", f"far-{side}", count=200, interval_s=0.03, size=8192)
    each_has(inn, "got", 10)
    (a if side == "sender" else b).kill_daemon()
    out.finish(40.0)
    all_arrived(inn, 200)
    all_ended(a, f"far-{side}", 200)


def test_messages_survive_cut_connections(cluster: Cluster, nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    inn = start(cluster, b, "consume", "in", "cut")
    out = start(cluster, a, "produce", "out", "cut", count=300, size=16_384)
    for seen, node in ((20, a), (100, b)):
        each_has(inn, "got", seen)
        wait_for(
            "a connection to cut",
            lambda node=node: cut_connections(node.daemon_pid, data_only=True),
        )
    out.finish(40.0)
    all_arrived(inn, 300)
    all_ended(a, "cut", 300)


@pytest.mark.parametrize("who", ["consumer", "producer"])
def test_stopped_process_loses_nothing(
    cluster: Cluster, nodes: tuple[Node, Node], who: str
) -> None:
    a, _ = nodes
    inn = start(cluster, a, "consume", "in", f"still-{who}")
    out = start(cluster, a, "produce", "out", f"still-{who}", count=150)
    each_has(inn, "got", 5)
    stopped = inn if who == "consumer" else out
    os.kill(stopped.process.pid, signal.SIGSTOP)
    time.sleep(1.5)  # longer than until it is suspect
    os.kill(stopped.process.pid, signal.SIGCONT)
    out.finish(40.0)
    all_arrived(inn, 150)
    all_ended(a, f"still-{who}", 150)
