"""What is read from arrivals: every figure of group `paths` on arrivals whose answer is known."""

from __future__ import annotations

import pytest

from bench.paths import timeline
from bench.paths.timeline import MS, Arrivals, Capacity, S

SIZE = 1_000_000


def evenly(count: int, every_ns: int, start: int = 0) -> list[tuple[int, int, int]]:
    """Return messages that arrive in a steady beat."""
    return [(start + (n + 1) * every_ns, start + n * every_ns, n) for n in range(count)]


def test_capacity_counts_each_step_for_its_time() -> None:
    capacity = Capacity(((0, 100.0), (1 * S, 10.0), (2 * S, 100.0)))
    assert capacity.between(0, 3 * S) == pytest.approx(210)
    assert capacity.between(S // 2, 3 * S // 2) == pytest.approx(55)


def test_the_end_of_a_transfer_waits_through_a_slow_step() -> None:
    capacity = Capacity(((0, 100.0), (1 * S, 0.0), (2 * S, 100.0)))
    assert capacity.end_of(S // 2, 50.0) == pytest.approx(1 * S)
    assert capacity.end_of(S // 2, 100.0) == pytest.approx(2.5 * S)


def test_a_network_that_ends_at_nothing_never_finishes() -> None:
    with pytest.raises(ValueError, match="never arrives"):
        Capacity(((0, 100.0), (1 * S, 0.0))).end_of(0, 200.0)


def test_bytes_of_a_message_arrive_evenly_since_the_one_before() -> None:
    arrivals = Arrivals(evenly(10, 10 * MS), SIZE, 0)
    assert arrivals.until(15 * MS) == pytest.approx(1.5 * SIZE)
    assert arrivals.between(5 * MS, 25 * MS) == pytest.approx(2 * SIZE)
    assert arrivals.rate() == pytest.approx(SIZE * 100)


def test_the_least_share_finds_the_worst_half_second() -> None:
    rows = [*evenly(100, 10 * MS), (2000 * MS, 0, 100)]
    rows += [(2000 * MS + 10 * MS * n, 0, 100 + n) for n in range(1, 100)]
    arrivals = Arrivals(rows, SIZE, 0)
    rate = Capacity(((0, SIZE * 100.0),))
    assert timeline.least_share(arrivals, rate, 0, 900 * MS) == pytest.approx(1.0)
    assert timeline.least_share(arrivals, rate, 0, 3 * S - 20 * MS) == pytest.approx(
        0.01, abs=0.005
    )


def test_a_gap_counts_from_where_one_looks() -> None:
    arrivals = Arrivals([*evenly(10, 10 * MS), (400 * MS, 0, 10)], SIZE, 0)
    assert arrivals.longest_gap(0, 400 * MS) == 300 * MS
    assert arrivals.longest_gap(0, 900 * MS) == 500 * MS
    assert arrivals.longest_gap(350 * MS, 390 * MS) == 40 * MS


def test_what_is_missing_and_what_came_twice_is_wrong() -> None:
    rows = [(1, 0, 0), (2, 0, 1), (3, 0, 1), (4, 0, 3)]
    assert Arrivals(rows, SIZE, 0).wrong(4) == 2
    assert Arrivals(rows[:2], SIZE, 0).wrong(2) == 0


def test_a_transfer_is_not_slowed_down_by_the_one_before_it() -> None:
    rows = [(100 * MS, 0, 0), (200 * MS, 0, 1), (450 * MS, 210 * MS, 2)]
    capacity = Capacity(((0, SIZE * 10.0),))
    assert timeline.slowdowns(Arrivals(rows, SIZE, 0), capacity) == pytest.approx([1.0, 1.0, 2.4])


def test_the_latest_transfer_is_measured_against_what_the_network_let_through() -> None:
    rows = [(100 * MS, 0, 0), (400 * MS, 100 * MS, 1)]
    capacity = Capacity(((0, SIZE * 10.0), (150 * MS, SIZE * 5.0)))
    assert timeline.latest(Arrivals(rows, SIZE, 0), capacity) == pytest.approx(150 * MS)


def test_a_rail_is_back_once_a_window_has_the_rate() -> None:
    rows = evenly(100, 10 * MS) + [(1000 * MS + 5 * MS * n, 0, 99 + n) for n in range(1, 200)]
    arrivals = Arrivals(rows, SIZE, 0)
    assert timeline.back_after(arrivals, 700 * MS, SIZE * 200.0) == 300 * MS
    assert timeline.back_after(arrivals, 700 * MS, SIZE * 400.0) >= 10 * S


def test_jain_is_one_for_equal_shares_and_one_over_n_for_one_taker() -> None:
    assert timeline.jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert timeline.jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
