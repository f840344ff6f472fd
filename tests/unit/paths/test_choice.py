"""Which link joins two nodes, which would be preferred, and the reason that is recorded."""

import pytest

from fabric.paths.choice import Ends, Path, available_links, choose

pytestmark = pytest.mark.promise("P5")


def test_best_link_that_both_offer_is_taken_and_preferred():
    both = ("ucx", "tcp")
    path = choose(Ends("a", both), Ends("b", both))
    assert path == Path("ucx", "ucx", "the best that both nodes offer")
    assert not path.is_downgrade


def test_link_that_only_one_node_has_is_preferred_and_its_lack_named():
    path = choose(Ends("a", ("ucx", "tcp")), Ends("b", ("tcp",)))
    assert path == Path("tcp", "ucx", "ucx is not there on node 'b'")
    assert path.is_downgrade


def test_wanted_link_that_nobody_has_is_a_downgrade_that_names_both():
    path = choose(Ends("a", ("tcp",), ("ucx", "tcp")), Ends("b", ("tcp",)))
    assert path == Path("tcp", "ucx", "ucx is not there on node 'a' and node 'b'")


def test_wish_goes_before_what_is_better():
    both = ("ucx", "tcp")
    assert choose(Ends("a", both, ("tcp",)), Ends("b", both)) == Path("tcp", "tcp", "wanted")
    assert choose(Ends("a", both), Ends("b", both, ("tcp",))) == Path("tcp", "tcp", "wanted")


def test_nodes_without_a_common_link_have_no_path():
    path = choose(Ends("a", ("ucx",)), Ends("b", ("tcp",)))
    assert (path.taken, path.is_downgrade) == ("", True)
    assert "no link in common" in path.reason


def test_tcp_is_always_there():
    assert available_links()[-1] == "tcp"
