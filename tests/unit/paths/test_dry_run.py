"""A dry run asks the scheduler itself, and agrees with what rails of those rates can do; no byte is lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric import _native
from fabric.paths import dry_run, explain

pytestmark = pytest.mark.promise("P5")
MIB = 1 << 20
GBIT = 125_000_000


def row(rail, rate=GBIT, base_us=200, inflight=0):
    return {
        "rail": rail,
        "rate": rate,
        "rate_now": rate,
        "base_ns": base_us * 1000,
        "inflight": inflight,
    }


def split(rows, size, pinned=()):
    return dry_run.split(_native.RailScheduler(), rows, size, pinned)


def test_equal_rails_carry_about_half_each_in_half_the_time():
    found = split([row(0), row(1)], 64 * MIB)
    assert sum(found.shares.values()) == 64 * MIB
    assert found.shares[0] == pytest.approx(32 * MIB, rel=0.02)
    assert found.end_ns == pytest.approx(32 * MIB * 8, rel=0.02)


def test_slow_rail_carries_its_part_and_does_not_hold_up_the_end():
    found = split([row(0), row(1, GBIT // 10)], 64 * MIB)
    assert found.shares[1] == pytest.approx(64 * MIB / 11, rel=0.1)
    assert found.end_ns <= 1.05 * 64 * MIB * 1e9 / (GBIT * 1.1)


def test_what_is_in_flight_on_a_rail_sends_more_over_the_other():
    found = split([row(0, inflight=8 * MIB), row(1)], 16 * MIB)
    assert found.shares[1] > 10 * MIB


def test_pinned_rail_carries_everything():
    assert split([row(0), row(1)], MIB, (1,)).shares == {0: 0, 1: MIB}


def test_without_a_rail_there_is_no_split():
    with pytest.raises(ValueError, match="no rail takes anything"):
        split([], MIB)


@settings(max_examples=25, deadline=None)
@given(
    rates=st.lists(st.integers(1_000_000, 12_500_000_000), min_size=1, max_size=4),
    size=st.integers(1, 32 * MIB),
)
def test_scheduler_carries_every_byte_and_ends_near_what_the_rails_can_do(rates, size):
    rows = [row(number, rate) for number, rate in enumerate(rates)]
    found = split(rows, size)
    assert sum(found.shares.values()) == size
    _, ideal = explain.fluid_split(rows, size)
    assert found.end_ns <= 1.35 * ideal + 20_000_000
