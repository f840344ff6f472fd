"""The registry: membership, channels and endpoints of the whole cluster, on the first node.

State code without sockets or clock: calls change it, `on_change` is told that a newer view exists, and
`tick(now)` ends leases. What is to be kept is stored before it is true here, so a full disk refuses a call and changes
nothing; only leases go on without it. A restarted registry shows its nodes as silent until they are back or their lease
ends, so a restart alone closes no flow.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from fabric import limits
from fabric.errors import BusyError, CapacityError, ConfigError, StaleHandleError, StorageError
from fabric.registry.declare import conflict, type_conflict, unknown_channel
from fabric.registry.planbook import PlanBook
from fabric.registry.records import (
    ArchivedCounts,
    ChannelRecord,
    EndpointRecord,
    NodeRecord,
    NodeState,
    View,
)
from fabric.registry.store import RegistryStore

log = logging.getLogger("fabricd.registry")


class Registry:
    """Belongs to one loop. `on_change()` is called after every change, with the new state in place."""

    def __init__(self, store: RegistryStore, now_s: float) -> None:
        self._store = store
        self._epoch = store.next_epoch_base()
        self._nodes = {n.number: n for n in store.nodes()}
        self._channels = {c.number: c for c in store.channels()}
        self.plans = PlanBook(store, self)
        self._endpoints: dict[int, EndpointRecord] = {}
        self._leases: dict[int, float] = {}
        self._heard: dict[int, float] = {}  # node → when it last prolonged its lease itself
        self._joined: set[int] = set()  # in this life of the registry
        self._unused_since: dict[
            int, float
        ] = {}  # transient channel → when first seen without ends
        self._dropped: deque[int] = deque(maxlen=limits.CHANNELS_MAX)  # transient channels, lately
        for number, node in self._nodes.items():
            if node.state != "dead":
                self._nodes[number] = msgspec.structs.replace(node, state="silent")
                self._leases[number] = now_s + limits.LEASE_MS / 1000
        self.on_change: Callable[[], None] = lambda: None
        self.plans.recover()

    def view(self) -> View:
        """Return the present state."""
        return View(
            epoch=self._epoch,
            generation=self.plans.generation,
            live=self.plans.live(),
            nodes=tuple(self._nodes.values()),
            channels=tuple(self._channels.values()),
            endpoints=tuple(self._endpoints.values()),
        )

    # ---------------------------------------------------------------- nodes
    def join(self, node: NodeRecord, endpoints: Iterable[EndpointRecord], now_s: float) -> int:
        """Admit a node (or take it back) with all its endpoints; returns its number.

        Raises
        ------
        BusyError
            A living node of another incarnation has this name.
        """
        known = next((n for n in self._nodes.values() if n.name == node.name), None)
        is_there = known is not None and known.state != "dead" and known.number in self._joined
        if known and is_there and known.incarnation != node.incarnation:
            raise BusyError(
                f"a node named {node.name!r} is already in the cluster; choose another --name or stop that one",
                name=node.name,
            )
        number = known.number if known else max(self._nodes, default=0) + 1
        if number > limits.NODES_MAX:
            raise CapacityError(
                f"the cluster has NODES_MAX ({limits.NODES_MAX}) nodes", limit="NODES_MAX"
            )
        record = msgspec.structs.replace(node, number=number, state="alive")
        if known is None:
            self._store.put_node(record)
        else:
            self._try_to_put(record)
        self._forget(number)
        self._nodes[number] = record
        self._hear(number, now_s)
        self._joined.add(number)
        for endpoint in endpoints:
            self._endpoints[endpoint.endpoint] = endpoint
        self._changed()
        return number

    def lease(self, number: int, incarnation: int, now_s: float) -> None:
        """Prolong a node's lease; raises `StaleHandleError` when it must join again."""
        node = self._nodes.get(number)
        is_member = node is not None and node.state != "dead" and number in self._joined
        if node is None or node.incarnation != incarnation or not is_member:
            raise StaleHandleError(
                "the lease ended; join again", number=number, incarnation=incarnation
            )
        self._hear(number, now_s)
        self._become(node, "alive")

    def _hear(self, number: int, now_s: float) -> None:
        self._heard[number] = now_s
        self._leases[number] = now_s + limits.LEASE_MS / 1000

    def leave(self, number: int, incarnation: int) -> None:
        """Take a node out at once (orderly stop)."""
        node = self._nodes.get(number)
        if node is not None and node.incarnation == incarnation:
            self._end(number)

    def tick(self, now_s: float) -> None:
        """End the leases that ran out; a node that was not heard of for `SUSPECT_MS` is silent."""
        for number, until in list(self._leases.items()):
            if now_s >= until:
                self._end(number)
            elif now_s >= self._last_heard(number, until) + limits.SUSPECT_MS / 1000:
                self._become(self._nodes[number], "silent")
        self._sweep(now_s)

    def pardon(self, now_s: float) -> None:
        """Begin every lease anew: the registry itself did not listen for a while."""
        until = now_s + limits.LEASE_MS / 1000
        self._leases = {number: max(until, old) for number, old in self._leases.items()}
        self._heard = dict.fromkeys(self._leases, now_s)

    def excuse(self, number: int, now_s: float) -> None:
        """Let a node have up to a second lease: the registry's interfaces to it are down, its silence says little."""
        until, lease_s = self._leases.get(number), limits.LEASE_MS / 1000
        if until is not None:
            latest = self._last_heard(number, until) + 2 * lease_s
            self._leases[number] = max(until, min(now_s + lease_s, latest))

    def _last_heard(self, number: int, until: float) -> float:
        return self._heard.get(number, until - limits.LEASE_MS / 1000)

    def _become(self, node: NodeRecord, state: NodeState) -> None:
        if node.state != state:
            self._nodes[node.number] = msgspec.structs.replace(node, state=state)
            self._changed()

    def _end(self, number: int) -> None:
        self._leases.pop(number, None)
        self._heard.pop(number, None)
        self._joined.discard(number)
        record = msgspec.structs.replace(self._nodes[number], state="dead")
        self._nodes[number] = record
        self._try_to_put(record)
        self._forget(number)
        self._changed()

    def _try_to_put(self, record: NodeRecord) -> None:
        """Store the state of a known node if the disk takes it; else it is only silent after a restart."""
        try:
            self._store.put_node(record)
        except StorageError as error:
            log.warning("node not stored", extra={"node": record.name, "reason": str(error)})

    def _forget(self, number: int) -> None:
        for endpoint in [e for e in self._endpoints.values() if e.node == number]:
            del self._endpoints[endpoint.endpoint]

    # ---------------------------------------------------------------- channels and endpoints
    def declare(self, channel: ChannelRecord) -> ChannelRecord:
        """Add a channel, or confirm one declared before.

        Raises
        ------
        ConfigError, TypeMismatchError
            It exists and differs; the difference is named.
        """
        known = next((c for c in self._channels.values() if c.name == channel.name), None)
        if known is not None:
            error = conflict(known, channel)
            if error is not None:
                raise error
            return self._settle(known, channel.schema, channel.reply_schema)
        if len(self._channels) >= limits.CHANNELS_MAX:
            raise CapacityError(
                f"CHANNELS_MAX ({limits.CHANNELS_MAX}) channels are declared", limit="CHANNELS_MAX"
            )
        # The graph of a channel begins with the plan in force: a later plan's records are newer than its.
        record = msgspec.structs.replace(
            channel, number=self._store.next_channel_number(), generation=self.plans.generation
        )
        self._put_channel(record)
        return record

    def settle(
        self,
        name: str,
        schema: str,
        reply_schema: str = "",
        is_last: bool = False,
        role: str = "",
    ) -> ChannelRecord:
        """Confirm the types an endpoint brings; the first one gives a channel of fabric.yaml its schema.

        `is_last`: a receiver, whose type is what the last transform produces when that differs. `role`: of the end that
        is about to be opened.

        Raises
        ------
        ConfigError, TypeMismatchError
            The channel is unknown, or a type differs; the field is named.
        """
        known = next((c for c in self._channels.values() if c.name == name), None)
        if known is None:
            raise unknown_channel(name, [c.name for c in self._channels.values()])
        if is_last and schema and known.delivers and known.delivers != known.type_name:
            error = type_conflict(msgspec.structs.replace(known, type_name=known.delivers), schema)
            if error is not None:
                raise error
            return known
        return self._settle(known, schema, reply_schema, role)

    def _settle(
        self, known: ChannelRecord, schema: str, reply_schema: str, role: str = ""
    ) -> ChannelRecord:
        if not schema and not reply_schema:
            return known
        from fabric.registry.versions import admitted

        error = type_conflict(known, schema) if schema and not known.schema else None
        if error is not None:
            raise error
        record = admitted(known, schema, reply_schema, role, self._endpoints.values())
        if record != known:
            self._put_channel(record)
        return record

    def change(
        self,
        name: str,
        *,
        transforms: tuple[str, ...] | None = None,
        route: str | None = None,
        delivers: str | None = None,
    ) -> ChannelRecord:
        """Set transforms, route (empty: none) or delivered type name (empty: the channel's) of a live channel."""
        known = next((c for c in self._channels.values() if c.name == name), None)
        if known is None:
            raise unknown_channel(name, [c.name for c in self._channels.values()])
        record = known
        if transforms is not None:
            record = msgspec.structs.replace(record, transforms=transforms)
        if delivers is not None:
            record = msgspec.structs.replace(record, delivers=delivers)
        if route is not None:
            record = msgspec.structs.replace(record, route=route or None)
        if record != known:
            self._put_channel(record)
        return record

    def _put_channel(self, record: ChannelRecord) -> None:
        self._store.put_channel(record)
        self._channels[record.number] = record
        self._changed()

    def channel(self, name: str) -> ChannelRecord | None:
        """Return the channel called `name`."""
        return next((c for c in self._channels.values() if c.name == name), None)

    def channels(self) -> list[ChannelRecord]:
        """Return every channel."""
        return list(self._channels.values())

    def is_used(self, channel: int) -> bool:
        """Tell whether a channel has open endpoints."""
        return any(e.channel == channel for e in self._endpoints.values())

    def replace(self, puts: Iterable[ChannelRecord], drops: Iterable[ChannelRecord] = ()) -> None:
        """Take changed channels and those removed, already stored, as they are now."""
        for record in puts:
            self._channels[record.number] = record
        for record in drops:
            self._channels.pop(record.number, None)
        self._changed()

    def release(self, names: Iterable[str]) -> None:
        """Let transient channels go: at once, or with their last end. Others and unknown ones are left alone."""
        wanted = set(names)
        numbers = [c.number for c in self._channels.values() if c.is_transient and c.name in wanted]
        self._unused_since.update(dict.fromkeys(numbers, -math.inf))
        self._drop_unused(n for n in numbers if not self.is_used(n))

    def _sweep(self, now_s: float) -> None:
        """Drop the transient channels that have no end and were released, or that nobody has used for a while."""
        transient = [c.number for c in self._channels.values() if c.is_transient]
        if not transient:
            return
        since = {n: self._unused_since.get(n, now_s) for n in transient}
        used = {e.channel for e in self._endpoints.values()}
        self._unused_since = {n: s for n, s in since.items() if n not in used or s == -math.inf}
        idle = [n for n in transient if n not in used]
        self._drop_unused(n for n in idle if now_s - since[n] >= limits.TRANSIENT_IDLE_S)

    def _drop_unused(self, numbers: Iterable[int]) -> None:
        drops = [self._channels[number] for number in numbers]
        for channel in drops:
            try:
                self._store.drop_channel(channel.number, with_counts=True)
            except StorageError as error:  # the next look tries again
                log.warning(
                    "channel not dropped", extra={"channel": channel.name, "reason": str(error)}
                )
                return
            self._unused_since.pop(channel.number, None)
            self._dropped.append(channel.number)
            self.replace((), (channel,))

    def open(self, endpoint: EndpointRecord) -> None:
        """Add an endpoint; a repeat replaces it."""
        if endpoint.channel not in self._channels:
            raise ConfigError("no such channel number", channel=endpoint.channel)
        if len(self._endpoints) >= limits.ENDPOINTS_MAX:
            raise CapacityError(
                f"ENDPOINTS_MAX ({limits.ENDPOINTS_MAX}) endpoints are open", limit="ENDPOINTS_MAX"
            )
        self._endpoints[endpoint.endpoint] = endpoint
        self._changed()

    def close(self, endpoints: Iterable[int]) -> None:
        """Remove endpoints; unknown ones are gone already."""
        removed = [self._endpoints.pop(endpoint, None) for endpoint in endpoints]
        if any(removed):
            self._changed()

    def archive(self, finals: Iterable[ArchivedCounts]) -> None:
        """Keep the final counts of endpoints that are gone, but for those of transient channels that went before."""
        for final in finals:
            if final.channel not in self._dropped:
                self._store.archive(final)

    def archived(self) -> list[ArchivedCounts]:
        """Return what was archived."""
        return self._store.archived()

    def _changed(self) -> None:
        self._epoch += 1
        self.on_change()
