"""Look at the node once a second, and when metrics are asked for: samples, totals, drop and view events.

Reads only what the data path keeps in shared memory anyway; no port is asked, none is held up. Belongs to the daemon's
loop. A look that fails at one port leaves that port out.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from fabric import errors, limits
from fabric.controlplane.audit import END_NAMES, REASON_NAMES
from fabric.controlplane.lanes import CLASSES
from fabric.registry.records import ArchivedCounts
from fabric.telemetry.events import DROPPED, FAILED, VIEW_HELD
from fabric.telemetry.samples import (
    ArenaSample,
    LaneSample,
    LedgerSample,
    NodeSample,
    PortSample,
    ViewSample,
    port_sample,
)
from fabric.telemetry.totals import Growth, Totals

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon
    from fabric.controlplane.ports import Port

GROUPS = ("control", "bulk")
_EVENT_OF = {2: DROPPED, 3: FAILED}


class Observer:
    """One per daemon. `sample` is the last look."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._states: dict[int, Any] = {}  # port → native sampler
        self._lanes: dict[int, Any] = {}
        self._owners: dict[int, str] = {}  # sender endpoint → name of its port, as last seen
        self._warned: dict[
            tuple[str, int, str], float
        ] = {}  # holder and channel → moment of the view told of
        self._unreadable: set[int] = set()
        self._transient: dict[
            int, None
        ] = {}  # numbers of transient channels, in the order they were seen
        self.totals = Totals()
        self.archived: Counter[tuple[int, int]] = Counter()  # (channel, end) → messages
        self.limits: Counter[str] = Counter()
        self.sample = NodeSample(daemon.context.name, 0)

    def start(self) -> None:
        """Count limits that are reached from now on."""
        errors.on_limit = self.limit_reached
        self._daemon.context.keeper.on_not_kept = self.not_kept

    def not_kept(self, key: str, limit: str) -> None:
        """Tell that something does not outlive this daemon: the keeper reached a limit."""
        self.limit_reached(limit)
        self._daemon.context.events.add("not kept", severity="warning", reason=limit, key=key)

    def limit_reached(self, name: str) -> None:
        """Count a limit by its name; a name that `fabric.limits` does not have, by "other"."""
        self.limits[name if hasattr(limits, name) else "other"] += 1

    # ---------------------------------------------------------------- looks
    def tick(self) -> None:
        """Look, and tell of what ended badly and of views held too long."""
        self.look()
        self._tell_of_views(self.sample)

    def fresh(self) -> NodeSample:
        """Return a look that is at most `limits.METRICS_FRESH_S` old."""
        if time.monotonic_ns() - self.sample.at_ns > limits.METRICS_FRESH_S * 1e9:
            self.look()
        return self.sample

    def look(self) -> None:
        """Sample everything; totals grow, and messages that were dropped or failed become events."""
        daemon = self._daemon
        ports = tuple(self._port(port) for port in daemon.ports)
        self._forget()
        self.sample = NodeSample(
            daemon.context.name,
            time.monotonic_ns(),
            ports,
            self._lane_samples(),
            tuple(self._arena_samples()),
            {channel.number: channel.name for channel in daemon.registry.view.channels},
            daemon.death.unsettled_count + daemon.wiring.leaving_count,
        )
        for port in ports:
            self._owners.update({ledger.endpoint: port.name for ledger in port.ledgers})
        self._tell_of_ends(self.totals.take(row for port in ports for row in port.ledgers))
        self._forget_transient()

    def settle(self, finals: list[ArchivedCounts]) -> None:
        """Take the final counts of senders that are gone."""
        rows = [_final(final) for final in finals]
        self._tell_of_ends(self.totals.take(rows))
        for final in finals:
            for end, _, count in final.counts:
                self.archived[final.channel, end] += count

    def _forget_transient(self) -> None:
        """Let go of what was counted of transient channels that are gone, also what was only counted afterwards."""
        view = self._daemon.registry.view
        self._transient.update(dict.fromkeys(view.transient()))
        while len(self._transient) > limits.CHANNELS_MAX:  # the oldest are long settled
            del self._transient[next(iter(self._transient))]
        gone = self._transient.keys() - {channel.number for channel in view.channels}
        if not gone.isdisjoint(self.totals.accepted.keys() | {key[0] for key in self.archived}):
            self.totals.forget(gone)
            kept = {key: n for key, n in self.archived.items() if key[0] not in gone}
            self.archived = Counter(kept)

    def _port(self, port: Port) -> PortSample:
        state = "dead" if not port.is_alive else "suspect" if port.is_suspect else "ready"
        about: dict[str, Any] = {
            "port": port.port,
            "name": port.name,
            "kind": port.kind,
            "pid": port.pid,
            "state": state,
        }
        try:
            sampler = self._states.get(port.port)
            if sampler is None:
                sampler = self._daemon.context.native.StateSampler(port.state_fd)
                self._states[port.port] = sampler
            return port_sample(about, sampler.sample())
        except errors.FabricError as error:
            if port.port not in self._unreadable:
                self._unreadable.add(port.port)
                self._daemon.context.events.add(
                    "state unreadable", port=port.name, reason=str(error)
                )
            return PortSample(**about)

    def _lane_samples(self) -> tuple[LaneSample, ...]:
        names = {port.port: port.name for port in self._daemon.ports}
        rows = []
        for lane in self._daemon.lanes.all():
            sampler = self._lanes.get(lane.lane)
            if sampler is None:
                sampler = self._lanes[lane.lane] = self._daemon.context.native.LaneSampler(lane.fd)
            for side in (0, 1):
                seen = sampler.sample(side)
                ends = names.get(lane.ports[side], ""), names.get(lane.ports[1 - side], "")
                rows.append(
                    LaneSample(*ends, CLASSES[lane.klass], seen["record_bytes"], seen["returns"])
                )
        return tuple(rows)

    def _arena_samples(self) -> list[ArenaSample]:
        sums: dict[tuple[int, int], list[int]] = {}
        for segment in self._daemon.segments.all():
            row = sums.setdefault((segment.tenant, segment.group), [0, 0, 0, 0])
            seen = self._daemon.context.native.sample_segment(segment.fd)
            more = (1, segment.size_bytes, seen["slot_count"], seen["taken"])
            row[:] = [have + new for have, new in zip(row, more, strict=True)]
        return [
            ArenaSample(tenant, GROUPS[group], *row)
            for (tenant, group), row in sorted(sums.items())
        ]

    def _forget(self) -> None:
        """Let go of the mappings of ports and lanes that are gone."""
        ports = {port.port for port in self._daemon.ports}
        self._states = {port: kept for port, kept in self._states.items() if port in ports}
        self._unreadable &= ports
        lanes = {lane.lane for lane in self._daemon.lanes.all()}
        self._lanes = {lane: kept for lane, kept in self._lanes.items() if lane in lanes}
        while len(self._owners) > limits.ENDPOINTS_MAX:
            del self._owners[next(iter(self._owners))]

    # ---------------------------------------------------------------- events
    def _tell_of_ends(self, grown: list[Growth]) -> None:
        """One event for each (channel, sender, end, reason) of a look, with how many it stands for."""
        sums: Counter[tuple[str, str, int, int]] = Counter()
        for growth in grown:
            if growth.end in _EVENT_OF:
                name, sender = (
                    self.sample.channel(growth.channel),
                    self._owners.get(growth.endpoint, ""),
                )
                sums[name, sender, growth.end, growth.reason] += growth.messages
        for (channel, sender, end, reason), count in sums.items():
            words = REASON_NAMES[reason]
            self._daemon.context.events.add(
                _EVENT_OF[end],
                channel=channel,
                port=sender,
                reason=words,
                count=count,
                text=f"{count} of {sender or 'a sender that is gone'} {END_NAMES[end]}: {words}",
            )

    def _tell_of_views(self, sample: NodeSample) -> None:
        """One event for each view that is held too long: the oldest of a holder and channel, then the next."""
        told = {}
        for view in sample.views():
            if view.age_s < limits.VIEW_HELD_WARN_S:
                continue
            key, since_s = (view.holder, view.pid, view.channel), sample.at_ns / 1e9 - view.age_s
            known = self._warned.get(key)
            told[key] = since_s
            if known is None or abs(known - since_s) > limits.HEARTBEAT_MS / 1000:
                self._warn(view)
        self._warned = told

    def _warn(self, view: ViewSample) -> None:
        self._daemon.context.events.add(
            VIEW_HELD,
            channel=view.channel,
            port=view.holder,
            reason="not released",
            text=f"{view.holder} (pid {view.pid}) holds {view.views} messages of {view.channel}, {view.bytes} bytes;"
            f" the oldest for {view.age_s:.1f} s. Release views, or copy what is to be kept",
            pid=view.pid,
            age_s=round(view.age_s, 1),
        )


def _final(final: ArchivedCounts) -> LedgerSample:
    counts: dict[tuple[int, int], int] = {}
    for end, reason, count in final.counts:
        counts[end, reason] = counts.get((end, reason), 0) + count
    return LedgerSample(
        final.endpoint, final.channel, final.accepted, final.delivered_bytes, 0, 0, 0, counts
    )


def observed(observer: Observer) -> dict[str, Any]:
    """Return what a status says of the last look: holders of views, suspects, memory, limits reached, what settles."""
    sample = observer.fresh()
    views = sample.views()
    return {
        "holders": [
            {
                **{key: getattr(view, key) for key in view.__struct_fields__},
                "age_s": round(view.age_s, 1),
            }
            for view in views[: limits.HOLDERS_SHOWN]
        ],
        "holders_more": max(0, len(views) - limits.HOLDERS_SHOWN),
        "suspects": [
            f"{port.name} (pid {port.pid})" for port in sample.ports if port.state == "suspect"
        ],
        "unsettled": sample.unsettled,
        "arenas": [
            {key: getattr(arena, key) for key in arena.__struct_fields__} for arena in sample.arenas
        ],
        "limits_reached": dict(sorted(observer.limits.items())),
    }
