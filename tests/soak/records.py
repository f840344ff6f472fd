"""What consumers wrote down before they acknowledged, and whether it keeps the promises. Pure, over numpy arrays.

A record is 24 bytes. `MARK` rows say that every message recorded before them in the same file had been acknowledged.
A file whose writer was killed may end in a torn row, which was therefore not acknowledged and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

GOT, MARK = 1, 2
RECORD = np.dtype(
    [("at_ns", "<u8"), ("number", "<u8"), ("key", "<u4"), ("producer", "<u2"), ("kind", "u1"), ("redelivered", "u1")]
)  # fmt: skip
SHOWN = 5  # of one kind of violation


@dataclass
class Findings:
    """Violations, in words, and the figures behind them."""

    violations: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def wrong(self, what: str, rows: Any, *fields: str) -> None:
        """Add one violation when there are `rows`, with the first of them."""
        if len(rows):
            names = fields or rows.dtype.names
            shown = [tuple(int(row[name]) for name in names) for row in rows[:SHOWN]]
            self.violations.append(f"{len(rows)} {what}: {', '.join(names)} = {shown}")


def load(path: Path) -> Any:
    """Read one consumer's file; a torn last row is left out."""
    data = path.read_bytes()
    return np.frombuffer(data[: len(data) // RECORD.itemsize * RECORD.itemsize], RECORD)


def examine(
    files: Sequence[Any], victim: int, sent: Sequence[int], window: int, *, keyed: bool
) -> Findings:
    """Hold the files of all consumers against what was sent.

    Parameters
    ----------
    files : sequence of RECORD arrays
        One a consumer process, in the order in which each wrote.
    victim : int
        Index of the consumer that was killed.
    sent : sequence of int
        Messages accepted from each producer; their numbers count from 0.
    window : int
        Messages that may be unacknowledged at one consumer: credit × producers.
    keyed : bool
        Whether the order per key is promised (`stream`).
    """
    found = Findings()
    got = [rows[rows["kind"] == GOT] for rows in files]
    everything = np.concatenate(got)
    everything = everything[np.argsort(everything["at_ns"], kind="stable")]
    first, again = split_repeats(everything)
    check_union(found, first, sent)
    check_repeats(found, again, files[victim], window)
    check_flags(found, everything, window)
    if keyed:
        check_order(found, got, first)
    found.figures.update(
        recorded=len(everything), repeats=len(again), flagged=int(everything["redelivered"].sum()),
        recorded_by_consumer=[len(rows) for rows in got],
    )  # fmt: skip
    return found


def identity(rows: Any) -> Any:
    """Return one number a message: producer and its own number."""
    return rows["producer"].astype(np.uint64) << np.uint64(48) | rows["number"]


def split_repeats(rows: Any) -> tuple[Any, Any]:
    """Return the first record of every message, and all later ones, both in order of time."""
    _, index = np.unique(identity(rows), return_index=True)
    is_first = np.zeros(len(rows), bool)
    is_first[index] = True
    return rows[is_first], rows[~is_first]


def check_union(found: Findings, first: Any, sent: Sequence[int]) -> None:
    """Every accepted message was recorded, and nothing else was."""
    for producer, count in enumerate(sent):
        numbers = first["number"][first["producer"] == producer]
        missing = np.setdiff1d(np.arange(count, dtype=np.uint64), numbers)
        strange = numbers[numbers >= count]
        if len(missing):
            shown = missing[:SHOWN].tolist()
            found.violations.append(f"producer {producer}: {len(missing)} lost, first {shown}")
        if len(strange):
            shown = strange[:SHOWN].tolist()
            found.violations.append(f"producer {producer}: {len(strange)} never sent: {shown}")
    found.wrong("records of unknown producers", first[first["producer"] >= len(sent)])


def check_repeats(found: Findings, again: Any, victim: Any, window: int) -> None:
    """The repeats are what the killed consumer had recorded and not acknowledged, exactly, and say so."""
    found.wrong("repeats are not flagged", again[again["redelivered"] == 0])
    marks = np.flatnonzero(victim["kind"] == MARK)
    open_rows = victim[marks[-1] + 1 :] if len(marks) else victim
    held = identity(open_rows)
    found.figures["unacknowledged_at_kill"] = len(held)
    found.wrong("repeats of acknowledged messages", again[~np.isin(identity(again), held)])
    lost = open_rows[~np.isin(identity(open_rows), identity(again))]
    found.wrong("unacknowledged messages did not come again", lost)
    if len(held) > window:
        found.violations.append(f"{len(held)} unacknowledged at the kill, the window is {window}")


def check_flags(found: Findings, rows: Any, window: int) -> None:
    """No more messages came again than the killed consumer's window holds."""
    flagged = rows[rows["redelivered"] == 1]
    if len(flagged) > window:
        found.violations.append(f"{len(flagged)} came flagged, the window is {window}")


def check_order(found: Findings, got: Sequence[Any], first: Any) -> None:
    """Of every key: each consumer sees its numbers rise, and over all of them none is overtaken."""
    for rows in [*got, first]:
        by_key = rows[np.lexsort((np.arange(len(rows)), rows["key"], rows["producer"]))]
        same = (by_key["key"][1:] == by_key["key"][:-1]) & (
            by_key["producer"][1:] == by_key["producer"][:-1]
        )
        fell = same & (by_key["number"][1:] <= by_key["number"][:-1])
        found.wrong("messages overtook one of their key", by_key[1:][fell])
