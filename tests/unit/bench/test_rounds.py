"""Rounds turn their order, warm-up is thrown away, and a contender that fails is out while the others go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from bench.rounds import (
    FAILURES_MAX,
    Amount,
    Contender,
    Contest,
    Pairs,
    count_for,
    fit,
    verification,
)
from bench.sides import FREE, Pair, Placement, Subject, SubjectFailed

TRIP = {"run": "round_trips", "size": 64}
TRIP_NS = {"a": 1_000, "b": 4_000}
CALLS = frozenset({"send", "send_array"})


class FakePair:
    """Round trips take as long as TRIP_NS says; every order is noted."""

    def __init__(self, name: str, log: list[Any], can: frozenset[str] = CALLS) -> None:
        self.name, self.log, self.can = name, log, can

    def order(self, order: Mapping[str, Any], deadline_s: float) -> tuple[Any, Any]:
        if order["run"] == "verify":
            self.log.append(("verify", self.name))
            return {"crc": [1]}, {"crc": [2 if self.name == "corrupt" else 1]}
        self.log.append(self.name)
        if self.name == "failing" and self.log.count(self.name) > 2:
            raise SubjectFailed("failing: the far half ended")
        return {"ns": [TRIP_NS.get(self.name, 500)] * order["count"], "cpu_ns": 10}, {"cpu_ns": 30}

    def stop(self) -> None:
        self.log.append(("stop", self.name))


def pairs_of(log: list[Any]) -> Pairs:
    def start(subject: Subject, placement: Placement) -> FakePair:
        if subject.name == "absent":
            log.append("start absent")
            raise SubjectFailed("absent: not installed")
        return FakePair(subject.name, log)

    return Pairs(FREE, start)


def contenders(*names: str) -> list[tuple[str, Contender]]:
    return [(name, Contender(Subject(name, "none"))) for name in names]


def contest(log: list[Any]) -> Contest:
    return Contest(pairs_of(log), TRIP, Amount(1.0, 10, 10))


def test_order_turns_round_each_time_and_warm_up_is_not_in_the_figures() -> None:
    log: list[Any] = []
    attempt = contest(log).attempt(contenders("a", "b", "c"), 3)
    assert log[:6] == [("verify", "a"), "a", ("verify", "b"), "b", ("verify", "c"), "c"]
    assert log[6:] == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]
    assert {name: len(rounds) for name, rounds in attempt.values.items()} == {
        "a": 3,
        "b": 3,
        "c": 3,
    }


def test_figures_have_the_units_of_their_names() -> None:
    attempt = contest([]).attempt(contenders("a"), 1)
    assert attempt.values["a"] == [{"p50_us": 1.0, "p99_us": 1.0, "cpu_us": 0.002}]


def test_the_count_fills_the_time_within_its_bounds() -> None:
    counts: list[int] = []

    class Counting(FakePair):
        def order(self, order: Mapping[str, Any], deadline_s: float) -> tuple[Any, Any]:
            if order["run"] != "verify":
                counts.append(order["count"])
            return super().order(order, deadline_s)

    pairs = Pairs(FREE, lambda subject, placement: Counting(subject.name, []))
    Contest(pairs, TRIP, Amount(0.001, 10, 5_000)).attempt(contenders("a"), 1)
    assert counts == [10, 1_000]  # a thousand of 1 µs each fill a millisecond
    assert count_for(Amount(1.0, 10, 50), 10, 1_000, TRIP) == 50
    assert count_for(Amount(1.0, 10, 50), 10, 10**12, TRIP) == 10
    assert count_for(Amount(1.0, 10, 1_000), 10, 10**8, {"run": "one_way", "batch": 64}) == 128


def test_a_contender_that_fails_is_out_and_the_others_go_on() -> None:
    attempt = contest([]).attempt(contenders("a", "failing", "b"), 3)
    assert attempt.failed == {"failing": "failing: the far half ended"}
    assert sorted(attempt.values) == ["a", "b"]
    assert len(attempt.values["a"]) == len(attempt.values["b"]) == 3
    assert attempt.series("failing", "p50_us") is None


def test_without_the_essential_one_nothing_runs() -> None:
    log: list[Any] = []
    attempt = contest(log).attempt(contenders("absent", "a"), 3, essential="absent")
    assert attempt.failed == {"absent": "absent: not installed"} and "a" not in log
    assert sorted(contest([]).attempt(contenders("a", "absent"), 1, essential="a").values) == ["a"]


def test_wrong_contents_put_a_contender_out_before_anything_is_timed() -> None:
    log: list[Any] = []
    attempt = contest(log).attempt(contenders("corrupt", "a"), 2)
    assert "what arrived is not what was sent" in attempt.failed["corrupt"]
    assert "corrupt" not in log and ("stop", "corrupt") in log


def test_what_does_not_start_is_tried_once_more_and_then_given_up() -> None:
    log: list[Any] = []
    pairs = pairs_of(log)
    for _ in range(FAILURES_MAX + 2):
        attempt = Contest(pairs, TRIP, Amount(1.0, 1, 1)).attempt(contenders("absent", "a"), 1)
        assert attempt.failed == {"absent": "absent: not installed"}
    assert log.count("start absent") == FAILURES_MAX


def test_what_fails_again_and_again_is_given_up() -> None:
    starts: list[str] = []

    class Broken(FakePair):
        def order(self, order: Mapping[str, Any], deadline_s: float) -> tuple[Any, Any]:
            raise SubjectFailed("broken: gave no answer")

    def start(subject: Subject, placement: Placement) -> FakePair:
        starts.append(subject.name)
        return Broken(subject.name, [])

    pairs = Pairs(FREE, start)
    for _ in range(FAILURES_MAX + 2):
        Contest(pairs, TRIP, None).attempt(contenders("broken"), 1)
    assert len(starts) == FAILURES_MAX


def test_pairs_live_until_no_row_needs_them() -> None:
    log: list[Any] = []
    pairs = pairs_of(log)
    a, b = Subject("a", "none"), Subject("b", "none")
    assert pairs.get(a) is pairs.get(a)
    pairs.get(b)
    pairs.keep([b])
    assert log == [("stop", "a")]
    pairs.close()
    assert log == [("stop", "a"), ("stop", "b")]


Can = frozenset[str]
FITTING: list[tuple[Callable[[], Any], Any]] = [
    (lambda: fit(Can({"send"}), {"run": "one_way", "batch": 64}), {"run": "one_way"}),
    (lambda: fit(Can({"send", "send_many"}), {"run": "one_way", "batch": 4})["batch"], 4),  # type: ignore[index]
    (lambda: fit(Can({"send", "send_array"}), {"run": "loaned"}), {"run": "bulk"}),
    (lambda: fit(Can({"loan"}), {"run": "loaned"}), {"run": "loaned"}),
    (lambda: fit(Can({"bulk"}), {"run": "loaned"}), {"run": "bulk"}),
    (lambda: fit(Can({"send"}), {"run": "hand_over"}), None),
    (lambda: fit(Can({"send"}), {"run": "typed"}), None),
    (lambda: fit(Can({"typed"}), {"run": "typed"}), {"run": "typed"}),
    (lambda: fit(Can({"broadcast"}), {"run": "broadcast"}), {"run": "broadcast"}),
]


@pytest.mark.parametrize("call, expected", FITTING)
def test_a_subject_does_the_work_in_its_own_best_way(
    call: Callable[[], Any], expected: Any
) -> None:
    assert call() == expected


def test_every_way_of_carrying_contents_is_verified() -> None:
    for run in ("round_trips", "one_way"):
        assert verification({"run": run, "size": 64})["run"] == "verify"  # type: ignore[index]
    bulk = verification({"run": "bulk", "size": 1 << 20})
    loan = verification({"run": "hand_over", "size": 256 << 20})
    assert bulk is not None and bulk["as_array"] and not bulk["loaned"]
    assert loan is not None and loan["loaned"] and loan["count"] == 1


def test_two_real_processes_and_a_corrupting_one() -> None:
    pairs = Pairs(FREE, Pair)
    module = "tests.unit.bench.fake_subject"
    entries = [
        ("right", Contender(Subject("right", module))),
        ("wrong", Contender(Subject("wrong", module, {"far": "corrupts"}))),
        ("wrong near", Contender(Subject("wrong near", module, {"near": "corrupts"}))),
    ]
    try:
        attempt = Contest(pairs, TRIP, Amount(0.01, 10, 50)).attempt(entries, 2)
    finally:
        pairs.close()
    assert sorted(attempt.values) == [
        "right",
        "wrong",
    ]  # what the far half confirms is not looked at
    assert "not what was sent" in attempt.failed["wrong near"]
