"""The node's gateway: the engine thread, its port and lanes, made when the first remote flow or peer needs it.

A restarted daemon makes a new engine over the same shared state; cursors say where the old one was.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

from fabric import errors, limits
from fabric.controlplane.context import Context
from fabric.controlplane.flows import FlowTable
from fabric.controlplane.lanes import Lane, LaneTable
from fabric.controlplane.ports import Port, PortTable
from fabric.controlplane.segments import SegmentTable
from fabric.dataplane.idle_segments import IdleSegments
from fabric.dataplane.segments import plan_segment
from fabric.registry.records import ChannelRecord

log = logging.getLogger("fabricd.gateway")


# What an engine keeps in a ring, or unacknowledged, until it knows the flow.
_HELD_FOR_A_FLOW = ("return entry", "lane record", "report")


class NodeGateway:
    """Belongs to the daemon's loop. `on_link_down(node, group, reason)` asks for a new data connection."""

    def __init__(
        self, context: Context, ports: PortTable, lanes: LaneTable, segments: SegmentTable
    ) -> None:
        self._context = context
        self._ports = ports
        self._lanes = lanes
        self._segments = segments
        self._port: Port | None = None
        self._engine: Any = None
        self._sessions: dict[int, tuple[int, int]] = {}  # node → (session, peer incarnation)
        self._wanted: dict[int, tuple[str, int, int]] = {}  # flow → (direction, lane, node)
        self._weights: dict[int, int] = {}  # channel → weight, where it is not 1
        self._idle = IdleSegments()
        self._looking: asyncio.TimerHandle | None = None
        self.up: set[tuple[int, int]] = set()  #: (node, rail * 2 + group) with a data connection
        self.reasons: dict[tuple[int, int], str] = {}  #: why each of those was lost last
        self.carried: dict[tuple[int, int], int] = {}  #: and the bytes that it had carried
        self.on_link_down: Callable[[int, int, str], None] = lambda node, group, reason: None
        #: each is told (node, event) when the engine thinks otherwise of a rail
        self.on_rail: list[Callable[[int, dict[str, Any]], None]] = []
        self.on_closed: Callable[[int], None] = lambda node: None
        self.on_opened: Callable[[int], None] = lambda node: None
        self.is_flow: Callable[[int], bool] = lambda flow: True

    @property
    def engine(self) -> Any:
        """The engine; made, with its port, when first asked for."""
        if self._engine is None:
            self._start()
        return self._engine

    async def port(self) -> Port:
        """Return the gateway's port."""
        if self._engine is None:
            self._start()
        assert self._port is not None
        return self._port

    def restore(self) -> None:
        """Make the engine again when the last daemon had one."""
        if any(p.kind == "gateway" for p in self._ports):
            self._start()

    def restore_flows(self, flows: FlowTable) -> None:
        """Remember the entries of all remote flows; they are made when their session opens."""
        for out in flows.outs.values():
            if out.target_node != self._context.number and out.lane:
                self.add_forward(out.flow, out.lane, out.target_node)
        for half in flows.ins.values():
            if half.producer_node != self._context.number and half.lane:
                self.add_deliver(half.flow, half.lane, half.producer_node)

    # ---------------------------------------------------------------- lanes and flows
    def add_lane(self, lane: Lane, peer: Port) -> None:
        """Give the engine its side of a lane."""
        assert self._port is not None
        self.engine.add_lane(
            lane.lane,
            lane.fd,
            lane.side(self._port.port),
            lane.klass,
            peer.port,
            peer.incarnation,
            peer.doorbell_fd,
            peer.event_fd,
            peer.tenant,
        )

    def weigh(self, channels: Iterable[ChannelRecord]) -> None:
        """Take the weights by which channels share the way to a node."""
        wanted = {c.number: c.weight for c in channels if c.weight != 1}
        for number in self._weights.keys() | wanted.keys() if self._engine is not None else ():
            self._engine.weigh(number, wanted.get(number, 1))
        self._weights = wanted

    def remove_lane(self, lane: int) -> None:
        """Take a lane from the engine, and with it whatever flows were to use it."""
        for flow in [f for f, (_, used, _) in self._wanted.items() if used == lane]:
            self.remove_flow(flow)
        if self._engine is not None:
            self._engine.remove_lane(lane)

    def drained(self, lane: int) -> bool:
        """Tell whether nothing of a lane is left between its cursors."""
        return self._engine is None or bool(self._engine.drained(lane))

    def add_forward(self, flow: int, lane: int, node: int) -> None:
        """Carry a flow from a local lane to a node, now or when its session opens."""
        self._wanted[flow] = ("forward", lane, node)
        if node in self._sessions:
            self.engine.add_forward(flow, lane, self._sessions[node][0])

    def add_deliver(self, flow: int, lane: int, node: int) -> None:
        """Carry a flow from a node to a local lane, now or when its session opens."""
        self._wanted[flow] = ("deliver", lane, node)
        if node in self._sessions:
            self.engine.add_deliver(flow, lane, self._sessions[node][0], self._published_of(flow))

    def remove_flow(self, flow: int) -> None:
        """Forget a flow; unknown ones are fine (local flows never get here)."""
        if self._wanted.pop(flow, None) is not None and self._engine is not None:
            self._engine.remove_flow(flow)

    # ---------------------------------------------------------------- sessions
    def open_session(self, node: int, session: int, incarnation: int) -> None:
        """Open (or renew) the session with a node and make the entries of its flows.

        Raises
        ------
        StaleHandleError
            A later incarnation of that node is connected: what was proven is late, and changes nothing.
        """
        known = self._sessions.get(node)
        if known == (session, incarnation):
            return
        # Only beside a living connection: the clock of a node that lost its folder may have gone back.
        if known is not None and incarnation < known[1] and any(n == node for n, _ in self.up):
            raise errors.StaleHandleError(
                f"incarnation {incarnation} of node {node} is older than the connected {known[1]}",
                node=node,
            )
        self.close_session(node)
        self.engine.open_session(session, node, incarnation)
        self._sessions[node] = (session, incarnation)
        self.on_opened(node)
        for flow, (direction, lane, where) in list(self._wanted.items()):
            if where == node:
                self._make_entry(flow, direction, lane, session)

    def _make_entry(self, flow: int, direction: str, lane: int, session: int) -> None:
        """Make one entry of a session that opens; one that cannot be made does not keep the others from it."""
        try:
            if direction == "forward":
                self.engine.add_forward(flow, lane, session)
            else:
                self.engine.add_deliver(flow, lane, session, self._published_of(flow))
        except (errors.FabricError, ValueError) as error:
            self._wanted.pop(flow, None)
            self._context.events.add("flow not carried", flow=flow, lane=lane, reason=str(error))

    def close_session(self, node: int) -> None:
        """Close the session with a node that is gone."""
        known = self._sessions.pop(node, None)
        self.up = {each for each in self.up if each[0] != node}
        self.reasons = {key: why for key, why in self.reasons.items() if key[0] != node}
        self.on_closed(node)
        if known is not None and self._engine is not None:
            self._engine.close_session(known[0])

    def add_connection(self, node: int, fd: int, group: int, features: int = 0) -> None:
        """Hand a data connection, and what was agreed for it, to the engine, which takes the descriptor."""
        known = self._sessions.get(node)
        if known is None:
            os.close(fd)
            raise errors.StaleHandleError("no session with this node", node=node)
        self.engine.add_connection(known[0], fd, group, features)
        self.up.add((node, group))

    def add_link(self, node: int, session: int, link: Any, group: int) -> None:
        """Hand a link that another module made to the engine.

        Raises
        ------
        StaleHandleError
            The session that it was made for is no more.
        """
        if self.session_of(node) != session:
            raise errors.StaleHandleError("the session with this node is another now", node=node)
        self.engine.add_link(session, link, group)
        self.up.add((node, group))

    def _published_of(self, flow: int) -> int:
        """Return the last message of a flow that its receiver has taken; 0 for a new flow."""
        for port in self._ports:
            if port.port != (self._port.port if self._port else 0) and port.state_fd >= 0:
                for row in self._context.native.inspect_state(port.state_fd)["flows"]:
                    if row["flow"] == flow:
                        return int(row["drained"])
        return 0

    def rails(self, node: int, size_bytes: int = 0) -> list[dict[str, Any]]:
        """Return what the engine knows of each rail to a node; it predicts for `size_bytes` (0: its own choice)."""
        session = self.session_of(node)
        if not session:
            return []
        found: list[dict[str, Any]] = (
            self.engine.rails(session, size=size_bytes)
            if size_bytes
            else self.engine.rails(session)
        )
        return found

    def lose_rail(self, node: int, rail: int, reason: str) -> None:
        """Give up both connections of a rail at once: its interface is gone."""
        session = self.session_of(node)
        if session:
            self.engine.lose_rail(session, rail, reason)

    def session_of(self, node: int) -> int:
        """Return the session with a node; 0 without one."""
        return self._sessions.get(node, (0, 0))[0]

    def stats(self) -> dict[str, Any]:
        """Return the engine's counters; empty without an engine."""
        return dict(self._engine.stats()) if self._engine is not None else {}

    def stop(self) -> None:
        """Stop the engine thread. Idempotent."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._engine is not None:
            asyncio.get_running_loop().remove_reader(self._engine.event_fd())
            self._engine.stop(200)
            self._engine = None

    # ---------------------------------------------------------------- engine
    def _start(self) -> None:
        port = next((p for p in self._ports if p.kind == "gateway"), None)
        if port is None:
            port = self._ports.create("gateway", os.getpid(), os.getuid(), "gateway", "", -1)
        self._port = port
        self._engine = self._context.native.Engine(
            port.port, port.incarnation, port.state_fd, port.doorbell_fd, port.event_fd
        )
        for segment in self._segments.of(port.port):
            self._engine.add_segment(segment.segment, segment.fd, True)
        for lane in self._lanes.of(port.port):
            peer = self._ports.get(lane.peer(port.port))
            if peer is not None:
                self.add_lane(lane, peer)
        for channel, weight in self._weights.items():
            self._engine.weigh(channel, weight)
        self._reclaim(port)
        self._inject_faults()
        self._engine.start()
        asyncio.get_running_loop().add_reader(self._engine.event_fd(), self._on_events)
        self._look_at_idle()

    def _inject_faults(self) -> None:
        """Test hook: `FABRIC_ENGINE_FAULT=name:argument,…`; the engine refuses it unless FABRIC_FAULTS=1."""
        for each in filter(None, os.environ.get("FABRIC_ENGINE_FAULT", "").split(",")):
            fault, _, argument = each.partition(":")
            self._engine.inject(fault, int(argument or 1))
            self._context.events.add("fault injected", fault=fault, argument=argument)

    def _on_events(self) -> None:
        for event in self._engine.events():
            try:
                self._on_event(event)
            except (errors.FabricError, OSError) as error:
                self._context.events.add(
                    "engine event not served", what=str(event), reason=str(error)
                )

    def _on_event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "need_segment":
            self._show(event["segment"])
        elif kind == "grow":
            self._grow(event["slot_bytes"])
        elif kind == "link_down":
            node = next((n for n, (s, _) in self._sessions.items() if s == event["session"]), 0)
            reason = str(event.get("reason", ""))
            self._context.events.add("link down", node=node, group=event["group"], reason=reason)
            self.reasons[node, event["group"]] = reason
            self.carried[node, event["group"]] = int(event.get("carried", 0))
            if node and reason != "replaced":
                self.up.discard((node, event["group"]))
                self.on_link_down(node, event["group"], reason)
        elif kind == "rail":
            node = next((n for n, (s, _) in self._sessions.items() if s == event["session"]), 0)
            for told in self.on_rail if node else ():
                told(node, event)
        elif kind in ("link_silent", "limit_reached"):
            node = next((n for n, (s, _) in self._sessions.items() if s == event["session"]), 0)
            self._context.events.add(kind.replace("_", " "), node=node, reason=event["reason"])
        else:
            self._context.events.add(
                f"engine {kind}", **{k: v for k, v in event.items() if k != "event"}
            )
            if kind == "flow_unknown" and event["reason"] in _HELD_FOR_A_FLOW:
                self._give_up(event["flow"])

    def _give_up(self, flow: int) -> None:
        """Have the engine forget a flow that nobody knows any more: what it keeps for it holds up all behind it.

        It was settled under an earlier daemon, or is of a former life of this node or of a peer.
        """
        if not self.is_flow(flow):
            self._engine.remove_flow(flow)

    def _reclaim(self, port: Port) -> None:
        """Free the slots of a former engine that no held table and (the engine looks) no record in a lane names.

        After the lanes were given to the engine, never before: a record may move from its lane to a table meanwhile.
        """
        held: dict[int, list[tuple[int, int, int, int]]] = {}
        for reader in self._ports:
            state = self._context.native.inspect_state(reader.state_fd)
            lanes = {row["flow"]: [row["lane"]] for row in state["flows"]}
            shared = [
                lane.lane
                for lane in self._lanes.of(port.port)
                if lane.peer(port.port) == reader.port
            ]
            for entry in state["held"]:
                for lane in lanes.get(entry["flow"], shared):  # a view may outlive its flow
                    holder = (entry["slot"], entry["generation"], entry["flow"], lane)
                    held.setdefault(entry["segment"], []).append(holder)
        for segment in self._segments.of(port.port):
            self._engine.reclaim(segment.segment, held.get(segment.segment, []))

    def _look_at_idle(self) -> None:
        """Look again after a while, as long as there are segments, which of them stay empty."""
        assert self._port is not None
        if (
            self._looking is None
            and self._engine is not None
            and self._segments.of(self._port.port)
        ):
            loop = asyncio.get_running_loop()
            self._looking = loop.call_later(limits.SEGMENT_IDLE_S / 2, self._give_back_idle)

    def _give_back_idle(self) -> None:
        """Give back what stayed empty for long."""
        assert self._port is not None
        self._looking = None
        self._idle.keep_bytes = self._segments.keep_bytes
        idle = set(self._engine.idle_segments())
        own = self._segments.of(self._port.port)
        empty = {s.segment: s.size_bytes for s in own if s.segment in idle}
        for segment in self._idle.due(empty, asyncio.get_running_loop().time()):
            self._give_back(segment)
        self._look_at_idle()

    def _give_back(self, number: int) -> None:
        assert self._port is not None
        try:
            self._engine.drop_segment(number)
        except errors.CapacityError:  # in use again
            return
        self._idle.forget(number)
        self._segments.drop(self._port, number)

    def _show(self, number: int) -> None:
        """Let the engine read a sender's segment; messages in one that is gone end as failed(corrupted)."""
        assert self._port is not None
        try:
            segment = self._segments.readable(self._port.tenant, number)
        except errors.FabricError:
            self._engine.drop_segment(number)
            raise
        self._engine.add_segment(segment.segment, segment.fd, False)

    def forget_segment(self, number: int) -> None:
        """Unmap a sender's segment that its owner gave back, or that died with it."""
        if self._engine is None:
            return
        try:
            self._engine.drop_segment(number)
        except errors.FabricError as error:
            log.info("segment not unmapped", extra={"segment": number, "reason": str(error)})

    def _ask_again(self) -> None:
        if self._engine is not None:
            self._engine.ask_again()

    def _grow(self, size_bytes: int) -> None:
        """One more arena segment for payload that arrives: write-mapped by the engine, then given to readers.

        Where none can be had now (a quota, a full memory), the engine asks again for what still waits.
        """
        assert self._port is not None
        slot_bytes, count = plan_segment(size_bytes)
        try:
            segment = self._segments.create(self._port, slot_bytes, count)
        except (errors.FabricError, OSError):
            asyncio.get_running_loop().call_later(limits.FLOW_RETRY_S, self._ask_again)
            raise
        self._engine.add_segment(segment.segment, segment.fd, True)
        self._segments.publish(self._port, segment.segment)
        self._look_at_idle()
