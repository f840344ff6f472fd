"""The figures are formed as said: within a round first, alternating order, warm-up thrown away."""

from __future__ import annotations

import pytest

from bench.harness import Placement, Sample, Series, interleave, percentile, ratios


class FakeSubject:
    """Takes as long as it is told; notes when it ran."""

    def __init__(self, name: str, trip_ns: int, log: list[str]) -> None:
        self.name = name
        self._trip_ns = trip_ns
        self._log = log

    def start(self, placement: Placement) -> None:
        self._log.append(f"start {self.name}")

    def round_trips(self, count: int) -> list[int]:
        self._log.append(self.name)
        return [self._trip_ns] * count

    def one_way(self, count: int) -> int:
        return self._trip_ns * count

    def stop(self) -> None:
        self._log.append(f"stop {self.name}")


def run(log: list[str], rounds: int, warm_up: int) -> list[Series]:
    subjects = [FakeSubject("a", 1000, log), FakeSubject("b", 4000, log)]
    return interleave(
        subjects,
        Placement("free"),
        rounds=rounds,
        warm_up=warm_up,
        trips=10,
        messages=100,
        report=lambda text: None,
    )


def test_order_turns_round_each_time() -> None:
    log: list[str] = []
    run(log, rounds=2, warm_up=1)
    assert log == ["start a", "start b", "a", "b", "b", "a", "a", "b", "stop b", "stop a"]


def test_warm_up_rounds_are_not_in_the_figures() -> None:
    assert [len(series.samples) for series in run([], rounds=3, warm_up=2)] == [3, 3]


def test_rate_and_latency_have_the_units_of_their_names() -> None:
    ours, theirs = run([], rounds=1, warm_up=0)
    assert ours.samples == [Sample(rtt_us_p50=1.0, rtt_us_p99=1.0, rate_k_per_s=1000.0)]
    assert ratios(ours, theirs, "rate_k_per_s") == [4.0]


def test_a_subject_that_fails_still_stops_the_others() -> None:
    log: list[str] = []

    class Failing(FakeSubject):
        def round_trips(self, count: int) -> list[int]:
            raise RuntimeError("no answer")

    subjects = [FakeSubject("a", 1, log), Failing("b", 1, log)]
    with pytest.raises(RuntimeError, match="no answer"):
        interleave(
            subjects, Placement("free"), rounds=1, warm_up=0, trips=1, messages=1, report=log.append
        )
    assert log[-2:] == ["stop b", "stop a"]


def test_percentile_is_a_value_that_was_measured() -> None:
    values = list(range(100, 0, -1))
    assert percentile(values, 0.5) == 51
    assert percentile(values, 0.99) == 100
    assert percentile([7], 0.99) == 7
