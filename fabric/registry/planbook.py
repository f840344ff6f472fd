"""The generations of the cluster: which plan is in force, which are kept, which still carry messages.

State code beside the registry, of the same loop. A plan moves begin → switch → finish, or roll_back; each move is one
transaction, stored before it is true in memory. `recover` rolls back what a killed registry left between.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from fabric import errors, limits
from fabric.registry.plans import Plan
from fabric.registry.records import ChannelRecord, Graph

if TYPE_CHECKING:
    from fabric.registry.cluster import Registry
    from fabric.registry.store import RegistryStore

INTERRUPTED = "the registry was restarted in the middle"
#: what a plan may change of a channel that exists; types and schemas are its endpoints'
CHANGEABLE = (
    "pattern", "delivery", "overflow", "klass", "route", "transforms", "codecs", "settings", "delivers", "idempotent",
    "messages", "bytes", "generation", "is_planned",
)  # fmt: skip
_OPEN = ("applying", "switched")


class PlanBook:
    """`generation` is the plan in force: the last one committed, or switched and on its way to be."""

    def __init__(self, store: RegistryStore, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        plans = store.plans()
        self._highest = max((p.generation for p in plans), default=0)
        self.pending = next((p for p in plans if p.outcome in _OPEN), None)
        self.current = next((p for p in reversed(plans) if p.outcome == "committed"), None)

    @property
    def generation(self) -> int:
        """Number of the plan in force; 0 before the first."""
        if self.pending is not None and self.pending.outcome == "switched":
            return self.pending.generation
        return self.current.generation if self.current else 0

    def live(self) -> tuple[int, ...]:
        """Return the generation in force and the older ones that still carry messages, ascending."""
        older = {g.generation for c in self._registry.channels() for g in c.older}
        return tuple(sorted(older | {self.generation}))

    def history(self) -> list[Plan]:
        """Return the generations that are kept, newest first."""
        return self._store.plans()[::-1]

    def get(self, generation: int) -> Plan:
        """Return one generation; `ConfigError` naming those that are kept when there is none."""
        found = self._store.plan(generation)
        if found is None:
            kept = [p.generation for p in self._store.plans()]
            what = (
                f"generations {kept[0]} to {kept[-1]} are kept" if kept else "nothing was applied"
            )
            raise errors.ConfigError(
                f"there is no generation {generation}; {what}, see fabricctl history",
                generation=generation,
            )
        return found

    def before(self, generation: int) -> Plan:
        """Return the last good plan older than `generation`; `ConfigError` when there is none."""
        good = self.older(generation)
        if good is None:
            raise errors.ConfigError(
                "there is no earlier generation to go back to; see fabricctl history",
                generation=generation,
            )
        return good

    def older(self, generation: int) -> Plan | None:
        """Return the last good plan older than `generation`, None when there is none."""
        good = (p for p in self.history() if p.outcome == "committed" and p.generation < generation)
        return next(good, None)

    # ---------------------------------------------------------------- moves
    def begin(self, plan: Plan) -> Plan:
        """Store the intent and give it its number.

        Raises
        ------
        BusyError
            Another plan is being applied; named.
        StorageError, CapacityError
            It cannot be kept; nothing has changed.
        """
        if self.pending is not None:
            raise errors.BusyError(
                f"generation {self.pending.generation} is being applied by {self.pending.by};"
                " try again when it is done",
                by=self.pending.by,
                generation=self.pending.generation,
            )
        number = self._highest + 1
        records = tuple(
            msgspec.structs.replace(r, generation=number, older=self._older(r.name))
            for r in plan.records
        )
        before = tuple(c for c in self._registry.channels() if c.name in {r.name for r in records})
        begun = msgspec.structs.replace(
            plan, generation=number, outcome="applying", records=records, before=before
        )
        self._store.put_plan(begun)
        self._highest, self.pending = number, begun
        return begun

    def _older(self, name: str) -> tuple[Graph, ...]:
        """Return the graphs that a channel will have had once its present one is superseded."""
        known = self._registry.channel(name)
        if known is None:
            return ()
        present = Graph(generation=known.generation, transforms=known.transforms)
        return (*(g for g in known.older if g.generation != present.generation), present)

    def switch(self) -> None:
        """Make the plan's channels the channels, in one transaction: from here on messages go by it."""
        plan = self._pending("applying")
        switched = msgspec.structs.replace(plan, outcome="switched")
        puts = []
        with self._store.transaction():
            for record in plan.records:
                known = self._registry.channel(record.name)
                if known is None:
                    number = self._store.next_channel_number()
                    puts.append(msgspec.structs.replace(record, number=number))
                else:
                    puts.append(_with(known, record, record.older))
                self._store.put_channel(puts[-1])
            self._store.put_plan(switched)
        self.pending = switched
        self._registry.replace(puts)

    def finish(self) -> Plan:
        """Commit: every node has what the plan asks for. Channels it no longer names are gone now."""
        plan = self._pending("switched")
        drops = [c for name in plan.removed if (c := self._registry.channel(name)) is not None]
        done = msgspec.structs.replace(plan, outcome="committed", before=(), records=())
        with self._store.transaction():
            for record in drops:
                self._store.drop_channel(record.number)
            self._store.put_plan(done)
        self.pending, self.current = None, done
        self._registry.replace((), drops)
        return done

    def roll_back(self, why: str) -> Plan:
        """End the plan that is being applied: its channels are as they were, new ones go unless somebody uses them."""
        plan = self.pending
        if plan is None:
            raise errors.InternalError("nothing to roll back")
        ended = msgspec.structs.replace(
            plan,
            outcome="rolled_back",
            why=why[: limits.ERROR_TEXT_BYTES_MAX],
            before=(),
            records=(),
        )
        puts, drops = self._restored(plan) if plan.outcome == "switched" else ([], [])
        with self._store.transaction():
            for record in puts:
                self._store.put_channel(record)
            for record in drops:
                self._store.drop_channel(record.number)
            self._store.put_plan(ended)
        self.pending = None
        self._registry.replace(puts, drops)
        return ended

    def _restored(self, plan: Plan) -> tuple[list[ChannelRecord], list[ChannelRecord]]:
        puts, drops = [], []
        before = {record.name: record for record in plan.before}
        for record in plan.records:
            known = self._registry.channel(record.name)
            old = before.get(record.name)
            if known is None:
                continue
            if old is None and not self._registry.is_used(known.number):
                drops.append(known)
            elif old is None:
                puts.append(msgspec.structs.replace(known, is_planned=False))
            else:
                tried = Graph(generation=record.generation, transforms=record.transforms)
                puts.append(_with(known, old, (*old.older, tried)))
        return puts, drops

    def recover(self) -> None:
        """Roll back what a killed registry left between intent and commit."""
        if self.pending is not None:
            self.roll_back(INTERRUPTED)

    def forget_graphs(self, empty: Iterable[tuple[str, int]]) -> None:
        """Close generations of channels on which nothing is in flight any more."""
        gone = set(empty)
        puts = []
        for channel in self._registry.channels():
            older = tuple(g for g in channel.older if (channel.name, g.generation) not in gone)
            if older != channel.older:
                puts.append(msgspec.structs.replace(channel, older=older))
        if not puts:
            return
        with self._store.transaction():
            for record in puts:
                self._store.put_channel(record)
        self._registry.replace(puts)

    def _pending(self, outcome: str) -> Plan:
        if self.pending is None or self.pending.outcome != outcome:
            raise errors.InternalError(f"no plan is {outcome}", pending=str(self.pending)[:200])
        return self.pending


def _with(known: ChannelRecord, wanted: ChannelRecord, older: tuple[Graph, ...]) -> ChannelRecord:
    """Return a channel as `wanted`, with the number and the types that its endpoints brought."""
    values = {name: getattr(wanted, name) for name in CHANGEABLE}
    return msgspec.structs.replace(known, **values, older=older)
