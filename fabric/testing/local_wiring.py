"""Flows and lanes of a `LocalFabric`: made when two ends of a channel meet, ended when one leaves.

A mixin of `fabric.testing.local`; its pushes wait for the ports, so it runs on threads of its own, one at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fabric import _native, errors, limits
from fabric.dataplane.framing import FrameSocket, close_fds

log = logging.getLogger("fabric.testing")

CLASSES = ("control", "token", "embedding", "bulk")
PEER_LOST, _CLOSED = 6, 10  # layout.hpp Reason
_HANDED = "handed"  # state of a held entry, as `inspect_state` names it
_POLL_S = 0.005
_SENDS = frozenset({"sender", "requester"})


@dataclass(eq=False)
class LocalPort:
    """One attached process and its connection."""

    port: int
    incarnation: int
    name: str
    fds: list[int]  # state, doorbell, event
    frames: FrameSocket | None = None
    pushes: dict[int, tuple[threading.Event, list[dict[str, Any]]]] = field(default_factory=dict)
    is_alive: bool = True


@dataclass(eq=False)
class LocalChannel:
    """One declared channel."""

    name: str
    number: int
    fields: dict[str, Any]
    schemas: dict[int, str] = field(default_factory=dict)  # that its ends brought, by type id


@dataclass(eq=False)
class LocalEndpoint:
    """One end of a channel; `reply` is the endpoint of the way back."""

    endpoint: int
    role: str
    channel: LocalChannel
    port: LocalPort
    reply: int
    messages: int
    bytes: int


@dataclass(eq=False)
class LocalFlow:
    """One flow, with what it takes to end it."""

    flow: int
    source: LocalEndpoint
    target: LocalEndpoint
    reply_flow: int = 0


class LocalWiring:
    """What `LocalFabric` knows of lanes and flows."""

    _node: int
    _numbers: itertools.count[int]
    _lock: threading.RLock
    _wiring: threading.Lock
    ports: dict[int, LocalPort]
    endpoints: dict[int, LocalEndpoint]
    flows: dict[int, LocalFlow]
    lanes: dict[tuple[int, int, int], tuple[int, int]]

    def _push(
        self, port: LocalPort, op: str, fields: dict[str, Any], fds: Sequence[int] = ()
    ) -> dict[str, Any]:
        raise NotImplementedError

    def _wire(self, new: LocalEndpoint) -> None:
        """Make the flows between a new endpoint and the other ends of its channel."""
        with self._wiring:
            others = [
                e
                for e in list(self.endpoints.values())
                if e.channel is new.channel and (e.role in _SENDS) != (new.role in _SENDS)
            ]
            for other in others:
                source, target = (new, other) if new.role in _SENDS else (other, new)
                try:
                    self._connect(source, target)
                except errors.FabricError as error:
                    log.warning(
                        "flow %s → %s not made: %s", source.port.name, target.port.name, error
                    )

    def _connect(self, source: LocalEndpoint, target: LocalEndpoint) -> None:
        if not (source.port.is_alive and target.port.is_alive):
            return
        if any(f.source is source and f.target is target for f in self.flows.values()):
            return  # the other end was opened meanwhile and made it
        flow = LocalFlow(self._node << 48 | next(self._numbers), source, target)
        lane = self._lane(source.port, target.port, source.channel.fields["klass"])
        if source.channel.fields["pattern"] in ("request", "scatter"):
            flow.reply_flow = self._node << 48 | next(self._numbers)
        self._add_flow_in(
            target.port, target.endpoint, flow.flow, lane, source.port, target, flow.reply_flow
        )
        if flow.reply_flow:
            self._add_flow_in(source.port, source.reply, flow.reply_flow, lane, target.port, target)
            self._add_flow_out(
                target.port, target.reply, flow.reply_flow, lane, source.reply, target, 0
            )
        self._add_flow_out(
            source.port, source.endpoint, flow.flow, lane, target.endpoint, target, flow.reply_flow
        )
        self.flows[flow.flow] = flow

    def _add_flow_in(
        self,
        port: LocalPort,
        endpoint: int,
        flow: int,
        lane: int,
        producer: LocalPort,
        credit: LocalEndpoint,
        reply_flow: int = 0,
    ) -> None:
        fields = {
            "endpoint": endpoint, "flow": flow, "lane": lane, "producer_port": producer.port,
            "messages": credit.messages, "bytes": credit.bytes, "reply_flow": reply_flow,
        }  # fmt: skip
        self._push(port, "flow_in", fields)

    def _add_flow_out(
        self,
        port: LocalPort,
        endpoint: int,
        flow: int,
        lane: int,
        target: int,
        credit: LocalEndpoint,
        reply_flow: int,
    ) -> None:
        fields = {
            "endpoint": endpoint, "flow": flow, "lane": lane, "target_endpoint": target, "messages": credit.messages,
            "bytes": credit.bytes, "generation": 1, "after_drain": False,
        }  # fmt: skip
        self._push(port, "flow_out", {**fields, "reply_flow": reply_flow} if reply_flow else fields)

    def _lane(self, one: LocalPort, other: LocalPort, klass: str) -> int:
        if one is other:
            raise errors.ConfigError("both ends of a channel in one port; attach a second port")
        low, high = sorted((one, other), key=lambda p: p.port)
        key = (low.port, high.port, CLASSES.index(klass))
        if key not in self.lanes:
            fd = _native.create_lane_pair(
                key[2], low.port, low.incarnation, high.port, high.incarnation
            )
            lane = next(self._numbers)
            self.lanes[key] = (lane, fd)
            for side, port, peer in ((0, low, high), (1, high, low)):
                fields = {
                    "lane": lane,
                    "klass": key[2],
                    "side": side,
                    "peer_port": peer.port,
                    "peer_incarnation": peer.incarnation,
                }
                self._push(port, "lane", fields, (fd, *peer.fds[1:]))
        return self.lanes[key][0]

    def _settle_closed(self, endpoint: LocalEndpoint) -> None:
        """End the flows of an endpoint that its living process closed; what it was handed may be acknowledged first."""
        if endpoint.role not in _SENDS:
            self._close_flows(endpoint)
            deadline = time.monotonic() + limits.CLOSE_S
            while time.monotonic() < deadline and self._has_unacknowledged(endpoint):
                time.sleep(_POLL_S)
        self._unwire(endpoint, None, _CLOSED)

    def _close_flows(self, endpoint: LocalEndpoint) -> None:
        with self._wiring:
            for flow in [f for f in self.flows.values() if f.target is endpoint]:
                with contextlib.suppress(errors.FabricError):
                    self._push(flow.source.port, "flow_close", {"flow": flow.flow})

    def _has_unacknowledged(self, endpoint: LocalEndpoint) -> bool:
        with self._wiring:
            flows = {f.flow for f in self.flows.values() if f.target is endpoint}
            if not endpoint.port.fds:
                return False
            held = _native.inspect_state(endpoint.port.fds[0])["held"]
        return any(e["flow"] in flows and e["state"] == _HANDED for e in held)

    def _unwire(self, endpoint: LocalEndpoint, handed_upto: int | None, reason: int) -> None:
        with self._wiring:
            for flow in [f for f in self.flows.values() if endpoint in (f.source, f.target)]:
                del self.flows[flow.flow]
                for number, source, target in (
                    (flow.flow, flow.source, flow.target),
                    (flow.reply_flow, flow.target, flow.source),
                ):
                    if number:
                        self._end_flow(number, source, target, endpoint, handed_upto, reason)

    def _end_flow(
        self, flow: int, source: LocalEndpoint, target: LocalEndpoint, gone: LocalEndpoint, handed_upto: int | None,
        reason: int,
    ) -> None:  # fmt: skip
        """Tell whoever is left on a flow of the endpoint that is `gone`."""
        with contextlib.suppress(errors.FabricError):  # the other side may be leaving too
            if gone is source:
                if target.port.is_alive:
                    self._push(target.port, "flow_in_close", {"flow": flow, "drain": True})
            elif source.port.is_alive:
                handed = handed_upto if handed_upto is not None else self._handed(target.port, flow)
                self._push(
                    source.port,
                    "flow_lost",
                    {"flow": flow, "handed_upto": handed, "reason": reason},
                )
                if target.port.is_alive:
                    self._push(target.port, "flow_in_close", {"flow": flow, "drain": True})

    def _handed(self, port: LocalPort, flow: int) -> int:
        if not port.fds:
            raise errors.ClosedError("this local fabric was closed")
        rows = _native.inspect_state(port.fds[0])["flows"]
        return next((int(row["handed"]) for row in rows if row["flow"] == flow), 0)

    def _forget_port(
        self, port: LocalPort, handed_upto: int | None = None, reason: int = PEER_LOST
    ) -> None:
        with self._lock:
            if not port.is_alive:
                return
            port.is_alive = False
            mine = [e for e in list(self.endpoints.values()) if e.port is port]
            for endpoint in mine:
                del self.endpoints[endpoint.endpoint]
        for endpoint in mine:
            self._unwire(endpoint, handed_upto, reason)
        with self._wiring, self._lock:  # a flow that is being made still uses lanes and descriptors
            for key in [key for key in self.lanes if port.port in key[:2]]:
                lane, fd = self.lanes.pop(key)
                peer = self.ports.get(key[0] if key[1] == port.port else key[1])
                if peer is not None and peer.is_alive:
                    with contextlib.suppress(errors.FabricError):
                        self._push(peer, "lane_drop", {"lane": lane})
                close_fds([fd])
            self._close_fds(port)
            self.ports.pop(port.port, None)

    @staticmethod
    def _close_fds(port: LocalPort) -> None:
        fds, port.fds = port.fds, []
        close_fds(fds)
