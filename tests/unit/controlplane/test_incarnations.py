"""Incarnations are unique, whatever the wall clock does."""

from __future__ import annotations

import pytest

from fabric import limits
from fabric.controlplane.incarnations import STEP_NS, Reserved, next_incarnation
from fabric.registry.cluster import Registry
from fabric.registry.records import NodeRecord
from fabric.registry.store import RegistryStore

HOUR_NS = 3600 * 10**9
NOW_NS = 1_800_000_000 * 10**9


@pytest.mark.parametrize("jump_ns", [-HOUR_NS, 0, HOUR_NS])
def test_incarnation_after_a_clock_jump_is_new_and_fits_its_field(tmp_path, jump_ns):
    first = next_incarnation(tmp_path, lambda: NOW_NS)
    second = next_incarnation(tmp_path, lambda: NOW_NS + jump_ns)
    assert first < second < 1 << 63


def test_many_incarnations_of_a_clock_that_stands_still_differ(tmp_path):
    assert len({next_incarnation(tmp_path, lambda: NOW_NS) for _ in range(100)}) == 100


@pytest.mark.parametrize("jump_ns", [-HOUR_NS, 0, 1])
def test_reserved_incarnations_differ_from_all_others_and_from_those_of_the_next_daemon(
    tmp_path, jump_ns
):
    reserved = Reserved(tmp_path, lambda: NOW_NS)
    mine = [reserved.take() for _ in range(100)]
    own = [next_incarnation(tmp_path, lambda: NOW_NS + jump_ns) for _ in range(3)]
    successor = Reserved(tmp_path, lambda: NOW_NS + jump_ns)
    found = [*mine, *own, *(successor.take() for _ in range(100))]
    assert sorted(set(found)) == found


def test_reserved_incarnations_go_on_behind_the_end_of_a_block(tmp_path):
    reserved = Reserved(tmp_path, lambda: NOW_NS)
    first = reserved.take()
    reserved._next = reserved._until
    assert reserved.take() > first + STEP_NS - 1


def test_damaged_or_unwritable_file_is_no_reason_not_to_live(tmp_path):
    (tmp_path / "incarnation").write_text("not a number")
    assert next_incarnation(tmp_path, lambda: NOW_NS) == NOW_NS
    assert next_incarnation(tmp_path / "absent", lambda: NOW_NS) == NOW_NS


@pytest.mark.promise("P3")
def test_node_whose_clock_jumped_back_an_hour_joins_again_and_its_old_life_is_fenced(tmp_path):
    registry = Registry(RegistryStore(tmp_path / "r.db"), 0.0)
    old = NodeRecord(number=0, name="b", incarnation=next_incarnation(tmp_path, lambda: NOW_NS))
    number = registry.join(old, (), 0.0)
    registry.tick(limits.LEASE_MS / 1000)
    back = next_incarnation(tmp_path, lambda: NOW_NS - HOUR_NS)
    new = NodeRecord(number=0, name="b", incarnation=back)
    assert registry.join(new, (), 10.0) == number
    registry.lease(number, back, 10.1)
    with pytest.raises(Exception, match="join again"):
        registry.lease(number, old.incarnation, 10.1)
