"""Run the rows of group `paths`: a stage for each row, its contenders in turn, what misses twice more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench import match, namespaces
from bench.match import Line
from bench.paths.layouts import BesideStage, IncastStage, SharedStage
from bench.paths.others import OTHERS
from bench.paths.scenarios import SCENARIOS, Figures
from bench.paths.stage import Stage
from bench.rounds import ATTEMPTS, Attempt, Contender
from bench.rows import Row
from bench.sides import FREE, SubjectFailed
from bench.transforms.scenarios import TRANSFORMS
from bench.verdicts import Verdict, contenders

LAYOUTS: dict[str, type[Stage]] = {
    "rails": Stage,
    "incast": IncastStage,
    "shared": SharedStage,
    "beside": BesideStage,
}
NONE = "none"
RUNS = {**SCENARIOS, **OTHERS, **TRANSFORMS}


def play(
    rows: Sequence[Row],
    report: Callable[[str], None],
    done: Callable[[Line], None],
    again: bool = True,
    reason: str | None = None,
) -> list[Line]:
    """Measure rows; where there can be no namespaces, each of them is missing with the reason."""
    against = namespaces.reason_against() if reason is None else reason
    if not against:
        report_offloads()
    found = []
    for row in rows:
        contest = Rounds(row, report, against)
        try:
            found.append(play_row(row, contest, again))
        finally:
            contest.close()
        done(found[-1])
    return found


def report_offloads() -> None:
    """Print what the kernel gives the end of a rail."""
    with Stage((1000,)) as stage:
        print(f"offloads of a rail's end: {stage.offloads()}", flush=True)


def play_row(row: Row, contest: Rounds, again: bool) -> Line:
    """As `match.play_row`, with as many rounds in every attempt."""
    line = Line(row, FREE, Attempt(0), [])
    line.first = match.run(row, contest, set(), row.rounds)  # type: ignore[arg-type]
    peers = tuple(peer.name for peer in row.peers)
    line.verdicts = [Verdict(row.group, line.name, bar, peers, [line.first]) for bar in row.bars]
    missed = [verdict for verdict in line.verdicts if verdict.wants_more]
    if missed and again:
        for _ in range(ATTEMPTS - 1):
            attempt = match.run(row, contest, contenders(missed), row.rounds)  # type: ignore[arg-type]
            for verdict in missed:
                verdict.attempts.append(attempt)
    return line


class Rounds:
    """What `match.run` asks of a contest, over one stage."""

    def __init__(self, row: Row, report: Callable[[str], None], reason: str = "") -> None:
        self._row, self._report, self._reason = row, report, reason
        self._stage: Stage | None = None

    def attempt(
        self, entries: list[tuple[str, Contender]], rounds: int, essential: str = ""
    ) -> Attempt:
        """Let everyone play once a round, the order turned each time; who fails is out of this attempt."""
        found = Attempt(rounds)
        for number in range(rounds):
            for label, contender in entries if number % 2 == 0 else entries[::-1]:
                if label in found.failed:
                    continue
                self._report(f"{self._row.name}: round {number + 1} of {rounds}: {label}")
                try:
                    found.values.setdefault(label, []).append(self._play(contender))
                except (SubjectFailed, namespaces.NetworkUnavailable) as error:
                    found.failed[label] = str(error)
        for label in found.failed:
            found.values.pop(label, None)
        return found

    def _play(self, contender: Contender) -> Figures:
        order = {**self._row.order, **contender.order}
        scenario = RUNS[order.pop("run")]
        return scenario(self._on_stage(order), contender.subject.module, order)

    def _on_stage(self, order: dict[str, Any]) -> Stage:
        layout, rates = order.pop("layout"), order.pop("rates")
        if layout == NONE:
            return None  # type: ignore[return-value]
        if self._reason:
            raise SubjectFailed(self._reason)
        if self._stage is None:
            self._stage = LAYOUTS[layout](rates)
        return self._stage

    def close(self) -> None:
        """Clear the stage."""
        if self._stage is not None:
            self._stage.close()
            self._stage = None
