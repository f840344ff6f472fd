"""From arrivals at a receiver to what the bars speak of. Pure; times in ns of one monotonic clock.

A message's bytes count as arriving evenly since the one before it, because only whole messages are seen.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from bench.figures import percentile

S, MS = 1_000_000_000, 1_000_000
WINDOW_NS = 500 * MS
STEP_NS = 10 * MS


@dataclass(frozen=True)
class Capacity:
    """What the network lets through: bytes/s from a time on, in steps; the first one holds before it, too."""

    steps: tuple[tuple[int, float], ...]

    def between(self, start: int, end: int) -> float:
        """Return the bytes that fit into an interval."""
        total = 0.0
        for index, (begin, rate) in enumerate(self.steps):
            lower = start if index == 0 else max(start, begin)
            is_last = index + 1 == len(self.steps)
            upper = end if is_last else min(end, self.steps[index + 1][0])
            total += max(0, upper - lower) * rate / S
        return total

    def end_of(self, start: int, size: float) -> int:
        """Return when `size` bytes that begin at `start` are through."""
        left, now = size, start
        for index, (_, rate) in enumerate(self.steps):
            is_last = index + 1 == len(self.steps)
            upper = None if is_last else self.steps[index + 1][0]
            if upper is not None and upper <= now:
                continue
            fits = self.between(now, upper) if upper is not None else left
            if fits >= left and rate > 0:
                return now + int(left / rate * S)
            left, now = left - fits, upper if upper is not None else now
        raise ValueError("the capacity ends at 0: what is left never arrives")


class Arrivals:
    """Whole messages as the receiving application got them."""

    def __init__(self, rows: Sequence[tuple[int, int, int]], size: int, start: int) -> None:
        self.size, self.start = size, start
        self.rows = [tuple(row) for row in rows]
        self._at = [start, *(row[0] for row in self.rows)]

    @property
    def end(self) -> int:
        """When the last one came."""
        return self._at[-1]

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.size * len(self.rows)

    def rate(self) -> float:
        """Return bytes/s from the start to the last arrival; 0 where nothing came."""
        return self.bytes * S / (self.end - self.start) if self.rows else 0.0

    def until(self, now: int) -> float:
        """Return the bytes that were there at a time."""
        index = bisect.bisect_right(self._at, now) - 1
        if index < 0:
            return 0.0
        if index + 1 == len(self._at):
            return float(self.bytes)
        before, after = self._at[index], self._at[index + 1]
        return self.size * (index + (now - before) / max(1, after - before))

    def between(self, start: int, end: int) -> float:
        """Return the bytes of an interval."""
        return self.until(end) - self.until(start)

    def longest_gap(self, start: int, end: int) -> int:
        """Return the longest time within an interval without an arrival; its ends bound it."""
        inside = [at for at in self._at if start < at < end]
        marks = [start, *inside, end]
        return max(after - before for before, after in itertools.pairwise(marks))

    def wrong(self, sent: int) -> int:
        """Return how many of `sent` messages are missing, or there twice."""
        numbers = [row[2] for row in self.rows]
        return len(set(range(sent)) ^ set(numbers)) + len(numbers) - len(set(numbers))

    def services(self) -> list[tuple[int, int]]:
        """Return (begun, ended) of each: it begins when it was sent, or when the one before it was through."""
        found, before = [], 0
        for at, sent, _ in self.rows:
            found.append((max(before, sent), at))
            before = at
        return found


def least_share(arrivals: Arrivals, capacity: Capacity, start: int, end: int) -> float:
    """Return the least of bytes over capacity in any 500 ms between two times."""
    end = max(end, start + WINDOW_NS)
    shares = [
        arrivals.between(at, at + WINDOW_NS) / capacity.between(at, at + WINDOW_NS)
        for at in range(start, end - WINDOW_NS + 1, STEP_NS)
    ]
    return min(shares)


def slowdowns(arrivals: Arrivals, capacity: Capacity) -> list[float]:
    """Return, for each message, the time that it took over what the network needed for it."""
    return [
        (end - begin) / max(1, capacity.end_of(begin, arrivals.size) - begin)
        for begin, end in arrivals.services()
    ]


def latest(arrivals: Arrivals, capacity: Capacity) -> int:
    """Return by how much the latest message came after the network could have had it through."""
    late = [end - capacity.end_of(begin, arrivals.size) for begin, end in arrivals.services()]
    return max(late, default=0)


def back_after(arrivals: Arrivals, since: int, rate: float, window: int = 250 * MS) -> int:
    """Return how long after `since` a window begins in which `rate` is reached; to the last arrival if never."""
    for at in range(since, arrivals.end - window, STEP_NS):
        if arrivals.between(at, at + window) * S >= rate * window:
            return at - since
    return max(arrivals.end - since, 10 * S)


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: (Σx)² / (n Σx²)."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile, nearest rank."""
    return percentile(values, 0.99)
