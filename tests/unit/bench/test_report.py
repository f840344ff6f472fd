"""A row becomes lines, lines become a table, a plot and the report; every bar of the table of promises is there."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import __main__ as command
from bench import plot, report
from bench.cases import GROUPS
from bench.cases.orders import SAMPLES
from bench.figures import FIGURES
from bench.match import Line, play
from bench.rounds import ROUNDS, ROUNDS_AGAIN, Amount, Contender, Pairs
from bench.rows import Row
from bench.sides import Placement, Subject, SubjectFailed, placements
from bench.verdicts import Bar

OURS, PEER, ABSENT = (Subject(name, "none") for name in ("ours", "peer", "absent"))


class FakePair:
    """Answers round trips in the nanoseconds given for its name."""

    can = frozenset({"send"})

    def __init__(self, trip_ns: int) -> None:
        self._trip_ns = trip_ns

    def order(self, order: Mapping[str, Any], deadline_s: float) -> tuple[Any, Any]:
        if order["run"] == "verify":
            return {"crc": []}, {"crc": []}
        return {"ns": [self._trip_ns] * order["count"], "cpu_ns": 0}, {"cpu_ns": 0}

    def stop(self) -> None:
        pass


def row(number: float = 0.5, against: str = "peer:best", **more: Any) -> Row:
    bars = (Bar("p50_us", number, against, ("peer",)),)
    peers = (Contender(PEER), Contender(ABSENT))
    order = {"run": "round_trips", "size": 64}
    given = {"bars": bars, "peers": peers, "amount": Amount(1.0, 4, 4), **more}
    return Row("latency", "a <row>", order, Contender(OURS), **given)


def lines(rows: list[Row], times: Mapping[str, int], again: bool = True) -> list[Line]:
    def start(placement: Placement) -> Pairs:
        def pair(subject: Subject, placement: Placement) -> FakePair:
            if subject.name not in times:
                raise SubjectFailed(f"{subject.name}: not installed")
            return FakePair(times[subject.name])

        return Pairs(placement, pair)

    done: list[Line] = []
    found = play(rows, lambda text: None, done.append, start, again)
    assert sorted(map(id, done)) == sorted(map(id, found))
    return found


def test_a_row_that_holds_has_one_attempt_and_one_that_misses_three() -> None:
    held, missed = lines([row(0.5), row(0.4)], {"ours": 1_000, "peer": 2_000})
    assert [each.rounds for each in held.verdicts[0].attempts] == [ROUNDS]
    again = missed.verdicts[0].attempts
    assert [each.rounds for each in again] == [ROUNDS, ROUNDS_AGAIN, ROUNDS_AGAIN]
    assert not missed.verdicts[0].is_kept and held.verdicts[0].is_kept


def test_a_latency_row_has_a_case_in_each_placement() -> None:
    found = lines([row(is_latency=True), row()], {"ours": 1_000, "peer": 2_000})
    names = [verdict.name for line in found for verdict in line.verdicts]
    assert names == [*(f"a <row>, {each.name}" for each in placements()), "a <row>"]


def test_whatever_interrupts_a_run_no_pair_stays_behind() -> None:
    stopped: list[str] = []

    class Noting(FakePair):
        def stop(self) -> None:
            stopped.append("stopped")

    class Interrupted(Noting):
        def order(self, order: Mapping[str, Any], deadline_s: float) -> tuple[Any, Any]:
            raise KeyboardInterrupt

    def start(placement: Placement) -> Pairs:
        kinds = {"ours": Noting, "peer": Interrupted}
        return Pairs(placement, lambda subject, placement: kinds[subject.name](1))

    with pytest.raises(KeyboardInterrupt):
        play([row(peers=(Contender(PEER),))], lambda text: None, lambda line: None, start)
    assert stopped == ["stopped", "stopped"]


def test_a_given_floor_is_held_against() -> None:
    bars = (Bar("p50_us", 1.0, "floor"),)
    for trip_ns, kept in ((1_000, True), (3_000, False)):
        (line,) = lines([row(bars=bars, floor=2.0)], {"ours": trip_ns, "peer": 1})
        assert line.verdicts[0].is_kept is kept and line.verdicts[0].floor() == 2.0


def test_a_missing_peer_is_in_the_table_the_report_and_the_verdict(tmp_path: Path) -> None:
    (line,) = lines([row()], {"ours": 1_000})
    out = io.StringIO()
    report.table(line, out)
    assert "missing: peer: not installed" in out.getvalue()
    assert "NOT HELD" in out.getvalue()
    path = report.save({"load_1min": 0.0}, line.verdicts, tmp_path / "report.json")
    (case,) = json.loads(path.read_text())["cases"]
    assert case["missing_peers"] == ["peer", "absent"] and case["holds"] is False
    assert case["attempts"][0]["failed"]["peer"] == "peer: not installed"


def test_the_table_shows_everyone_and_the_ratio_to_each() -> None:
    (line,) = lines([row(floor=Contender(OURS))], {"ours": 1_000, "peer": 2_000})
    out = io.StringIO()
    report.table(line, out)
    found = out.getvalue().splitlines()
    assert any(each.startswith("peer ") and "2   ×0.50" in each for each in found)
    assert any(each.startswith("floor (ours)") and "×1.00" in each for each in found)
    assert "  holds: p50 ≤ 0.5 × peer:best (peer): 0.50" in found


def test_the_heading_says_how_busy_the_machine_was() -> None:
    found = report.machine()
    assert f"load at start {found['load_1min']:.2f}" in report.heading(found)
    assert "not quiet" in report.heading({**found, "load_1min": 2.0})
    assert "not quiet" not in report.heading({**found, "load_1min": 0.1})


def test_a_plot_is_whole_and_names_everyone(tmp_path: Path) -> None:
    found = lines([row(), row(0.1)], {"ours": 1_000, "peer": 2_000})
    tree = ElementTree.fromstring(plot.save("latency", found, tmp_path).read_text())
    words = [each.text for each in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("ours") == words.count("peer") == 2
    assert "a <row>: p50, µs (less is better)" in words
    circles = list(tree.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 4 and all(
        plot.NAMES <= float(c.get("cx", 0)) <= plot.NAMES + plot.PLOT for c in circles
    )


# ------------------------------------------------------------------ what is promised
ROWS = [
    pytest.param(row, id=f"{row.group}: {row.name}") for rows in GROUPS.values() for row in rows
]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_can_be_decided(row: Row) -> None:
    peers = {peer.name for peer in row.peers}
    assert len(peers) == len(row.peers) and not peers & {"ours", "floor", "best"}
    assert set(row.figures) <= set(FIGURES)
    assert row.rounds >= (1 if row.group == "paths" or row.is_exact else 5)  # paths: seconds each
    for bar in row.bars:
        assert bar.figure in row.figures and bar.number >= 0
        assert set(bar.required) <= peers
        named = bar.against.removeprefix("peer:")
        assert named in peers or named in ("best", "floor")
        assert (named != "floor") or row.floor is not None
        assert named != "best" or bar.required
        if named in peers:
            assert named in bar.required


@pytest.mark.parametrize("row", ROWS)
def test_a_tail_has_samples_enough(row: Row) -> None:
    for bar in row.bars:
        if bar.figure == "p99_us":
            assert row.amount is not None
            assert row.amount.most >= SAMPLES >= 50_000
            assert row.amount.least * row.rounds >= 50_000


def test_names_are_not_used_twice() -> None:
    for rows in GROUPS.values():
        assert len({row.name for row in rows}) == len(rows)
        names: dict[str, Subject] = {}
        for subject in (each for row in rows for each in row.subjects()):
            assert names.setdefault(subject.name, subject) == subject


def test_an_unknown_group_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["nothing"]) == 2
    assert "no group nothing; there are latency rate" in capsys.readouterr().err


def test_quick_rows_are_short_and_do_not_overwrite_the_report() -> None:
    chosen = command.chosen(["latency", "isolation"], "no spin", True)
    assert [each.name for each in chosen["latency"]] == ["64 B round trip, no spin"]
    assert chosen["latency"][0].rounds == 1
    assert report.QUICK != report.REPORT
