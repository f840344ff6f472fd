"""A node's metrics in Prometheus' text format: names `fabric_*`, base units, label sets bounded by what there can be.

Pure: values in, text out. Counters are totals since the daemon was started; a restart is a counter's reset, as
Prometheus expects. Meanings: docs/telemetry.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fabric.telemetry.samples import END_NAMES, HeldSample, NodeSample
from fabric.telemetry.totals import Totals

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: counters of a session between two nodes that are exported, as the engine names them
SESSION_COUNTERS = (
    "messages_in", "messages_out", "payload_bytes_in", "payload_bytes_out", "retransmits", "repeats", "crc_errors",
    "chunks_late", "gaps", "breaks", "silent_breaks", "protocol_breaks", "transfers_done_in", "transfers_done_out",
    "transfers_aborted", "transfers_stalled", "backlog_stalls", "lane_stalls", "slot_stalls", "foreign",
)  # fmt: skip
_GROUPS = ("control", "bulk")


class Readings(msgspec.Struct, kw_only=True):
    """Everything that is exported, as it is now."""

    sample: NodeSample
    totals: Totals
    reasons: Sequence[str]  #: names of reasons by number
    version: str
    uptime_s: float
    credit: Mapping[int, tuple[int, int]] = {}  #: channel → messages and bytes its receivers grant
    engine: Mapping[str, Any] = {}  #: `Engine.stats()`
    peers: Mapping[int, str] = {}  #: session → name of the other node
    restarts: Mapping[tuple[str, str], int] = {}  #: (kind, name) of a supervised process → restarts
    archived: Mapping[tuple[int, int], int] = {}  #: (channel, end) → messages
    limits: Mapping[str, int] = {}
    rails: Sequence[Mapping[str, Any]] = ()  #: a row each: peer, rail, state, terms and counts
    rail_changes: Mapping[tuple[str, int, str], int] = {}  #: (peer, rail, state) → times entered
    events: Mapping[str, int] = {}
    events_lost: int = 0
    downgrades: int = 0
    joins: Mapping[str, Mapping[str, int]] = {}  #: name → its counters
    caches: Mapping[int, Mapping[str, int]] = {}  #: tenant → counters of its cache


class _Once(Collector):
    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the readings."""
        yield from _node(self._readings)
        yield from _messages(self._readings)
        yield from _held(self._readings)
        yield from _rings(self._readings)
        yield from _arenas(self._readings)
        yield from _links(self._readings)
        yield from _rails(self._readings)
        yield from _joins(self._readings)
        yield from _caches(self._readings)
        yield from _told(self._readings)


