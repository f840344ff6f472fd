"""Two nodes joined by several interfaces: all are used, any may go, and the nodes hold on to each other meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.namespaces import Bed, Rail
from fabric import limits
from tests.integration.kill_nodes import Cluster, Node, balanced, settled, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.promise("P4", "P5")]
JOB = {"channel": "far", "pattern": "stream"}
LARGE = {**JOB, "floats": 1 << 16}
LEASE_AND_MORE_S = 4.5


class Ground:
    """Two namespaces joined by `count` veth pairs, and the nodes in them."""

    def __init__(self, bed: Bed, folder: Path, count: int = 2) -> None:
        self.bed, self._folder = bed, folder
        for name in ("a", "b"):
            bed.namespace(name)
        self.rails = [Rail(bed, number, "a", "b", 0) for number in range(count)]
        self.cluster = Cluster(folder)

    def node(self, name: str, listens: list[str], join: Node | None = None) -> Node:
        more = tuple(word for each in listens[1:] for word in ("--listen", each))
        node = Node(self._folder, name, join.listen if join else None, more)
        node.address, node.inside = f"{listens[0]}:0", self.bed.inside(name)
        self.cluster.nodes.append(node)
        return node.start()

    def both(self) -> tuple[Node, Node]:
        """Start a node in each namespace, on every rail."""
        a = self.node("a", [rail.near_address for rail in self.rails])
        return a, self.node("b", [rail.far_address for rail in self.rails], a)


@pytest.fixture
def ground(short_dir: Path) -> Iterator[Ground]:
    with Bed() as bed:
        made = Ground(bed, short_dir)
        try:
            yield made
        finally:
            made.cluster.close()


def rails(node: Node) -> list[dict]:
    links = node.call("topology")["links"]
    own = [link for link in links if link["source"] == node.name]
    return own[0]["rails"] if own else []


def up(node: Node) -> list[int]:
    return [row["rail"] for row in rails(node) if row["connections"] == 2]


def all_up(*nodes: Node, count: int = 2) -> None:
    for node in nodes:
        wait_for(f"all rails of {node.name}", lambda node=node: up(node) == [*range(count)])


def events(node: Node, kind: str) -> list[dict]:
    return [e for e in node.call("events")["events"] if e["kind"] == kind]


def states(node: Node) -> set[str]:
    return {row["state"] for row in node.call("ls", "node")}


def watched(nodes: tuple[Node, ...], seconds: float) -> list[set[str]]:
    """Return what the nodes said of each other's state, looked at for that long."""
    seen, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        seen += [states(node) for node in nodes]
        time.sleep(0.05)
    return seen


def test_every_interface_is_a_rail_and_each_keeps_to_its_own(ground):
    a, b = ground.both()
    all_up(a, b)
    for row, rail in zip(rails(b), ground.rails, strict=True):
        assert (row["local"], row["remote"]) == (rail.far_address, rail.near_address)
        assert (row["interface"], row["peer_interface"]) == (rail.device, rail.device)
    for row, rail in zip(rails(a), ground.rails, strict=True):
        assert (row["local"], row["remote"]) == (rail.near_address, rail.far_address)
    shown = {
        row["name"]: [r["address"].split(":")[0] for r in row["rails"]]
        for row in a.call("ls", "node")
    }
    assert shown["b"] == [rail.far_address for rail in ground.rails]


def test_everywhere_means_all_usable_interfaces(ground):
    a = ground.node("a", ["0.0.0.0"])
    b = ground.node("b", ["0.0.0.0"], a)
    all_up(a, b)
    assert [row["local"] for row in rails(b)] == [rail.far_address for rail in ground.rails]


@pytest.mark.promise("P1", "P3")
@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.sweep)])
def test_messages_go_on_over_the_other_rail_and_the_lost_one_is_used_again(ground, lost):
    a, b = ground.both()
    all_up(a, b)
    inn = ground.cluster.worker(b, "consume", "in", **LARGE)
    inn.wait_for("ready")
    out = ground.cluster.worker(a, "produce", "out", count=900, interval_s=0.005, **LARGE)
    inn.wait_for("got", 50)
    ground.rails[lost].down()
    wait_for("the loss to be seen", lambda: up(a) == [1 - lost] and up(b) == [1 - lost])
    inn.wait_for("got", len(inn.values("got")) + 100)
    assert set.union(*watched((a, b), LEASE_AND_MORE_S)) <= {"serving", "suspect"}
    ground.rails[lost].up()
    all_up(a, b)
    out.finish()
    row = settled(a, "far")
    assert (row["delivered"], row["failed"]) == (900, 0)
    assert inn.values("got") == list(range(900))
    balanced(a)


