"""What one look at a node sees, as frozen values; every number is one that the data path keeps anyway. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

END_NAMES = ("none", "delivered", "dropped", "failed")

EndKey = tuple[int, int]  # end, reason


class LedgerSample(msgspec.Struct, frozen=True):
    """A sender: what it accepted, how it ended by (end, reason), and what has not ended."""

    endpoint: int
    channel: int
    accepted: int
    delivered_bytes: int
    outstanding: int
    outstanding_bytes: int
    waiting: int
    counts: dict[EndKey, int]


class HeldSample(msgspec.Struct, frozen=True):
    """What a port holds of one channel: queued messages, and views (handed over, still holding memory)."""

    channel: int
    queued: int
    queued_bytes: int
    views: int
    view_bytes: int
    oldest_view_ns: int = 0


class FlowSample(msgspec.Struct, frozen=True):
    """The receiving half of a flow; totals since it was made."""

    flow: int
    channel: int
    drained: int
    handed: int
    payload_bytes: int


class PortSample(msgspec.Struct, frozen=True):
    """One attached process."""

    port: int
    name: str
    kind: str
    pid: int
    state: str
    ledgers: tuple[LedgerSample, ...] = ()
    held: tuple[HeldSample, ...] = ()
    flows: tuple[FlowSample, ...] = ()


class LaneSample(msgspec.Struct, frozen=True):
    """One direction of a lane pair: bytes in its record ring and entries in its return ring, now."""

    source: str
    target: str
    klass: str
    record_bytes: int
    returns: int


class ArenaSample(msgspec.Struct, frozen=True):
    """Segments of one tenant and group (control: slots of control and token; bulk: of embedding and bulk)."""

    tenant: int
    group: str
    segments: int
    bytes: int
    slots: int
    slots_taken: int


class ViewSample(msgspec.Struct, frozen=True):
    """A process that holds views of a channel; `age_s` of the oldest."""

    channel: str
    holder: str
    pid: int
    views: int
    bytes: int
    age_s: float


class NodeSample(msgspec.Struct, frozen=True):
    """One look at a node. `channels` names channel numbers."""

    node: str
    at_ns: int
    ports: tuple[PortSample, ...] = ()
    lanes: tuple[LaneSample, ...] = ()
    arenas: tuple[ArenaSample, ...] = ()
    channels: dict[int, str] = {}
    unsettled: int = 0

    def channel(self, number: int) -> str:
        """Name a channel; one that the view does not know has a number."""
        return self.channels.get(number, f"#{number}")

    def views(self) -> list[ViewSample]:
        """Return who holds views, the oldest first."""
        rows = [
            ViewSample(
                self.channel(held.channel),
                port.name,
                port.pid,
                held.views,
                held.view_bytes,
                max(0.0, (self.at_ns - held.oldest_view_ns) / 1e9) if held.oldest_view_ns else 0.0,
            )
            for port in self.ports
            for held in port.held
            if held.views
        ]
        return sorted(rows, key=lambda row: -row.age_s)


def port_sample(about: dict[str, Any], seen: dict[str, Any]) -> PortSample:
    """Build a port's sample of what is known of it and what `StateSampler.sample` saw."""
    return PortSample(
        **about,
        ledgers=tuple(_pick(LedgerSample, row) for row in seen["ledgers"]),
        held=tuple(_pick(HeldSample, row) for row in seen["held"]),
        flows=tuple(_pick(FlowSample, row) for row in seen["flows"]),
    )


def _pick(kind: type[Any], row: dict[str, Any]) -> Any:
    return kind(**{name: row[name] for name in kind.__struct_fields__})
