"""Ratios are formed within a round; a bar that misses has three attempts, and two of them have to hold."""

from __future__ import annotations

import pytest

from bench.figures import holds, percentile, ratio_of
from bench.rounds import Attempt
from bench.verdicts import FLOOR, OURS, Bar, Verdict, contenders

FIELDS = {
    "group",
    "name",
    "unit",
    "direction",
    "ours",
    "peers",
    "floor",
    "bar",
    "against",
    "required_peers",
    "missing_peers",
    "runs",
    "attempts",
    "holds",
}


def attempt(figure: str = "p50_us", rounds: int = 3, **series: list[float]) -> Attempt:
    values = {name: [{figure: value} for value in found] for name, found in series.items()}
    return Attempt(rounds, values)


def verdict(
    bar: Bar, *attempts: Attempt, configured: tuple[str, ...] = ("fast", "slow")
) -> Verdict:
    return Verdict("latency", "a row", bar, configured, list(attempts))


BEST = Bar("p50_us", 0.5, "peer:best")
HELD = {"ours": [4.0] * 3, "fast": [10.0] * 3, "slow": [100.0] * 3}
MISSED = {**HELD, "ours": [6.0] * 3}


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    """The machine is twice as slow in one round: the medians alone would say 0.5."""
    assert ratio_of([1.0, 8.0, 1.0], [4.0, 8.0, 2.0]) == 0.5
    assert ratio_of([1.0, 10.0, 3.0], [2.0, 5.0, 30.0]) == 0.5
    assert ratio_of([3.0, 1.0, 4.0], [1.0, 2.0, 2.0]) == 2.0
    assert ratio_of([1.0], [0.0]) == float("inf")


def test_the_better_side_of_a_bar_depends_on_the_direction() -> None:
    assert holds("lower", 0.5, 0.5) and not holds("lower", 0.51, 0.5)
    assert holds("higher", 2.0, 2.0) and not holds("higher", 1.99, 2.0)


def test_percentile_is_a_value_that_was_measured() -> None:
    values = list(range(100, 0, -1))
    assert percentile(values, 0.5) == 51
    assert percentile(values, 0.99) == 100
    assert percentile([7], 0.99) == 7


def test_the_best_peer_is_the_fastest_for_time_and_the_highest_for_rates() -> None:
    lower = verdict(BEST, attempt(**HELD))
    assert lower.against(lower.attempts[0]) == "fast"
    higher = verdict(Bar("k_per_s", 2.0, "peer:best"), attempt("k_per_s", **HELD))
    assert higher.against(higher.attempts[0]) == "slow"


def test_one_attempt_that_holds_is_enough() -> None:
    found = verdict(BEST, attempt(**HELD))
    assert found.is_kept and not found.wants_more
    assert found.fields()["holds"] is True and len(found.fields()["attempts"]) == 1


@pytest.mark.parametrize("further, kept", [((HELD, HELD), True), ((HELD, MISSED), False)])
def test_after_a_miss_two_of_three_have_to_hold(
    further: tuple[dict[str, list[float]], ...], kept: bool
) -> None:
    found = verdict(BEST, attempt(**MISSED))
    assert found.wants_more and not found.is_kept
    found.attempts += [attempt(rounds=9, **series) for series in further]
    fields = found.fields()
    assert found.is_kept is fields["holds"] is kept
    assert fields["runs"] == 3 + 9 + 9
    assert [each["holds"] for each in fields["attempts"]] == [False, *(s is HELD for s in further)]
    assert fields["ours"] == (4.0 if kept else 6.0)  # of the attempt whose ratio is in the middle


def test_the_report_has_exactly_these_fields() -> None:
    fields = verdict(
        Bar("p50_us", 0.5, "peer:fast", ("fast",)), attempt(**HELD, floor=[1.0] * 3)
    ).fields()
    assert set(fields) == FIELDS
    assert fields["peers"] == {"fast": 10.0, "slow": 100.0}
    assert (fields["ours"], fields["floor"], fields["bar"]) == (4.0, 1.0, 0.5)
    assert (fields["unit"], fields["direction"], fields["against"]) == ("µs", "lower", "peer:fast")
    assert fields["required_peers"] == ["fast"] and fields["missing_peers"] == []


def test_a_missing_required_peer_does_not_hold_whatever_the_ratio() -> None:
    bar = Bar("p50_us", 0.5, "peer:best", ("slow", "gone"))
    found = verdict(bar, attempt(**HELD), configured=("fast", "slow", "gone", "other"))
    assert found.held(found.attempts[0])
    assert found.fields()["missing_peers"] == ["gone", "other"]
    assert not found.is_kept and not found.wants_more
    assert verdict(BEST, attempt(**HELD), configured=("fast", "slow", "other")).is_kept


def test_without_ours_or_the_floor_nothing_holds() -> None:
    bar = Bar("p50_us", 1.3, FLOOR)
    absent = verdict(bar, attempt(**HELD))
    assert not absent.is_kept and not absent.wants_more
    ours = verdict(bar, attempt(fast=[1.0] * 3, floor=[1.0] * 3))
    assert not ours.is_kept and ours.wants_more
    assert ours.fields()["ours"] is None
    assert verdict(bar, attempt(ours=[1.3] * 3, floor=[1.0] * 3)).is_kept


def test_only_those_that_can_decide_run_again() -> None:
    found = verdict(BEST, attempt(**MISSED, near=[14.0] * 3), configured=("fast", "slow", "near"))
    assert contenders([found]) == {OURS, FLOOR, "fast", "near"}
    named = verdict(Bar("p50_us", 0.1, "peer:slow"), attempt(**MISSED))
    assert contenders([named]) == {OURS, FLOOR, "slow"}


def test_peers_that_sat_an_attempt_out_keep_their_figure() -> None:
    again = {name: series for name, series in HELD.items() if name != "slow"}
    found = verdict(BEST, attempt(**MISSED), attempt(**again), attempt(**again))
    assert found.is_kept and found.fields()["peers"] == {"fast": 10.0, "slow": 100.0}
