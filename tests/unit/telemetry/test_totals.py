"""Totals of ledgers that come, go, are torn and are archived twice: they only grow, and are right in the end."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fabric.telemetry.samples import LedgerSample
from fabric.telemetry.totals import Totals


def ledger(endpoint, counts, accepted=0, channel=1, size=0):
    return LedgerSample(endpoint, channel, accepted, size, 0, 0, 0, counts)


def test_growth_is_told_once_by_sender_end_and_reason():
    totals = Totals()
    assert [g.messages for g in totals.take([ledger(7, {(2, 1): 5}, accepted=9)])] == [5]
    assert totals.take([ledger(7, {(2, 1): 5}, accepted=9)]) == []
    (growth,) = totals.take([ledger(7, {(2, 1): 8}, accepted=12)])
    assert growth == (1, 7, 2, 1, 3)
    assert totals.ended == {(1, 2, 1): 8}
    assert totals.accepted == {1: 12}


def test_final_counts_add_what_no_look_had_seen_and_a_repeat_adds_nothing():
    totals = Totals()
    totals.take([ledger(7, {(1, 0): 5})])
    final = ledger(7, {(1, 0): 9, (3, 6): 2})
    totals.take([final])
    totals.take([])
    assert totals.take([final]) == []
    assert totals.ended == {(1, 1, 0): 9, (1, 3, 6): 2}


def test_channel_that_is_forgotten_leaves_no_count_and_the_others_theirs():
    totals = Totals()
    totals.take(
        [ledger(7, {(1, 0): 5}, 6, channel=1, size=9), ledger(8, {(1, 0): 3}, 4, channel=2)]
    )
    totals.forget({1, 99})
    assert (totals.ended, totals.accepted) == ({(2, 1, 0): 3}, {2: 4})
    assert 1 not in totals.delivered_bytes
    assert [g.messages for g in totals.take([ledger(8, {(1, 0): 4}, 5, channel=2)])] == [1]


def test_a_torn_look_never_makes_a_counter_fall():
    totals = Totals()
    totals.take([ledger(7, {(1, 0): 10}, accepted=20, size=100)])
    totals.take([ledger(7, {(1, 0): 8}, accepted=19, size=90)])
    assert totals.ended == {(1, 1, 0): 10}
    totals.take([ledger(7, {(1, 0): 11}, accepted=21, size=110)])
    assert (totals.ended, totals.accepted, totals.delivered_bytes) == (
        {(1, 1, 0): 11},
        {1: 21},
        {1: 110},
    )


STEPS = st.lists(
    st.tuples(
        st.integers(1, 5),
        st.sampled_from([(1, 0), (2, 1), (3, 6)]),
        st.integers(0, 50),
        st.booleans(),
    ),
    max_size=60,
)


@given(STEPS)
def test_totals_are_the_sums_of_the_last_counts_and_growth_adds_up_to_them(steps):
    totals, true, told = Totals(), {}, Counter()
    for endpoint, key, more, is_seen in steps:
        counts = true.setdefault(endpoint, {})
        counts[key] = counts.get(key, 0) + more
        if is_seen:
            for growth in totals.take([ledger(endpoint, dict(counts), sum(counts.values()))]):
                told[growth.end, growth.reason] += growth.messages
    for endpoint, counts in true.items():  # every one is archived in the end
        for growth in totals.take([ledger(endpoint, counts, sum(counts.values()))]):
            told[growth.end, growth.reason] += growth.messages
    sums = Counter()
    for counts in true.values():
        sums.update(counts)
    assert told == +sums
    assert {(end, reason): n for (_, end, reason), n in totals.ended.items()} == +sums
    assert totals.accepted[1] == sum(sums.values())
