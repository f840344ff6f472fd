"""What became of rails: every change of state as an event, a lost rail as a downgrade, both counted.

Belongs to the daemon's loop. The engine tells of changes (`{"event": "rail", …}`); a node keeps the last few of each
rail for `fabricctl path show`.
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from fabric import limits

if TYPE_CHECKING:
    from fabric.controlplane.context import Context

UP, DOWN = "up", "down"
WELL = (UP, "left_out")  #: one that adds nothing to the others is no rail lost
RESTORED = "path restored"
DOWNGRADED = "path downgraded"
CHANGED = "rail changed"
FLAPS = "rail flaps"
_RAILS_MAX = limits.NODES_MAX * limits.RAILS_PER_PEER_MAX
#: states that are worse than being up, as people say them
_SAID = {"suspect": "is silent", "held": "is held back", DOWN: "is down", "absent": "is gone"}


def _kept() -> collections.deque[Change]:
    return collections.deque(maxlen=limits.RAIL_CHANGES_KEPT)


def _later(seconds: float, call: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_later(seconds, call)


class Change(NamedTuple):
    """A rail went from one state to another; `at` in seconds since 1970."""

    at: float
    before: str
    after: str
    reason: str


@dataclass(eq=False, slots=True)
class _Rail:
    """What is known of one rail; `told` are the moments of its events, `was_lost` since all were up."""

    state: str = ""
    last: collections.deque[Change] = field(default_factory=_kept)
    told: collections.deque[float] = field(default_factory=collections.deque)
    changed: float = 0.0
    is_quiet: bool = False
    was_lost: bool = False


class RailChanges:
    """`on_downgrade()` is told of each rail lost; `name_of(number)` names a node.

    `reason_of(number, rail)` says why a connection of a rail was lost last, empty where that is not known. A rail that
    flaps does not push everything else out of the log: beyond `limits.RAIL_CHANGES_TOLD` its changes are only counted.
    """

    def __init__(
        self,
        context: Context,
        name_of: Callable[[int], str],
        reason_of: Callable[[int, int], str],
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], object] = _later,
    ) -> None:
        self._context = context
        self._name_of = name_of
        self._reason_of = reason_of
        self._clock = clock
        self._later = later
        self._rails: dict[tuple[int, int], _Rail] = {}
        #: (peer, rail, state) → how often it was entered, since this daemon started
        self.entered: collections.Counter[tuple[str, int, str]] = collections.Counter()
        self.on_downgrade: Callable[[], None] = lambda: None

    def of(self, number: int, rail: int) -> list[Change]:
        """Return the last changes of a rail, oldest first."""
        known = self._rails.get((number, rail))
        return list(known.last) if known else []

    def on_event(self, number: int, event: Mapping[str, Any]) -> None:
        """Take one event of the engine about a rail to node `number`."""
        rail, before, after = int(event["rail"]), str(event["from"]), str(event["to"])
        reason = str(event.get("reason", ""))
        if after == DOWN:
            reason = self._reason_of(number, rail) or reason
        known = self._known(number, rail)
        known.state, known.changed = after, self._clock()
        known.last.append(Change(round(time.time(), 3), before, after, reason))  # wall: for people
        peer = self._name_of(number)
        self.entered[peer, rail, after] += 1
        if before == UP and after not in WELL:
            known.was_lost = True
            self.on_downgrade()
        if self._may_tell(known, number, rail, peer):
            self._tell(number, rail, peer, known.last[-1])

    def _known(self, number: int, rail: int) -> _Rail:
        """Return what is known of a rail; of nodes that are long gone, nothing is."""
        while len(self._rails) >= _RAILS_MAX and (number, rail) not in self._rails:
            gone, _ = next(iter(self._rails))
            name = self._name_of(gone)
            self._rails = {key: kept for key, kept in self._rails.items() if key[0] != gone}
            kept = {key: count for key, count in self.entered.items() if key[0] != name}
            self.entered = collections.Counter(kept)
        return self._rails.setdefault((number, rail), _Rail())

    def _may_tell(self, known: _Rail, number: int, rail: int, peer: str) -> bool:
        """Tell whether a change becomes an event; the first that does not says so."""
        now = self._clock()
        while known.told and known.told[0] < now - limits.RAIL_CHANGES_TOLD_S:
            known.told.popleft()
        if len(known.told) < limits.RAIL_CHANGES_TOLD:
            known.told.append(now)
            known.is_quiet = False
            return True
        if not known.is_quiet:
            known.is_quiet = True
            text = f"rail {rail} to {peer} changes its state again and again: counted, not told"
            self._context.events.add(FLAPS, node=peer, rail=rail, text=text)
            self._later(limits.RAIL_CHANGES_TOLD_S, lambda: self._look_again(number, rail))
        return False

    def _look_again(self, number: int, rail: int) -> None:
        """Tell how a rail that flapped has settled, once it has."""
        known = self._rails.get((number, rail))
        if known is None or not known.is_quiet:
            return
        if self._clock() - known.changed < limits.RAIL_CHANGES_TOLD_S:
            self._later(limits.RAIL_CHANGES_TOLD_S, lambda: self._look_again(number, rail))
            return
        known.is_quiet = False
        last = known.last[-1]
        self._tell(
            number, rail, self._name_of(number), last._replace(reason=f"settled: {last.reason}")
        )

    def _tell(self, number: int, rail: int, peer: str, change: Change) -> None:
        self._context.events.add(
            CHANGED,
            severity="info" if change.after in WELL else "warning",
            node=peer,
            rail=rail,
            before=change.before,
            after=change.after,
            reason=change.reason,
            text=f"rail {rail} to {peer}: {change.before} → {change.after}",
        )
        if change.before in WELL and change.after in WELL:
            return
        if change.before == UP:
            self._downgraded(number, rail, peer, change)
        elif change.after == UP:
            self._restored(number, rail, peer)

    def _counts(self, number: int) -> tuple[int, int]:
        """Return how many rails to a node are up, and how many there were."""
        states = [rail.state for (node, _), rail in self._rails.items() if node == number]
        return sum(state in WELL for state in states), len(states)

    def _downgraded(self, number: int, rail: int, peer: str, change: Change) -> None:
        up, known = self._counts(number)
        taken = f"{up} of {known} rails" if up else "none"
        self._context.events.add(
            DOWNGRADED,
            node=peer,
            rail=rail,
            taken=taken,
            preferred=f"{known} rails" if known != 1 else "1 rail",
            reason=f"rail {rail} {_SAID.get(change.after, change.after)}: {change.reason}",
            text=f"{taken} to {peer} left" if up else f"no rail to {peer} left",
        )

    def _restored(self, number: int, rail: int, peer: str) -> None:
        """Tell once that all are up again, after at least one was lost."""
        up, known = self._counts(number)
        mine = [found for (node, _), found in self._rails.items() if node == number]
        if up != known or not any(found.was_lost for found in mine):
            return
        for found in mine:
            found.was_lost = False
        self._context.events.add(
            RESTORED,
            severity="info",
            node=peer,
            rail=rail,
            reason=f"rail {rail} is up again",
            text=f"all {known} rails to {peer} are up" if known > 1 else f"{peer} is reached again",
        )
