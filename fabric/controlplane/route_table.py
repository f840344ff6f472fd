"""What this node tells its senders of the targets of built-in policies: weight, rank, distance, and others' load.

Belongs to the daemon's loop. Rows follow the view; the load (what the other senders of this node have under way to a
target) is counted anew every `limits.ROUTE_TABLE_MS`, where two senders here share a channel whose policy looks at it.
Senders on other nodes are not counted.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fabric import errors, limits
from fabric.config.routes import BUILT_IN, RouteSpec, name_of, parse
from fabric.controlplane.flows import OutFlow
from fabric.controlplane.stage_parts import StageParts
from fabric.registry.records import ChannelRecord, EndpointRecord, View

Row = tuple[int, float, int, int, int]  #: endpoint, weight, rank, distance, load
LOADED: Final = frozenset({"least_outstanding", "hash_key", "locality", "deadline"})
_REPLICA: Final = re.compile(r"(.+)-\d+")


def base_name(name: str) -> str:
    """Return the module that a replica belongs to: `decode` for `decode-2`."""
    found = _REPLICA.fullmatch(name)
    return found[1] if found else name


def rows_of(spec: RouteSpec, targets: list[EndpointRecord], own_node: int) -> dict[int, Row]:
    """Return a row for each target; pure.

    A weight is its module's, shared by the module's replicas; a name may also be one replica's. Where weights are
    given, who is not named has none.
    """
    weights = spec.params.get("weights") or {}
    order = spec.params.get("order") or []

    def known_as(record: EndpointRecord, names: Any) -> str:
        return record.port_name if record.port_name in names else base_name(record.port_name)

    shares = Counter(known_as(t, weights) for t in targets)
    rows = {}
    for target in targets:
        named = known_as(target, weights)
        weight = weights.get(named, 0.0) / shares[named] if weights else 1.0
        placed = known_as(target, order)
        rank = order.index(placed) if placed in order else len(order)
        rows[target.endpoint] = (target.endpoint, weight, rank, int(target.node != own_node), 0)
    return rows


class RouteTable:
    """One per daemon; `row` is for a flow that is being opened, `tell` keeps the rest current."""

    def __init__(self, parts: StageParts) -> None:
        self._context = parts.context
        self._ports = parts.ports
        self._flows = parts.flows
        self._endpoints = parts.endpoints
        self._registry = parts.registry
        self._told: dict[int, dict[int, Row]] = {}  # by sender
        self._loads: dict[int, Counter[int]] = {}  # by sender: of the others, by target
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None

    def row(self, flow: OutFlow) -> list[Any] | None:
        """Return what the sender of a flow is to know of its target; None where no built-in policy chooses."""
        view = self._registry.view
        channel = next((c for c in view.channels if c.number == flow.channel), None)
        if channel is None or name_of(channel.route) not in BUILT_IN:
            return None
        row = self._rows(channel, view).get(flow.target_endpoint)
        return list(row) if row is not None else None

    def tell(self, view: View, channels: Iterable[ChannelRecord]) -> None:
        """Tell local senders what has changed of their targets on these channels."""
        routed = {c.number: c for c in channels if name_of(c.route) in BUILT_IN}
        if not routed:
            return
        senders = [e for e in self._senders() if e.channel in routed]
        rows = {number: self._rows(channel, view) for number, channel in routed.items()}
        alive = {record.endpoint for record in self._senders()}
        self._told = {e: told for e, told in self._told.items() if e in alive}
        for sender in senders:
            self._tell_sender(sender, rows[sender.channel])
        shared = Counter(e.channel for e in senders if name_of(routed[e.channel].route) in LOADED)
        if max(shared.values(), default=0) > 1 and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().create_task(self._look())

    def _senders(self) -> list[EndpointRecord]:
        return [record for record in self._endpoints.all() if record.role == "sender"]

    def _rows(self, channel: ChannelRecord, view: View) -> dict[int, Row]:
        last = len(channel.transforms)
        targets = [
            e
            for e in view.endpoints
            if e.channel == channel.number and e.role == "receiver" and e.stage in (0, last)
        ]
        return rows_of(parse(channel.route or ""), targets, self._context.number)

    def _tell_sender(self, sender: EndpointRecord, rows: dict[int, Row]) -> None:
        loads: Mapping[int, int] = self._loads.get(sender.endpoint, {})
        rows = {e: (*row[:4], loads.get(e, 0)) for e, row in rows.items()}
        told = self._told.get(sender.endpoint, {})
        changed = [list(row) for endpoint, row in rows.items() if told.get(endpoint) != row]
        self._told[sender.endpoint] = rows
        port = self._ports.get(sender.port)
        if changed and port is not None and port.is_alive:
            fields = {"endpoint": sender.endpoint, "rows": changed}

            async def push() -> None:
                try:
                    await port.push("route_table", fields)
                except errors.FabricError as error:
                    self._told.pop(sender.endpoint, None)
                    reason = str(error)
                    self._context.events.add("route_table not told", port=port.port, reason=reason)

            task = asyncio.get_running_loop().create_task(push())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    # ---------------------------------------------------------------- load
    async def _look(self) -> None:
        """Count loads as long as senders here share a channel whose policy looks at them."""
        while shared := self._shared():
            busy = self._busy(shared)
            for channel, senders in shared:
                total: Counter[int] = Counter()
                for sender in senders:
                    total += busy.get(sender.endpoint, Counter())
                rows = self._rows(channel, self._registry.view)
                for sender in senders:
                    self._loads[sender.endpoint] = total - busy.get(sender.endpoint, Counter())
                    self._tell_sender(sender, rows)
            await asyncio.sleep(limits.ROUTE_TABLE_MS / 1000)
        self._loads.clear()

    def _shared(self) -> list[tuple[ChannelRecord, list[EndpointRecord]]]:
        by_channel: dict[int, list[EndpointRecord]] = {}
        for sender in self._senders():
            by_channel.setdefault(sender.channel, []).append(sender)
        return [
            (channel, by_channel[channel.number])
            for channel in self._registry.view.channels
            if name_of(channel.route) in LOADED and len(by_channel.get(channel.number, ())) > 1
        ]

    def _busy(
        self, shared: list[tuple[ChannelRecord, list[EndpointRecord]]]
    ) -> dict[int, Counter[int]]:
        """Return what is under way, by sender and target."""
        ports = {sender.port for _, senders in shared for sender in senders}
        found: dict[int, Counter[int]] = {}
        for number in ports:
            port = self._ports.get(number)
            if port is None or not port.is_alive:
                continue
            for flow, count in outstanding(self._context.native, port.state_fd).items():
                half = self._flows.outs.get(flow)
                if half is not None:
                    found.setdefault(half.endpoint, Counter())[half.target_endpoint] += count
        return found


def outstanding(native: Any, state_fd: int) -> Counter[int]:
    """Count a port's messages that have not ended, by flow."""
    state = native.inspect_state(state_fd)
    return Counter(row["flow"] for ledger in state["ledgers"] for row in ledger["outstanding"])
