"""What became of rails: every change of state as an event, a lost rail as a downgrade, both counted.

Belongs to the daemon's loop. The engine tells of changes (`{"event": "rail", …}`); a node keeps the last few of each
rail for `fabricctl path show`.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fabric import limits

if TYPE_CHECKING:
    from fabric.controlplane.context import Context

UP = "up"
RESTORED = "path restored"
DOWNGRADED = "path downgraded"
CHANGED = "rail changed"
#: states that are worse than being up, as people say them
_SAID = {"suspect": "is silent", "held": "is held back", "down": "is down", "absent": "is gone"}


class Change(NamedTuple):
    """A rail went from one state to another; `at` in seconds since 1970."""

    at: float
    before: str
    after: str
    reason: str


class RailChanges:
    """`on_downgrade()` is told of each rail lost; `name_of(number)` names a node."""

    def __init__(self, context: Context, name_of: Callable[[int], str]) -> None:
        self._context = context
        self._name_of = name_of
        self._states: dict[tuple[int, int], str] = {}
        self._last: dict[tuple[int, int], collections.deque[Change]] = {}
        #: (peer, rail, state) → how often it was entered, since this daemon started
        self.entered: collections.Counter[tuple[str, int, str]] = collections.Counter()
        self.on_downgrade: Callable[[], None] = lambda: None

    def of(self, number: int, rail: int) -> list[Change]:
        """Return the last changes of a rail, oldest first."""
        return list(self._last.get((number, rail), ()))

    def forget(self, number: int) -> None:
        """Let go of a node that is dead."""
        for key in [key for key in self._states if key[0] == number]:
            del self._states[key]
            self._last.pop(key, None)

    def on_event(self, number: int, event: Mapping[str, Any]) -> None:
        """Take one event of the engine about a rail to node `number`."""
        rail, before, after = int(event["rail"]), str(event["from"]), str(event["to"])
        reason, peer = str(event.get("reason", "")), self._name_of(number)
        key = number, rail
        self._states[key] = after
        self.entered[peer, rail, after] += 1
        told = self._context.events.add(
            CHANGED,
            severity="info" if after == UP else "warning",
            node=peer,
            rail=rail,
            before=before,
            after=after,
            reason=reason,
            text=f"rail {rail} to {peer}: {before} → {after}",
        )
        last = self._last.setdefault(key, collections.deque(maxlen=limits.RAIL_CHANGES_KEPT))
        last.append(Change(told.at, before, after, reason))
        if before == UP:
            self._downgraded(number, peer, rail, after, reason)
        elif after == UP:
            self._restored(number, peer, rail)

    def _counts(self, number: int) -> tuple[int, int]:
        """Return how many rails to a node are up, and how many there were."""
        states = [state for (node, _), state in self._states.items() if node == number]
        return states.count(UP), len(states)

    def _downgraded(self, number: int, peer: str, rail: int, after: str, reason: str) -> None:
        up, known = self._counts(number)
        self.on_downgrade()
        self._context.events.add(
            DOWNGRADED,
            node=peer,
            rail=rail,
            taken=f"{up} of {known} rails" if up else "none",
            preferred=f"{known} rails" if known != 1 else "1 rail",
            reason=f"rail {rail} {_SAID.get(after, after)}: {reason}",
        )

    def _restored(self, number: int, peer: str, rail: int) -> None:
        """Tell once that all are up again, after at least one was lost."""
        up, known = self._counts(number)
        was_lost = any(change.before == UP for change in self.of(number, rail))
        if up == known and was_lost:
            self._context.events.add(
                RESTORED,
                severity="info",
                node=peer,
                rail=rail,
                reason=f"rail {rail} is up again",
                text=f"all {known} rails to {peer} are up"
                if known > 1
                else f"{peer} is reached again",
            )
