"""Whether a bar holds: one verdict for each row × placement × bar, made of one attempt or of three. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.figures import FIGURES, LOWER, holds, ratio_of
from bench.rounds import Attempt

OURS, FLOOR = "ours", "floor"
BEST = "peer:best"
HELD_OF_THREE = 2
CONTENDER_RATIO = 1.5  # a peer that is this much worse than the best need not run again


@dataclass(frozen=True)
class Bar:
    """One promise about one figure of a row.

    Attributes
    ----------
    figure : str
        A key of `FIGURES`.
    number : float
        The ratio of ours to `against` may be at most this, or at least, as the figure's direction says.
    against : str
        ``peer:best``, ``peer:NAME`` or ``floor``.
    required : tuple of str
        Peers without which nothing is shown.
    """

    figure: str
    number: float
    against: str
    required: tuple[str, ...] = ()


@dataclass
class Verdict:
    """One bar of one row in one placement, with every attempt at it."""

    group: str
    name: str
    bar: Bar
    configured: tuple[str, ...]
    attempts: list[Attempt] = field(default_factory=list)

    # ---------------------------------------------------------------- one attempt
    def ours(self, attempt: Attempt) -> list[float] | None:
        """Return our series."""
        return attempt.series(OURS, self.bar.figure)

    def against(self, attempt: Attempt) -> str | None:
        """Return the label that ours is compared with in an attempt, None where there is none."""
        if self.bar.against == FLOOR:
            return FLOOR if attempt.series(FLOOR, self.bar.figure) else None
        if self.bar.against != BEST:
            name = self.bar.against.removeprefix("peer:")
            return name if attempt.series(name, self.bar.figure) else None
        medians = self.medians(attempt)
        if not medians:
            return None
        choose = min if FIGURES[self.bar.figure].direction == LOWER else max
        return choose(medians, key=lambda name: medians[name])

    def medians(self, attempt: Attempt) -> dict[str, float]:
        """Return the median of every peer that has the figure."""
        found = {name: attempt.series(name, self.bar.figure) for name in self.configured}
        return {name: statistics.median(series) for name, series in found.items() if series}

    def ratio(self, attempt: Attempt) -> float | None:
        """Return ours over what it is compared with: the median of the ratios of each round."""
        ours, label = self.ours(attempt), self.against(attempt)
        theirs = attempt.series(label, self.bar.figure) if label else None
        if ours is None or theirs is None:
            return None
        return ratio_of(ours, theirs)

    def held(self, attempt: Attempt) -> bool:
        """Whether the bar held in an attempt."""
        ratio = self.ratio(attempt)
        direction = FIGURES[self.bar.figure].direction
        return ratio is not None and holds(direction, ratio, self.bar.number)

    # ---------------------------------------------------------------- all of them
    @property
    def missing(self) -> list[str]:
        """Peers that were to be compared with and never had the figure."""
        return [
            name
            for name in self.configured
            if not any(attempt.series(name, self.bar.figure) for attempt in self.attempts)
        ]

    @property
    def lacks_required(self) -> bool:
        """Whether a peer is missing that the bar cannot be shown without."""
        return bool(set(self.bar.required) & set(self.missing))

    @property
    def wants_more(self) -> bool:
        """Whether further attempts could still make it hold: there is something to compare with, and it missed."""
        first = self.attempts[0]
        return not self.lacks_required and self.against(first) is not None and not self.held(first)

    @property
    def is_kept(self) -> bool:
        """Whether it holds: in the one attempt, or in two of three."""
        count = sum(self.held(attempt) for attempt in self.attempts)
        needed = 1 if len(self.attempts) == 1 else HELD_OF_THREE
        return not self.lacks_required and count >= needed

    @property
    def deciding(self) -> Attempt:
        """The attempt whose ratio is in the middle: it holds where two of three do."""
        having = [attempt for attempt in self.attempts if self.ratio(attempt) is not None]
        ordered = sorted(having, key=lambda attempt: self.ratio(attempt) or 0.0)
        return ordered[len(ordered) // 2] if ordered else self.attempts[0]

    def peers(self) -> dict[str, float]:
        """Return the median of every peer: from the deciding attempt, or from the first where it sat that one out."""
        return {**self.medians(self.attempts[0]), **self.medians(self.deciding)}

    def floor(self) -> float | None:
        """Return the floor's median."""
        series = self.deciding.series(FLOOR, self.bar.figure)
        return statistics.median(series) if series else None

    def fields(self) -> dict[str, Any]:
        """Return the case as the report has it."""
        ours = self.ours(self.deciding)
        figure = FIGURES[self.bar.figure]
        return {
            "group": self.group,
            "name": self.name,
            "unit": figure.unit,
            "direction": figure.direction,
            "ours": statistics.median(ours) if ours else None,
            "peers": self.peers(),
            "floor": self.floor(),
            "bar": self.bar.number,
            "against": self.bar.against,
            "required_peers": list(self.bar.required),
            "missing_peers": self.missing,
            "runs": sum(attempt.rounds for attempt in self.attempts),
            "attempts": [self._attempt(attempt) for attempt in self.attempts],
            "holds": self.is_kept,
        }

    def _attempt(self, attempt: Attempt) -> dict[str, Any]:
        """Return one attempt with the values of each round."""
        labels = [name for name in (*self.configured, OURS, FLOOR) if name in attempt.values]
        series = {name: attempt.series(name, self.bar.figure) for name in labels}
        return {
            "rounds": attempt.rounds,
            "ours": series.pop(OURS, None),
            "floor": series.pop(FLOOR, None),
            "peers": {name: values for name, values in series.items() if values},
            "compared_with": self.against(attempt),
            "ratio": self.ratio(attempt),
            "holds": self.held(attempt),
            "failed": dict(attempt.failed),
        }


def contenders(verdicts: Sequence[Verdict]) -> set[str]:
    """Return the labels that have to run again for some bars to be decided.

    Ours, the floor, what a bar names, and the peers that are near the best one.
    """
    wanted = {OURS, FLOOR}
    for verdict in verdicts:
        if verdict.bar.against == BEST:
            medians = verdict.medians(verdict.attempts[0])
            wanted |= near_best(medians, FIGURES[verdict.bar.figure].direction)
        else:
            wanted.add(verdict.bar.against.removeprefix("peer:"))
    return wanted


def near_best(medians: Mapping[str, float], direction: str) -> set[str]:
    """Return the names within `CONTENDER_RATIO` of the best."""
    if not medians:
        return set()
    if direction == LOWER:
        limit = min(medians.values()) * CONTENDER_RATIO
        return {name for name, value in medians.items() if value <= limit}
    limit = max(medians.values()) / CONTENDER_RATIO
    return {name for name, value in medians.items() if value >= limit}
