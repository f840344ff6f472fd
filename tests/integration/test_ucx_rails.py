"""Two daemons of one machine with a tcp rail and a rail of UCX: both carry, either may go, either side may lack it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.kill_nodes import Cluster, Node, balanced, settled, wait_for

pytestmark = [pytest.mark.needs_ucx, pytest.mark.promise("P4", "P5")]
JOB = {"channel": "far", "pattern": "stream"}
LARGE = {**JOB, "floats": 1 << 18}
MIB = 1 << 20


class Ground:
    """Nodes of this machine; each may listen on a rail of UCX beside the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.cluster = Cluster(folder)

    def node(self, name: str, ucx_rail: str = "", *more: str, join: Node | None = None) -> Node:
        words = ("--listen", ucx_rail) if ucx_rail else ()
        node = Node(self._folder, name, join.listen if join else None, (*words, *more))
        self.cluster.nodes.append(node)
        return node.start()

    def traffic(self, a: Node, b: Node, count: int):
        """Send large messages from a to b; returns both workers once they flow."""
        inn = self.cluster.worker(b, "consume", "in", **LARGE)
        inn.wait_for("ready")
        out = self.cluster.worker(a, "produce", "out", count=count, **LARGE)
        inn.wait_for("got", 20)
        return inn, out


@pytest.fixture
def ground(short_dir: Path) -> Iterator[Ground]:
    made = Ground(short_dir)
    try:
        yield made
    finally:
        made.cluster.close()


def rails(node: Node) -> dict[int, dict]:
    return {row["rail"]: row for row in node.call("path_ls")}


def all_up(*nodes: Node, links: tuple[str, ...]) -> None:
    for node in nodes:
        wait_for(
            f"all rails of {node.name}",
            lambda node=node: (
                [r["link"] for r in rails(node).values() if r["connections"] == 2] == [*links]
            ),
        )


def events(node: Node, kind: str) -> list[dict]:
    return [e for e in node.call("events")["events"] if e["kind"] == kind]


@pytest.mark.promise("P1", "P2")
@pytest.mark.parametrize("link", ["ucx+shm", "ucx+tcp"])
def test_both_rails_carry_and_every_message_ends_once(ground, link):
    a = ground.node("a", f"{link}:127.0.0.1:0")
    b = ground.node("b", join=a)
    all_up(a, b, links=("tcp", link))
    assert [e for node in (a, b) for e in events(node, "path downgraded")] == []
    inn, out = ground.traffic(a, b, 150)
    out.wait_for("flushed")
    inn.wait_for("got", 150)
    out.finish()
    carried = {number: row["delivered"] for number, row in rails(a).items()}
    assert sum(carried.values()) >= 150 * MIB and carried[1] > 0
    settled(a, "far")
    balanced(a)


@pytest.mark.promise("P1", "P9")
@pytest.mark.parametrize("killed", ["a", "b"], ids=["that accepts", "that dials"])
def test_killed_daemon_leaves_nothing_and_its_ucx_rail_comes_back(ground, killed):
    a = ground.node("a", "ucx+shm:127.0.0.1:0")
    b = ground.node("b", join=a)
    all_up(a, b, links=("tcp", "ucx+shm"))
    inn, out = ground.traffic(a, b, 400)
    shared_before = set(os.listdir("/dev/shm"))
    {"a": a, "b": b}[killed].kill_daemon()
    out.wait_for("flushed")
    inn.wait_for("got", 400)
    out.finish()
    all_up(a, b, links=("tcp", "ucx+shm"))
    assert set(os.listdir("/dev/shm")) <= shared_before, "nothing of the killed process stays"
    settled(a, "far")
    balanced(a)


def test_node_without_ucx_leaves_such_a_rail_out_and_says_why_once(ground):
    a = ground.node("a", "ucx+shm:127.0.0.1:0")
    b = ground.node("b", "", "--links", "tcp", join=a)
    wait_for("the tcp rail", lambda: rails(b)[0]["connections"] == 2)
    told = wait_for("the reason", lambda: events(b, "rail left out"))
    assert [e["reason"] for e in told] == ["ucx is not among --links tcp"]
    row = rails(b)[1]
    assert (row["link"], row["connections"], row["last_error"]) == (
        "ucx+shm",
        0,
        "ucx is not among --links tcp",
    )
    inn, out = ground.traffic(a, b, 40)
    out.wait_for("flushed")
    inn.wait_for("got", 40)
    out.finish()
    assert len(events(b, "rail left out")) == 1


def test_rail_with_transports_that_are_not_there_is_told_and_the_other_carries(ground):
    a = ground.node("a", "ucx+nothing:127.0.0.1:0")
    b = ground.node("b", join=a)
    told = wait_for("the rail that is not reached", lambda: events(b, "rail not reached"))
    assert "transports 'nothing'" in told[0]["reason"]
    inn, out = ground.traffic(a, b, 40)
    out.wait_for("flushed")
    inn.wait_for("got", 40)
    out.finish()


@pytest.mark.promise("P3")
def test_stopped_peer_costs_nothing_and_is_waited_for(ground):
    """UCX cannot sleep while a queue of shared memory is full: it must not be asked without pause."""
    a = ground.node("a", "ucx+shm:127.0.0.1:0")
    b = ground.node("b", join=a)
    all_up(a, b, links=("tcp", "ucx+shm"))
    a.call("path_pin", "b", [1])
    inn, out = ground.traffic(a, b, 120)
    sender, stopped = psutil.Process(a.daemon_pid), psutil.Process(b.daemon_pid)
    stopped.suspend()
    time.sleep(0.3)  # what was on its way has come, or waits
    before = sum(sender.cpu_times()[:2])
    time.sleep(1.0)
    used = sum(sender.cpu_times()[:2]) - before
    stopped.resume()
    inn.wait_for("got", 120)
    out.finish()
    assert used < 0.25, f"{used:.2f} s of CPU in a second of waiting"
    settled(a, "far")
    balanced(a)