@pytest.mark.promise("P3")
@pytest.mark.parametrize("how", ["swallow", pytest.param("down", marks=pytest.mark.sweep)])
def test_node_is_not_taken_for_dead_when_the_rail_of_the_control_connection_goes(ground, how):
    a, b = ground.both()
    all_up(a, b)
    wait_for("the lease", lambda: states(a) == {"serving"})
    getattr(ground.rails[0], how)()
    seen = watched((a, b), LEASE_AND_MORE_S)
    assert set.union(*seen) <= {"serving", "suspect"}, "a black hole gives no link event"
    assert seen[-1] == {"serving"}
    assert not [e for e in b.call("status")["events"] if e["event"] == "lease ended; joining again"]
    assert wait_for("control over the other rail", lambda: up(b) == [1] and a.call("topology"))


@pytest.mark.promise("P1", "P3")
def test_all_interfaces_down_for_longer_than_a_lease_and_one_back_goes_on_where_it_was(ground):
    """The registry knows that it is deaf: its own interfaces are down. A node is judged a lease later."""
    a, b = ground.both()
    all_up(a, b)
    inn = ground.cluster.worker(b, "consume", "in", **LARGE)
    inn.wait_for("ready")
    out = ground.cluster.worker(a, "produce", "out", count=400, interval_s=0.01, **LARGE)
    inn.wait_for("got", 50)
    for rail in ground.rails:
        rail.down()
    seen = watched((a,), limits.LEASE_MS / 1000 + 0.4)
    assert seen[-1] == {"serving", "suspect"} and {"serving", "dead"} not in seen
    ground.rails[1].up()
    wait_for("the rail that is back", lambda: up(b) == [1])
    out.finish()
    assert settled(a, "far")["delivered"] == 400
    assert inn.values("got") == list(range(400))
    assert not events(b, "lease ended; joining again")
    balanced(a)


def test_node_with_one_interface_and_one_with_two_share_what_they_have(ground):
    a = ground.node("a", [rail.near_address for rail in ground.rails])
    b = ground.node("b", [ground.rails[0].far_address], a)
    all_up(a, b)  # b has an address in the network of each, whether it listens there or not
    assert [row["remote"] for row in rails(b)] == [r.near_address for r in ground.rails]


def test_node_of_one_address_has_one_rail(ground):
    a = ground.node("a", [ground.rails[0].near_address])
    b = ground.node("b", [rail.far_address for rail in ground.rails], a)
    all_up(a, b, count=1)


def test_address_that_does_not_answer_is_said_harms_nothing_and_is_used_when_it_does(ground):
    third = Rail(ground.bed, 2, "a", "b", 0)
    third.swallow()
    ground.rails.append(third)
    a, b = ground.both()
    wait_for("the two", lambda: up(b) == [0, 1])
    told = wait_for("the third told of", lambda: events(b, "rail not reached"))
    assert [e["more"]["rail"] for e in told] == [2]
    row = rails(b)[2]
    assert "does not answer" in row["last_error"] and row["dial"] == "dialling"
    assert states(a) == {"serving"}
    third.heal()
    all_up(a, b, count=3)
    assert [e["more"]["rail"] for e in events(b, "rail reached")] == [2]


@pytest.mark.promise("P9")
@pytest.mark.parametrize("side", [pytest.param("a", marks=pytest.mark.sweep), "b"])
def test_killed_daemon_is_back_with_both_rails(ground, side):
    nodes = dict(zip("ab", ground.both(), strict=True))
    all_up(*nodes.values())
    inn = ground.cluster.worker(nodes["b"], "consume", "in", **JOB)
    inn.wait_for("ready")
    out = ground.cluster.worker(nodes["a"], "produce", "out", count=600, interval_s=0.005, **JOB)
    inn.wait_for("got", 50)
    nodes[side].kill_daemon()
    all_up(*nodes.values())
    out.finish()
    wait_for("all", lambda: set(inn.values("got")) == set(range(600)))
    assert psutil.pid_exists(nodes[side].daemon_pid)
