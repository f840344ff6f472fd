"""Run the rows of a group: every row in its placements, the bars that miss twice more, and the verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.rounds import ATTEMPTS, ROUNDS_AGAIN, Attempt, Contender, Contest, Pairs
from bench.rows import Row
from bench.sides import FREE, Placement, placements
from bench.verdicts import FLOOR, OURS, Verdict, contenders


@dataclass
class Line:
    """One row in one placement: its first attempt, and what became of its bars."""

    row: Row
    placement: Placement
    first: Attempt
    verdicts: list[Verdict]

    @property
    def name(self) -> str:
        """The row's, with the placement where there are two."""
        return f"{self.row.name}, {self.placement.name}" if self.row.is_latency else self.row.name


def play(
    rows: Sequence[Row],
    report: Callable[[str], None],
    done: Callable[[Line], None],
    start: Callable[[Placement], Pairs] = Pairs,
    again: bool = True,
) -> list[Line]:
    """Measure rows, those of one placement after another, so that pairs stay alive from row to row.

    `report` hears what is going on, `done` is given each line as soon as it is measured.
    """
    found: list[Line] = []
    for placement in placements():
        here = [row for row in rows if row.is_latency or placement == FREE]
        pairs = start(placement)
        try:
            for number, row in enumerate(here):
                found.append(play_row(row, pairs, report, again))
                done(found[-1])
                pairs.keep([each for later in here[number + 1 :] for each in later.subjects()])
        finally:
            pairs.close()
    return sorted(found, key=lambda line: rows.index(line.row))


def play_row(row: Row, pairs: Pairs, report: Callable[[str], None], again: bool = True) -> Line:
    """Measure one row; where a bar misses, the contenders run twice more unless `again` is False."""
    line = Line(row, pairs.placement, Attempt(0), [])
    contest = Contest(
        pairs, row.order, row.amount, lambda text: report(f"{row.group}: {line.name}: {text}")
    )
    line.first = run(row, contest, set(), row.rounds)
    peers = tuple(peer.name for peer in row.peers)
    line.verdicts = [Verdict(row.group, line.name, bar, peers, [line.first]) for bar in row.bars]
    missed = [verdict for verdict in line.verdicts if verdict.wants_more]
    if missed and again:
        for _ in range(ATTEMPTS - 1):
            attempt = run(row, contest, contenders(missed), ROUNDS_AGAIN)
            for verdict in missed:
                verdict.attempts.append(attempt)
    return line


def run(row: Row, contest: Contest, labels: set[str], rounds: int) -> Attempt:
    """One attempt of a row, of everyone or of `labels`; a floor that is a number is the same in every round."""
    entries: list[tuple[str, Contender]] = [(OURS, row.ours)]
    entries += [(peer.name, peer) for peer in row.peers]
    if isinstance(row.floor, Contender):
        entries.insert(min(2, len(entries)), (FLOOR, row.floor))
    chosen = [entry for entry in entries if not labels or entry[0] in labels]
    attempt = contest.attempt(chosen, rounds, OURS if labels else "")
    if isinstance(row.floor, int | float):
        held = [bar.figure for bar in row.bars if bar.against == FLOOR]
        given = dict.fromkeys(held, float(row.floor))
        attempt.values[FLOOR] = [given] * rounds
    return attempt
