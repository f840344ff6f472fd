"""What differs between two views, so that a change costs what it touches, not what is there. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fabric.registry.records import ChannelRecord, EndpointRecord, View

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ViewChange:
    """The difference.

    Attributes
    ----------
    is_general : bool
        Nodes or the plan in force differ: every channel may be concerned.
    has_records : bool
        Some channel's own record differs.
    channels : frozenset of int
        Numbers of the channels whose record or endpoints differ.
    """

    is_general: bool
    has_records: bool
    channels: frozenset[int]

    def among(self, channels: Iterable[ChannelRecord]) -> list[ChannelRecord]:
        """Return the channels that may be concerned."""
        return [c for c in channels if self.is_general or c.number in self.channels]

    def ends_among(self, ends: Iterable[EndpointRecord]) -> list[EndpointRecord]:
        """Return the endpoints of channels that may be concerned."""
        return [e for e in ends if self.is_general or e.channel in self.channels]


def compare(old: View, new: View) -> ViewChange:
    """Return what a newer view changes."""
    records = list(differing(old.channels, new.channels, lambda c: c.number))
    ends = differing(old.endpoints, new.endpoints, lambda e: e.endpoint)
    touched = {record.channel for record in ends} | {record.number for record in records}
    is_general = (old.nodes, old.generation, old.live) != (new.nodes, new.generation, new.live)
    return ViewChange(is_general, bool(records), frozenset(touched))


def differing(old: Sequence[R], new: Sequence[R], key: Callable[[R], int]) -> Iterable[R]:
    """Return the records that are in one of two sequences only, or differ.

    What is added mostly comes last, and what did not change is the same object: then this compares pointers.
    """
    if new[: len(old)] == old:
        return new[len(old) :]
    before = {key(record): record for record in old}
    found = []
    for record in new:
        known = before.pop(key(record), None)
        if known is not record and known != record:
            found += [record] if known is None else [record, known]
    return [*found, *before.values()]
