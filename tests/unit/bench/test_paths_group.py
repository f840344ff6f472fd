"""Rows of group `paths` are whole, and what cannot be measured here does not hold."""

from __future__ import annotations

import pytest

from bench.cases.paths import PATHS
from bench.figures import FIGURES
from bench.paths.play import LAYOUTS, NONE, RUNS, play, play_row
from bench.paths.stage import Schedule
from bench.rounds import Attempt, Contender
from bench.rows import Row


@pytest.mark.parametrize("row", PATHS, ids=lambda row: row.name)
def test_every_row_names_what_there_is(row: Row) -> None:
    floor = [row.floor] if isinstance(row.floor, Contender) else []
    for contender in (row.ours, *row.peers, *floor):
        assert {**row.order, **contender.order}["run"] in RUNS
    assert row.order["layout"] in (*LAYOUTS, NONE)
    assert {*row.figures, *(bar.figure for bar in row.bars)} <= set(FIGURES)
    assert row.bars


def test_names_of_rows_differ() -> None:
    assert len({row.name for row in PATHS}) == len(PATHS)


def test_where_there_can_be_no_namespaces_no_bar_holds_and_the_reason_is_told() -> None:
    row = next(row for row in PATHS if row.order["run"] == "lost")
    lines = play([row], lambda text: None, lambda line: None, reason="namespaces need root")
    assert not any(verdict.is_kept for verdict in lines[0].verdicts)
    assert set(lines[0].first.failed.values()) == {"namespaces need root"}
    fields = lines[0].verdicts[0].fields()
    assert fields["holds"] is False
    assert fields["attempts"][0]["failed"]["ours"] == "namespaces need root"


class Scripted:
    """A contest that gives out figures one attempt after the other."""

    def __init__(self, *figures: dict[str, float]) -> None:
        self._figures, self.asked = list(figures), 0

    def attempt(
        self, entries: list[tuple[str, Contender]], rounds: int, essential: str = ""
    ) -> Attempt:
        self.asked += 1
        return Attempt(rounds, {"ours": [self._figures.pop(0)] * rounds})


@pytest.mark.parametrize(("later", "holds"), [((40.0, 45.0), True), ((40.0, 60.0), False)])
def test_a_bar_that_misses_needs_two_of_three(later: tuple[float, float], holds: bool) -> None:
    row = next(row for row in PATHS if row.bars[0].figure == "gap_ms")
    values = [{"gap_ms": gap, "back_ms": 10.0, "wrong": 0.0} for gap in (70.0, *later)]
    contest = Scripted(*values)
    line = play_row(row, contest, True)  # type: ignore[arg-type]
    assert contest.asked == 3
    assert [verdict.is_kept for verdict in line.verdicts] == [holds, True, True]


def test_what_a_schedule_has_not_done_is_done_when_it_is_left() -> None:
    happened: list[str] = []
    with Schedule((0.0, lambda: happened.append("down")), (60.0, lambda: happened.append("up"))):
        pass
    assert happened == ["down", "up"]
