"""Which link joins two nodes, when the one that accepts has rails of one, the other, or both."""

import pytest

from fabric.controlplane.node_paths import between
from fabric.paths.choice import Path
from fabric.registry.records import NodeRecord, RailRecord

pytestmark = pytest.mark.promise("P5")


def node(number: int, links: tuple[str, ...], rails: tuple[str, ...] = (), wanted=()) -> NodeRecord:
    addresses = tuple(RailRecord(host="h", port=n + 1, link=link) for n, link in enumerate(rails))
    return NodeRecord(
        number=number, name=f"n{number}", incarnation=1, links=links, links_wanted=wanted, rails=addresses
    )  # fmt: skip


BOTH = ("ucx", "tcp")


def test_without_a_rail_of_ucx_two_nodes_that_have_it_use_tcp_and_nothing_is_worse_than_it_could_be():
    path = between(node(2, BOTH), node(1, BOTH, ("tcp", "tcp")))
    assert path == Path("tcp", "tcp", "the best that both nodes offer")


def test_rails_of_both_links_are_used_side_by_side():
    path = between(node(2, BOTH), node(1, BOTH, ("tcp", "ucx+shm")))
    assert (path.taken, path.preferred) == ("tcp+ucx", "tcp+ucx")
    assert "measured" in path.reason and not path.is_downgrade


def test_only_the_rails_of_the_node_that_accepts_count():
    assert between(node(1, BOTH, ("tcp",)), node(2, BOTH, ("tcp", "ucx"))).taken == "tcp"
    assert between(node(1, BOTH, ("ucx",)), node(2, BOTH, ("tcp",))).taken == "ucx"


def test_node_that_lacks_ucx_makes_tcp_a_downgrade_where_the_other_has_a_rail_of_it():
    path = between(node(2, ("tcp",)), node(1, BOTH, ("tcp", "ucx")))
    assert path == Path("tcp", "ucx", "ucx is not there on node 'n2'")
    assert path.is_downgrade
