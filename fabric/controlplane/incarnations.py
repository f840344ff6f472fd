"""Numbers that tell one life of a node or a daemon from every other: unique over restarts and over clock jumps.

They look like wall-clock nanoseconds, for people who read logs; almost nothing compares two of them but for
equality. The last one is kept in the state directory, and each is above it: a clock that went back cannot give one out
again. (A late data connection of an older one is told by that, while the later one is connected.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

STEP_NS = 1_000_000  #: above the last one, when the clock is behind it


class Reserved:
    """Incarnations out of blocks of `STEP_NS`: the state directory is written once a block, not once an attach."""

    def __init__(self, state: Path, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._state, self._clock_ns = state, clock_ns
        self._next = self._until = 0

    def take(self) -> int:
        """Return one that this state directory has never seen."""
        if self._next == self._until:
            self._next = next_incarnation(self._state, self._clock_ns, STEP_NS)
            self._until = self._next + STEP_NS
        self._next += 1
        return self._next - 1


def next_incarnation(
    state: Path, clock_ns: Callable[[], int] = time.time_ns, count: int = 1
) -> int:
    """Return the first of `count` incarnations that this state directory has never seen, and remember the last.

    A folder that cannot be written (a full disk) is no reason not to live: then the clock alone has to do.
    """
    path = state / "incarnation"
    try:
        last = int(path.read_text())
    except (OSError, ValueError):
        last = 0
    now = clock_ns()
    found = now if now > last else last + STEP_NS
    draft = path.with_suffix(".new")
    try:
        draft.write_text(str(found + count - 1))
        os.replace(draft, path)
    except OSError:
        return found
    return found