def exposition(readings: Readings) -> bytes:
    """Return the metrics as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(readings))
    return generate_latest(registry)


def _gauge(name: str, text: str, labels: Sequence[str], rows: Mapping[Any, float]) -> Metric:
    return _filled(GaugeMetricFamily(f"fabric_{name}", text, labels=labels), rows)


def _counter(name: str, text: str, labels: Sequence[str], rows: Mapping[Any, float]) -> Metric:
    return _filled(CounterMetricFamily(f"fabric_{name}", text, labels=labels), rows)


def _filled(family: Any, rows: Mapping[Any, float]) -> Metric:
    for key, value in rows.items():
        family.add_metric(
            [str(part) for part in (key if isinstance(key, tuple) else (key,))], value
        )
    metric: Metric = family
    return metric


def _node(r: Readings) -> Iterator[Metric]:
    yield _gauge("info", "A node; always 1.", ("node", "version"), {(r.sample.node, r.version): 1})
    yield _gauge("uptime_seconds", "Since this daemon was started.", (), {(): r.uptime_s})
    ports: dict[tuple[str, str], float] = {}
    for port in r.sample.ports:
        ports[port.kind, port.state] = ports.get((port.kind, port.state), 0) + 1
    yield _gauge("ports", "Attached processes.", ("kind", "state"), ports)
    yield _gauge(
        "ports_unsettled",
        "Dead or leaving ports whose messages are being settled.",
        (),
        {(): r.sample.unsettled},
    )
    yield _counter(
        "process_restarts", "Restarts of supervised processes.", ("kind", "name"), dict(r.restarts)
    )


def _joins(r: Readings) -> Iterator[Metric]:
    ends: dict[tuple[str, str, str], float] = {}
    parts: dict[tuple[str, str], float] = {}
    waiting: dict[str, dict[str, float]] = {"waiting": {}, "waiting_bytes": {}}
    for join, counters in r.joins.items():
        for name, value in counters.items():
            outcome, _, reason = name.partition("_")
            if name in waiting:
                waiting[name][join] = value
            elif name in ("late", "duplicate", "repeated"):
                parts[join, name] = value
            else:
                ends[join, outcome, reason] = value
    by_join = ("join",)
    yield _counter(
        "join_requests",
        "Requests of a join by how they ended.",
        ("join", "outcome", "reason"),
        ends,
    )
    yield _counter(
        "join_parts",
        "Parts that came too late, twice, or again after a restart.",
        ("join", "what"),
        parts,
    )
    yield _gauge("join_waiting_requests", "That lack a part.", by_join, waiting["waiting"])
    yield _gauge("join_waiting_bytes", "Payload of those.", by_join, waiting["waiting_bytes"])


def _caches(r: Readings) -> Iterator[Metric]:
    by_tenant = ("tenant",)
    for name, text in (
        ("entries", "Outputs that the cache holds."),
        ("bytes", "What they take."),
        ("capacity_bytes", "What they may take."),
    ):
        yield _gauge(f"cache_{name}", text, by_tenant, {t: c[name] for t, c in r.caches.items()})
    events = {
        (tenant, name): float(counters[name])
        for tenant, counters in r.caches.items()
        for name in ("hits", "misses", "puts", "refused", "evictions", "torn")
    }
    yield _counter(
        "cache_events", "What was asked of the cache, and came of it.", ("tenant", "event"), events
    )


def _messages(r: Readings) -> Iterator[Metric]:
    name = r.sample.channel
    ended = {
        (name(channel), END_NAMES[end], r.reasons[reason]): float(count)
        for (channel, end, reason), count in r.totals.ended.items()
    }
    by_channel = ("channel",)
    yield _counter(
        "messages_accepted",
        "Messages that senders of this node accepted.",
        by_channel,
        _named(r, r.totals.accepted),
    )
    yield _counter(
        "messages_ended",
        "Messages of senders of this node by how they ended.",
        ("channel", "end", "reason"),
        ended,
    )
    yield _counter(
        "payload_delivered_bytes",
        "Payload that was delivered.",
        by_channel,
        _named(r, r.totals.delivered_bytes),
    )
    archived = {
        (name(channel), END_NAMES[end]): float(n) for (channel, end), n in r.archived.items()
    }
    yield _counter(
        "messages_archived",
        "Messages of senders that are gone, by end.",
        ("channel", "end"),
        archived,
    )
    sums: dict[str, dict[int, float]] = {"outstanding": {}, "outstanding_bytes": {}, "waiting": {}}
    for port in r.sample.ports:
        for ledger in port.ledgers:
            for key, row in sums.items():
                row[ledger.channel] = row.get(ledger.channel, 0) + getattr(ledger, key)
    yield _gauge(
        "outstanding_messages",
        "Accepted, and not ended.",
        by_channel,
        _named(r, sums["outstanding"]),
    )
    yield _gauge(
        "outstanding_bytes", "Payload of those.", by_channel, _named(r, sums["outstanding_bytes"])
    )
    yield _gauge(
        "waiting_messages",
        "Of those, without a consumer to go to.",
        by_channel,
        _named(r, sums["waiting"]),
    )
    yield from _credit(r, sums)


def _credit(r: Readings, sums: Mapping[str, Mapping[int, float]]) -> Iterator[Metric]:
    left_messages, left_bytes = {}, {}
    for channel, (messages, size) in r.credit.items():
        out = sums["outstanding"].get(channel, 0) - sums["waiting"].get(channel, 0)
        left_messages[channel] = max(0.0, messages - out)
        left_bytes[channel] = max(0.0, size - sums["outstanding_bytes"].get(channel, 0))
    granted = {channel: float(messages) for channel, (messages, _) in r.credit.items()}
    yield _gauge(
        "credit_messages",
        "Messages that receivers let be outstanding to them.",
        ("channel",),
        _named(r, granted),
    )
    yield _gauge(
        "credit_left_messages", "Of those, still free.", ("channel",), _named(r, left_messages)
    )
    yield _gauge(
        "credit_left_bytes", "Payload bytes still free.", ("channel",), _named(r, left_bytes)
    )


def _held(r: Readings) -> Iterator[Metric]:
    rows: dict[int, list[HeldSample]] = {}
    for port in r.sample.ports:
        for held in port.held:
            rows.setdefault(held.channel, []).append(held)
    for field, name, text in (
        ("queued", "queue_messages", "Messages that a receiver has not been handed."),
        ("queued_bytes", "queue_bytes", "Payload of those."),
        ("views", "views", "Messages handed over that still hold memory."),
        ("view_bytes", "view_bytes", "Payload of those."),
    ):
        sums = {
            channel: float(sum(getattr(h, field) for h in held)) for channel, held in rows.items()
        }
        yield _gauge(name, text, ("channel",), _named(r, sums))
    ages: dict[str, float] = {}
    for view in r.sample.views():
        ages[view.channel] = max(ages.get(view.channel, 0.0), view.age_s)
    yield _gauge("view_oldest_seconds", "Age of the view that is held longest.", ("channel",), ages)


def _rings(r: Readings) -> Iterator[Metric]:
    lanes: dict[str, float] = {}
    sums: dict[str, dict[str, float]] = {
        name: {} for name in ("bytes", "bytes_most", "returns", "returns_most")
    }
    for lane in r.sample.lanes:
        lanes[lane.klass] = lanes.get(lane.klass, 0) + 1
        for name, value in (("bytes", lane.record_bytes), ("returns", lane.returns)):
            row, most = sums[name], sums[f"{name}_most"]
            row[lane.klass] = row.get(lane.klass, 0) + value
            most[lane.klass] = max(most.get(lane.klass, 0), value)
    by_class = ("class",)
    yield _gauge("lanes", "Directions of lanes between ports.", by_class, lanes)
    yield _gauge("lane_bytes", "Records in the lanes, not taken over yet.", by_class, sums["bytes"])
    yield _gauge("lane_bytes_most", "Of the fullest lane.", by_class, sums["bytes_most"])
    yield _gauge("return_entries", "Ends and credit on their way back.", by_class, sums["returns"])
    yield _gauge(
        "return_entries_most", "Of the fullest return ring.", by_class, sums["returns_most"]
    )


def _arenas(r: Readings) -> Iterator[Metric]:
    for field, name, text in (
        ("segments", "arena_segments", "Segments of shared memory."),
        ("bytes", "arena_bytes", "Payload bytes of those."),
        ("slots", "arena_slots", "Slots of those."),
        ("slots_taken", "arena_slots_taken", "Slots that hold a message or a loan."),
    ):
        rows = {(a.tenant, a.group): float(getattr(a, field)) for a in r.sample.arenas}
        yield _gauge(name, text, ("tenant", "group"), rows)


def _links(r: Readings) -> Iterator[Metric]:
    rows: dict[str, dict[tuple[str, str, str], float]] = {}
    for group in r.engine.get("groups", ()):
        rail, kind = divmod(group["group"], len(_GROUPS))
        key = r.peers.get(group["session"], "?"), str(rail), _GROUPS[kind]
        for field in (
            "up",
            "bytes_in",
            "bytes_out",
            "frames_in",
            "frames_out",
            "rtt_ns",
            "backlog_bytes",
        ):
            rows.setdefault(field, {})[key] = float(group.get(field, 0))
    labels = ("peer", "rail", "group")
    yield _gauge("link_up", "1 when the connection is there.", labels, rows.get("up", {}))
    rtt = {key: value / 1e9 for key, value in rows.get("rtt_ns", {}).items()}
    yield _gauge("link_rtt_seconds", "Smoothed round trip of the connection.", labels, rtt)
    yield _gauge(
        "link_backlog_bytes",
        "Frames that wait for the connection.",
        labels,
        rows.get("backlog_bytes", {}),
    )
    for field in ("bytes", "frames"):
        moved = {
            (*key, way): value
            for way in ("in", "out")
            for key, value in rows.get(f"{field}_{way}", {}).items()
        }
        yield _counter(
            f"link_{field}", f"{field.capitalize()} on the wire.", (*labels, "direction"), moved
        )
    counts = {
        (r.peers.get(session["session"], "?"), name): float(session.get(name, 0))
        for session in r.engine.get("sessions", ())
        for name in SESSION_COUNTERS
    }
    yield _counter(
        "session_events", "What happened in the session with a node.", ("peer", "event"), counts
    )


_RAIL_GAUGES = (
    ("rate", "rail_rate_bytes", "Bytes a second that the rail delivers while it is busy.", 1.0),
    ("rate_now", "rail_rate_now_bytes", "The same, bounded by its present silence.", 1.0),
    ("base_ns", "rail_base_seconds", "Least time from posting to acknowledgement lately.", 1e-9),
    ("inflight", "rail_inflight_bytes", "Posted, and not acknowledged by the receiver.", 1.0),
    ("window", "rail_window_bytes", "What may be in flight.", 1.0),
    ("penalty", "rail_penalty", "Failures, half forgotten every few seconds.", 1.0),
    ("is_primary", "rail_primary", "1 for the rail that records take.", 1.0),
)
_RAIL_COUNTERS = (
    ("delivered", "rail_delivered_bytes", "Acknowledged by the receiver, in this session."),
    ("resent", "rail_resent_bytes", "Sent again on another rail, in this session."),
    ("failures", "rail_failures", "Times that the rail was lost while up, in this session."),
)


def _rails(r: Readings) -> Iterator[Metric]:
    labels = ("peer", "rail")
    states = {(row["peer"], row["rail"], row["state"]): 1.0 for row in r.rails}
    yield _gauge("rail_state", "1 for the state that a rail is in.", (*labels, "state"), states)
    for field, name, text, scale in _RAIL_GAUGES:
        found = {(row["peer"], row["rail"]): float(row.get(field, 0)) * scale for row in r.rails}
        yield _gauge(name, text, labels, found)
    for field, name, text in _RAIL_COUNTERS:
        found = {(row["peer"], row["rail"]): float(row.get(field, 0)) for row in r.rails}
        yield _counter(name, text, labels, found)
    yield _counter(
        "rail_changes",
        "Times that a rail entered a state.",
        (*labels, "state"),
        dict(r.rail_changes),
    )


def _told(r: Readings) -> Iterator[Metric]:
    yield _counter(
        "limits_reached", "Errors that named a limit, by its name.", ("limit",), dict(r.limits)
    )
    yield _counter("events", "Events by kind.", ("kind",), dict(r.events))
    yield _counter("events_lost", "Events pushed out of the log.", (), {(): r.events_lost})
    yield _counter("downgrades", "Paths worse than the one preferred.", (), {(): r.downgrades})


def _named(r: Readings, rows: Mapping[int, float]) -> dict[str, float]:
    return {r.sample.channel(channel): float(value) for channel, value in rows.items()}
