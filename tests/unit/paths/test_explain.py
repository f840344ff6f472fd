"""Where bytes would go, in shares and words, from the terms of the rails."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import limits
from fabric.paths import explain

pytestmark = pytest.mark.promise("P5")
MIB = 1 << 20
GBIT = 125_000_000


def row(rail, rate=GBIT, base_us=200, inflight=0, state="up", **more):
    return {
        "rail": rail, "state": state, "rate": rate, "rate_now": rate, "base_ns": base_us * 1000, "inflight": inflight,
        "window": 300_000, "interface": f"eth{rail}", **more,
    }  # fmt: skip


def test_score_is_base_plus_what_is_before_it_over_the_rate():
    assert explain.finish_ns(row(0, GBIT, 200, MIB), MIB) == 200_000 + 2 * MIB * 8
    said = explain.term(row(0, GBIT, 200, MIB), MIB)
    assert said == "200.0 µs + (1.0 MiB in flight + 1.0 MiB) / 125.0 MB/s = 17.0 ms"


def test_equal_rails_share_equally_and_end_together():
    shares, end = explain.fluid_split([row(0), row(1)], 64 * MIB)
    assert shares[0] == pytest.approx(32 * MIB, rel=1e-6) and sum(shares.values()) == 64 * MIB
    assert end == pytest.approx(32 * MIB * 8 + 200_000, rel=1e-6)


def test_busy_rail_that_ends_later_than_all_others_together_gets_nothing():
    shares, _ = explain.fluid_split([row(0), row(1, inflight=64 * MIB)], MIB)
    assert shares == {0: MIB}


@given(
    rows=st.lists(
        st.tuples(st.integers(1_000, 10**11), st.integers(1, 10**6), st.integers(0, 1 << 30)),
        min_size=1,
        max_size=limits.RAILS_PER_PEER_MAX,
    ),
    size=st.integers(1, 1 << 30),
)
def test_every_byte_has_a_rail_and_no_rail_ends_after_the_end(rows, size):
    rails = [row(n, rate, base, inflight) for n, (rate, base, inflight) in enumerate(rows)]
    shares, end = explain.fluid_split(rails, size)
    assert sum(shares.values()) == size and all(part >= 0 for part in shares.values())
    for rail in rails:
        part = shares.get(rail["rail"], 0)
        if part > len(rails):  # less than that is rounding
            assert (
                explain.finish_ns(rail, part) <= end * 1.001 + len(rails) * 1e9 / rail["rate"] + 2
            )


def test_words_name_the_rails_their_shares_and_the_time():
    rows = [row(0), row(1, GBIT // 10)]
    shares, end = explain.fluid_split(rows, 64 * MIB)
    (said,) = explain.words(rows, 64 * MIB, "bulk", 0, shares, end)
    assert said.startswith("64.0 MiB of class bulk go in chunks")
    assert "rail 0 (eth0) 91 %, rail 1 (eth1) 9 %; all delivered in 488" in said


def test_small_message_goes_whole_over_the_lowest_latency_that_is_named_beside_the_others():
    said = explain.words([row(0, base_us=300), row(1, base_us=90)], 64, "token", 1, {1: 64}, 1)
    assert "goes whole over rail 1 (eth1)" in said[0]
    assert "(base latency 90.0 µs, beside rail 0 (eth0) 300.0 µs)" in said[0]
    assert len(said) == 1, "a rail that is up is not left out of what goes whole"


def test_rail_that_is_not_up_says_why_it_gets_nothing():
    rows = [row(0), row(1, state="down", last_error="interface eth1 is gone")]
    said = explain.words(rows, MIB, "bulk", 0, {0: MIB}, 10**7)
    assert (
        said[1]
        == "Rail 1 (eth1) gets nothing: down: it has no connection (interface eth1 is gone)."
    )


def test_rail_that_adds_nothing_gets_no_chunks_and_says_so():
    reason = "adds nothing (without it 125.0 MB/s, with it 96.2 MB/s)"
    rows = [row(0), row(1, left_out=reason)]
    assert [found["rail"] for found in explain.carrying(rows)] == [0]
    said = explain.words(rows, MIB, "bulk", 0, {0: MIB}, 10**7)
    assert said[1] == f"Rail 1 (eth1) gets nothing: {reason}."
    said = explain.words(rows, 64, "token", 1, {1: 64}, 1)
    assert len(said) == 1, "it may take what goes whole"


def test_rail_that_adds_nothing_is_used_where_it_is_the_only_one():
    rows = [row(0, state="down"), row(1, left_out="adds nothing (…)")]
    assert [found["rail"] for found in explain.carrying(rows)] == [1]


def test_pin_to_rails_that_are_all_down_says_that_it_waits():
    rows = [row(0), row(1, state="down")]
    assert explain.is_waiting(rows, (1,)) and not explain.is_waiting(rows, (0, 1))
    assert not explain.is_waiting(rows, ())
    (said,) = explain.words(rows, MIB, "bulk", None, {}, 0, (1,))
    assert "pinned to rail 1, and none of it is up" in said and "It waits until" in said


def test_record_goes_over_another_rail_while_no_pinned_one_is_up():
    said = explain.words([row(0), row(1, state="down")], 64, "token", 0, {0: 64}, 1, (1,))
    assert "what goes in chunks waits, records go on over another" in said[0]
    assert "goes whole over rail 0 (eth0)" in said[1]


def test_rail_outside_a_pin_is_said_to_be_outside():
    said = explain.words([row(0), row(1)], MIB, "bulk", 1, {1: MIB}, 10**7, (1,))
    assert said[0] == "Traffic to this node is pinned to rail 1; other rails are not asked."
    assert said[-1] == "Rail 0 (eth0) gets nothing: not among the pinned (1)."


def test_nodes_without_any_rail_wait():
    assert explain.words([], MIB, "bulk", None, {}, 0) == [
        "There is no rail to this node: it waits until one is connected."
    ]


def test_mask_has_a_bit_a_rail():
    assert explain.mask_of((0, 2, 2)) == 5 and explain.mask_of(()) == 0
