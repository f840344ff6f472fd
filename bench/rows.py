"""One row of work: who does it, how much of it, and what is promised of it. Nothing here runs anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.rounds import ROUNDS, Amount, Contender
from bench.sides import Subject
from bench.verdicts import Bar


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes
    ----------
    group, name : str
    order : Mapping
        For `bench.loops`, without ``count``.
    ours : Contender
    peers : tuple of Contender
    floor : Contender, float or None
        What ours is held against where it is not a peer; a number where it is given.
    bars : tuple of Bar
    amount : Amount or None
        How much one round is; None where the order says everything.
    figures : tuple of str
        Shown in the table, in this order.
    is_latency : bool
        In both placements; each has to hold, so the worse one counts.
    is_exact : bool
        It is computed, not timed: every round gives the same.
    """

    group: str
    name: str
    order: Mapping[str, Any]
    ours: Contender
    peers: tuple[Contender, ...] = ()
    floor: Contender | float | None = None
    bars: tuple[Bar, ...] = ()
    amount: Amount | None = None
    figures: tuple[str, ...] = ("p50_us",)
    is_latency: bool = False
    rounds: int = field(default=ROUNDS)
    is_exact: bool = False

    def subjects(self) -> list[Subject]:
        """Return everyone that takes part."""
        floor = (self.floor,) if isinstance(self.floor, Contender) else ()
        return [each.subject for each in (self.ours, *self.peers, *floor)]


def of(*subjects: Subject) -> tuple[Contender, ...]:
    """Return contenders that follow the row's order."""
    return tuple(Contender(subject) for subject in subjects)


def names(*subjects: Subject) -> tuple[str, ...]:
    """Return their names."""
    return tuple(subject.name for subject in subjects)
