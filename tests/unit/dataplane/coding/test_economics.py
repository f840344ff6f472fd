"""The cost model of codecs: its formula, what it refuses to guess, and that a choice of its own never loses much."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.dataplane.coding.economics import (
    MARGIN,
    PROBE_PAUSE_S,
    PROBE_SHARE,
    SMALL_BYTES,
    Economics,
    Situation,
    Speed,
)

MB = 1 << 20


def measured(encode: float, decode: float, ratio: float, field: str = "k") -> Economics:
    economics = Economics()
    economics.encoded(field, 8 * MB, int(8 * MB * ratio), 8 * MB / encode)
    economics.decode.add(8 * MB, 8 * MB / decode)
    return economics


def at(size: int, rate: float, queued: int = 0, left_s: float = math.inf) -> Situation:
    return Situation(size, queued, rate, left_s)


def test_a_full_pipeline_costs_what_its_slowest_stage_costs() -> None:
    economics = measured(500e6, 1500e6, 0.7)
    raw_s, coded_s = economics.predict(at(10 * MB, 118e6, queued=10 * MB), 0.7)
    assert raw_s == pytest.approx(10 * MB / 118e6)
    assert coded_s == pytest.approx(7 * MB / 118e6)


def test_a_message_alone_pays_every_stage() -> None:
    economics = measured(500e6, 1500e6, 0.7)
    _, coded_s = economics.predict(at(10 * MB, 118e6), 0.7)
    expected = 10 * MB / 500e6 + 7 * MB / 118e6 + 10 * MB / 1500e6
    assert coded_s == pytest.approx(expected, rel=1e-6)


def test_a_codec_pays_behind_a_queue_on_a_slow_path_and_not_on_a_fast_one() -> None:
    economics = measured(500e6, 1500e6, 0.68)
    slow = economics.decide({"k": 4 * MB}, at(4 * MB, 118e6, queued=8 * MB))
    fast = economics.decide({"k": 4 * MB}, at(4 * MB, 1.2e9, queued=8 * MB))
    assert (slow.coded, slow.reason) == (True, "it pays")
    assert (fast.coded, fast.reason) == (False, "the path is faster than the codec")


@pytest.mark.parametrize(
    ("economics", "situation", "reason"),
    [
        (measured(5e8, 1e9, 0.5), at(SMALL_BYTES - 1, 1e8), "below 32 KiB"),
        (measured(5e8, 1e9, 0.5), at(MB, 0.0), "the path is not measured yet"),
        (Economics(), at(MB, 1e8), "the codec is not measured yet"),
        (measured(5e8, 1e9, 0.99), at(MB, 1e8), "it does not shrink"),
        (measured(5e8, 1e9, 0.96), at(MB, 1e8, queued=MB), "it wins too little"),
    ],
)
def test_what_is_not_known_or_does_not_win_goes_raw(
    economics: Economics, situation: Situation, reason: str
) -> None:
    terms = economics.decide({"k": situation.size}, situation)
    assert (terms.coded, terms.reason) == (False, reason)


def test_a_long_queue_hides_no_win() -> None:
    economics = measured(500e6, 1500e6, 0.68)
    assert economics.decide({"k": MB}, at(MB, 118e6, queued=500 * MB)).coded


def test_a_deadline_that_only_one_way_meets_decides() -> None:
    economics = measured(300e6, 1e9, 0.9)
    terms = economics.decide({"k": 8 * MB}, at(8 * MB, 100e6, queued=8 * MB, left_s=0.162))
    assert (terms.coded, terms.reason) == (True, "only encoded it meets its deadline")
    terms = economics.decide({"k": 8 * MB}, at(8 * MB, 100e6, left_s=0.085))
    assert (terms.coded, terms.reason) == (False, "only raw it meets its deadline")


def test_a_field_that_does_not_shrink_is_left_out_of_the_others() -> None:
    economics = measured(500e6, 1500e6, 0.6)
    economics.encoded("noise", 8 * MB, 8 * MB, 8 * MB / 500e6)
    assert economics.shrinks("k") and not economics.shrinks("noise")
    assert economics.ratio_of({"k": MB, "noise": MB}) == pytest.approx(0.6)


def test_probes_are_seldom_cheap_and_rarer_while_the_codec_loses() -> None:
    economics = Economics()
    assert economics.wants_probe(0.0, 1e9)
    for _ in range(8):
        economics.probed(0.0, 0.001, 1e9, is_losing=True)
    assert not economics.wants_probe(PROBE_PAUSE_S[1] - 0.1, 1e9)
    assert economics.wants_probe(PROBE_PAUSE_S[1], 1e9)
    assert economics.wants_probe(1.0, 1e8), "the path became ten times slower"
    economics.probed(0.0, 0.5, 1e9, is_losing=False)
    assert not economics.wants_probe(0.5 / PROBE_SHARE - 1, 1e9), "a dear probe waits for its share"


def test_a_long_observation_weighs_more_than_a_short_one() -> None:
    speed = Speed()
    speed.add(100 * MB, 1.0)
    speed.add(1000, 0.001)
    assert speed.bytes_per_s == pytest.approx(100 * MB, rel=0.35)
    speed.add(10 * MB, 1.0)
    assert speed.bytes_per_s < 15 * MB


rates = st.floats(1e6, 1e11)


@given(
    size=st.integers(SMALL_BYTES, 1 << 30),
    queued=st.integers(0, 1 << 31),
    path=rates,
    encode=rates,
    decode=rates,
    ratio=st.floats(0.01, 1.5),
)
def test_what_is_chosen_is_never_predicted_slower_than_raw(
    size: int, queued: int, path: float, encode: float, decode: float, ratio: float
) -> None:
    terms = measured(encode, decode, ratio).decide({"k": size}, at(size, path, queued))
    if terms.coded:
        assert terms.coded_s <= MARGIN * terms.raw_s
        assert terms.ratio < 1


@given(
    size=st.integers(SMALL_BYTES, 1 << 30), path=rates, encode=rates, decode=rates,
    ratio=st.floats(0.01, 0.96), factor=st.floats(1.0, 100.0),
)  # fmt: skip
def test_a_slower_path_never_speaks_against_a_codec(
    size: int, path: float, encode: float, decode: float, ratio: float, factor: float
) -> None:
    economics = measured(encode, decode, ratio)
    if economics.decide({"k": size}, at(size, path)).coded:
        assert economics.decide({"k": size}, at(size, path / factor)).coded
