"""Ask the scheduler itself how it would split a transfer, without sending a byte. Pure: time is counted, not read.

A fresh native scheduler is shown rails that behave as the live ones do now (rate, base latency, what is in flight),
then it picks, chunk by chunk, as it would. It is the code that decides for real traffic, so the answer cannot drift
from it; what it does not know is what other traffic will do meanwhile.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fabric.paths.explain import NS, mask_of

LESSONS = 240  # deliveries that teach a rate: what is older weighs next to nothing
LESSON_NS = 500_000  # one of them lasts this long on its rail, as a chunk does
NEVER = 1 << 63


class SchedulerLike(Protocol):
    """What a dry run asks of `fabric._native.RailScheduler`."""

    def rail_up(self, rail: int, now: int) -> None: ...
    def round_trip(self, rail: int, ns: int, now: int) -> None: ...
    def pin(self, mask: int) -> None: ...
    def pick(self, left: int, pending: int, now: int, avoid: int = 0) -> tuple[int, int] | None: ...
    def posted(self, rail: int, bytes: int, tag: int, now: int) -> int: ...
    def delivered(self, ticket: int, now: int) -> None: ...


class Split(NamedTuple):
    """Bytes by rail, chunks posted, and nanoseconds from the first pick to the last acknowledgement."""

    shares: dict[int, int]
    chunks: int
    end_ns: int


class _Rail:
    """One rail as it is now: serves in order at its rate, then takes its base latency."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.rate = max(float(row.get("rate_now") or row["rate"]), 1.0)
        self.base_ns = int(row["base_ns"])
        self.inflight = int(row.get("inflight", 0))
        self.free_ns = 0

    def serve(self, size_bytes: int, now: int) -> int:
        """Take bytes; returns when they are acknowledged."""
        self.free_ns = max(self.free_ns, now) + round(size_bytes * NS / self.rate)
        return self.free_ns + self.base_ns


def split(
    scheduler: SchedulerLike,
    rows: Sequence[Mapping[str, Any]],
    size_bytes: int,
    pinned: Sequence[int] = (),
) -> Split:
    """Return how a fresh scheduler would send `size_bytes` over rails that are up.

    Parameters
    ----------
    scheduler : SchedulerLike
        New; it is used up.
    rows : sequence of mapping
        Of each rail: `rail`, `rate`, `base_ns`, and what is in flight.
    size_bytes : int
        Of one transfer; nothing else is pending.
    pinned : sequence of int
        Rails that may be used; empty: all.

    Raises
    ------
    ValueError
        It stopped picking although nothing was in flight: no rail can be used.
    """
    rails = {int(row["rail"]): _Rail(row) for row in rows}
    now = _teach(scheduler, rails)
    scheduler.pin(mask_of(pinned))
    events: list[tuple[int, int]] = []  # (acknowledged at, ticket)
    for number, rail in rails.items():
        if rail.inflight:
            ticket = scheduler.posted(number, rail.inflight, NEVER - 1, now)
            heapq.heappush(events, (rail.serve(rail.inflight, now), ticket))
    return _send(scheduler, rails, events, size_bytes, now)


def _teach(scheduler: SchedulerLike, rails: Mapping[int, _Rail]) -> int:
    """Let it learn rates and latencies from deliveries, one at a time on each rail; returns the moment after."""
    now, lessons = NS, list[tuple[int, int, int, int]]()  # (posted, acknowledged, rail, bytes)
    for number, rail in rails.items():
        scheduler.rail_up(number, now)
        scheduler.round_trip(number, rail.base_ns, now)
        size, at = max(1, int(rail.rate * LESSON_NS / NS)), now
        for _ in range(LESSONS):
            done = at + rail.base_ns + LESSON_NS
            lessons.append((at, done, number, size))
            at = done
    moments = [(at, 0, index) for index, (at, _, _, _) in enumerate(lessons)]
    moments += [(done, -1, index) for index, (_, done, _, _) in enumerate(lessons)]
    tickets: dict[int, int] = {}
    for moment, kind, index in sorted(moments):
        _, _, number, size = lessons[index]
        if kind == 0:
            tickets[index] = scheduler.posted(number, size, index, moment)
        else:
            scheduler.delivered(tickets.pop(index), moment)
        now = moment
    for rail in rails.values():
        rail.free_ns = now
    return now


def _send(
    scheduler: SchedulerLike,
    rails: Mapping[int, _Rail],
    events: list[tuple[int, int]],
    size_bytes: int,
    began: int,
) -> Split:
    left, chunks, now = size_bytes, 0, began
    shares = dict.fromkeys(rails, 0)
    own: set[int] = set()
    end = began
    while left or own:
        while left:
            picked = scheduler.pick(left, left, now)
            if picked is None:
                break
            number, size = picked
            ticket = scheduler.posted(number, size, chunks, now)
            heapq.heappush(events, (rails[number].serve(size, now), ticket))
            own.add(ticket)
            shares[number] += size
            left, chunks = left - size, chunks + 1
        if not events:
            raise ValueError("no rail takes anything")
        now, ticket = heapq.heappop(events)
        scheduler.delivered(ticket, now)
        if ticket in own:
            own.discard(ticket)
            end = now
    return Split(shares, chunks, end - began)
