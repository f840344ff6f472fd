"""A rail of UCX over an interface of its own that goes, or swallows everything, beside a tcp rail over another one."""

from __future__ import annotations

import pytest

from tests.integration.kill_nodes import balanced, settled, wait_for
from tests.integration.test_rails import LARGE, Ground, ground, rails, up

__all__ = ["ground"]
MBIT = 200
pytestmark = [pytest.mark.netns, pytest.mark.needs_ucx, pytest.mark.promise("P1", "P3", "P4")]


def both(ground: Ground):
    """Start a node in each namespace: rail 0 of tcp, rail 1 of UCX's tcp."""
    plain, other = ground.rails
    for rail in ground.rails:
        rail.shape(MBIT)  # so that one of them is not enough
    a = ground.node("a", [plain.near_address, f"ucx+tcp:{other.near_address}:0"])
    b = ground.node("b", [plain.far_address, f"ucx+tcp:{other.far_address}:0"], a)
    for node in (a, b):
        wait_for(f"both rails of {node.name}", lambda node=node: up(node) == [0, 1])
    return a, b


def test_each_connection_keeps_to_the_interface_of_its_rail(ground):
    a, b = both(ground)
    for node in (a, b):
        assert [row["link"] for row in rails(node)] == ["tcp", "ucx+tcp"]
        assert [row["interface"] for row in rails(node)] == [r.device for r in ground.rails]


@pytest.mark.parametrize("silent", [False, True], ids=["down", "a black hole"])
def test_messages_go_on_over_tcp_and_the_lost_ucx_rail_is_used_again(ground, silent):
    a, b = both(ground)
    lost = ground.rails[1]
    inn = ground.cluster.worker(b, "consume", "in", **LARGE)
    inn.wait_for("ready")
    out = ground.cluster.worker(a, "produce", "out", count=600, interval_s=0.005, **LARGE)
    inn.wait_for("got", 50)
    (lost.swallow if silent else lost.down)()
    wait_for("the loss to be seen", lambda: rails(a)[1]["state"] != "up")
    inn.wait_for("got", len(inn.values("got")) + 100)
    (lost.heal if silent else lost.up)()
    wait_for("the rail to be used again", lambda: up(a) == [0, 1] == up(b))
    before = rails(a)[1]["delivered"]
    wait_for("chunks on it", lambda: rails(a)[1]["delivered"] > before)
    inn.wait_for("got", 600)
    out.finish()
    assert sorted(set(inn.values("got"))) == [*range(600)]
    settled(a, "far")
    balanced(a)
