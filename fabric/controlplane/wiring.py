"""Set flows up and take them down: lanes, gateway entries and pushes, receiver first.

The sender's node drives. What it needs of the receiver's node it asks through `call`, which is a function call
when both are the same node. Order of an opening: the receiver knows the flow (and the gateway its deliver
entry) → for requests the same for the reply flow, backwards → the gateway's forward entry → the sender.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from fabric import errors, limits, steps
from fabric.controlplane.context import Context
from fabric.controlplane.endpoints import EndpointTable
from fabric.controlplane.flow_plan import NewFlow
from fabric.controlplane.flows import FlowTable, InFlow, OutFlow
from fabric.controlplane.lanes import LaneTable
from fabric.controlplane.ports import Port, PortTable
from fabric.registry.records import ChannelRecord, EndpointRecord

log = logging.getLogger("fabricd.wiring")

Call = Callable[[int, str, dict[str, Any]], Awaitable[dict[str, Any]]]


class Gateway(Protocol):
    """What wiring needs of the node's gateway; tests use a recording one."""

    async def port(self) -> Port: ...
    def add_forward(self, flow: int, lane: int, node: int) -> None: ...
    def add_deliver(self, flow: int, lane: int, node: int) -> None: ...
    def remove_flow(self, flow: int) -> None: ...


class Wiring:
    """Belongs to the daemon's loop. Calls for different flows may overlap."""

    def __init__(
        self,
        context: Context,
        ports: PortTable,
        lanes: LaneTable,
        endpoints: EndpointTable,
        flows: FlowTable,
    ) -> None:
        self._context = context
        self._ports = ports
        self._lanes = lanes
        self._endpoints = endpoints
        self._flows = flows
        self.gateway: Gateway | None = None
        self._leaving: set[int] = set()
        self._closing: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.call: Call = self._no_peers
        #: what a sender is to know of a flow's target, where a built-in routing policy chooses
        self.route_row: Callable[[OutFlow], list[Any] | None] = lambda out: None
        self.closed_out: Callable[[], None] = lambda: None
        self.opened_out: Callable[[int], None] = lambda flow: None
        self.opened_in: Callable[[int], None] = lambda flow: None
        self.node_is: Callable[[int, int], bool] = lambda node, incarnation: False
        self.lose_for_dead: Callable[[int, int, int, int], bool] = (
            lambda port, flow, handed, reason: False
        )

    # ---------------------------------------------------------------- sender's side
    async def open(self, sender: EndpointRecord, channel: ChannelRecord, new: NewFlow) -> OutFlow:
        """Set up one flow from a local sender; raises when a side is gone or does not confirm."""
        source = self._local_port(sender.port)
        open_count = sum(
            f.endpoint == sender.endpoint and f.state != "closing"
            for f in self._flows.outs.values()
        )
        if open_count >= limits.FLOWS_PER_ENDPOINT_MAX:
            raise errors.CapacityError(
                f"a sender of {channel.name!r} has FLOWS_PER_ENDPOINT_MAX ({limits.FLOWS_PER_ENDPOINT_MAX}) flows",
                limit="FLOWS_PER_ENDPOINT_MAX",
            )
        out = OutFlow(
            self._context.take_flow(),
            sender.endpoint,
            sender.port,
            channel.number,
            channel.klass,
            new.target.endpoint,
            new.target.node,
            new.target.incarnation,
            new.generation,
        )
        self._flows.keep(out)
        try:
            grant = await self.call(
                out.target_node, "flow_prepare", self._prepare_fields(out, sender, source)
            )
            out.messages, out.bytes, out.reply_flow = (
                grant["messages"],
                grant["bytes"],
                grant.get("reply_flow", 0),
            )
            out.lane = await self._lane_out(
                out.flow, source, out.target_node, new.target.port, out.klass
            )
            steps.at("flow.prepared")
            if out.reply_flow:
                await self._open_reply(out, sender, grant)
                steps.at("flow.reply.opened")
            await self._offer(source, out, new.after_drain)
        except BaseException:
            await self.give_up(out)
            raise
        out.state = "open"
        self._flows.keep(out)
        steps.at("flow.opened")
        self.opened_out(out.flow)
        log.debug(
            "flow open",
            extra={"flow": out.flow, "channel": channel.name, "target": out.target_endpoint},
        )
        return out

    async def _offer(self, source: Port, out: OutFlow, after_drain: bool) -> None:
        """Give a flow to its sender; from here on it may carry messages, whatever happens to this daemon."""
        out.state = "offered"
        self._flows.keep(out)
        steps.at("flow.offered")
        await source.push(
            "flow_out",
            {
                "endpoint": out.endpoint,
                "flow": out.flow,
                "lane": out.lane,
                "target_endpoint": out.target_endpoint,
                "messages": out.messages,
                "bytes": out.bytes,
                "generation": out.generation,
                "after_drain": after_drain,
                "reply_flow": out.reply_flow,
                "row": self.route_row(out),
            },
        )
        steps.at("flow.confirmed")

    async def give_up(self, out: OutFlow) -> None:
        """End a flow whose opening failed: taken back if the sender never heard of it, closed otherwise."""
        if out.state == "opening":
            await self.take_back(out)
        else:
            self._spawn(self.close(out.flow))

    async def close(self, flow: int) -> None:
        """Let a flow take nothing new, and wait until its sender knows; what is out still ends normally."""
        out = self._flows.outs.get(flow)
        if out is None or flow in self._closing or (out.state == "closing" and out.is_told):
            return
        out.state = "closing"
        self._flows.keep(out)
        steps.at("flow.closing")
        source = self._ports.get(out.port)
        self._closing.add(flow)
        try:
            if source is not None:
                await self._push_until_done(source, "flow_close", {"flow": flow})
        finally:
            self._closing.discard(flow)
        if flow in self._flows.outs:
            out.is_told = True
            self._flows.keep(out)
        steps.at("flow.closed")
        self.closed_out()

    async def retire(self, out: OutFlow) -> None:
        """Forget a flow on which nothing is outstanding any more; its receiver is told."""
        if out.flow in self._leaving:
            return
        self._leaving.add(out.flow)
        try:
            await self.tell(
                out.target_node, out.target_incarnation, "flow_in_close", {"flow": out.flow}
            )
        finally:
            self._leaving.discard(out.flow)
        steps.at("flow.retired")
        self._flows.forget_out(out.flow)
        self._remove_from_gateway(out.flow)
        # The way back is the responder's to retire: ends of its last replies may still be on their way to it.

    async def lose(self, flow: int, handed_upto: int, reason: int) -> None:
        """Settle a flow whose consumer or path is gone: tell the living sender, who redelivers or fails."""
        out = self._flows.outs.get(flow)
        if out is None or flow in self._leaving:
            return
        self._leaving.add(flow)
        try:
            self._remove_from_gateway(flow)
            source = self._ports.get(out.port)
            fields = {"flow": flow, "handed_upto": handed_upto, "reason": reason}
            fields["reader_lives"] = self._reader_lives(out)
            if source is None or not await self._push_until_done(source, "flow_lost", fields):
                self.lose_for_dead(out.port, flow, handed_upto, reason)
        finally:
            self._leaving.discard(flow)
        steps.at("flow.lost")
        self._flows.forget_out(flow)  # only now: a restarted daemon must tell the sender again

    def _reader_lives(self, out: OutFlow) -> bool:
        """Whether the other end of the flow's lane is a living process, whose views still need their slots."""
        lane = self._lanes.get(out.lane)
        peer = self._ports.get(lane.peer(out.port)) if lane is not None else None
        return peer is not None and peer.is_alive and peer.kind != "gateway"

    def is_losing(self, flow: int) -> bool:
        """Tell whether a flow is being settled or retired right now."""
        return flow in self._leaving

    @property
    def leaving_count(self) -> int:
        """Flows that are being settled or retired right now."""
        return len(self._leaving)

    async def tell(self, node: int, incarnation: int, op: str, fields: dict[str, Any]) -> None:
        """Call a node until it has done it, or is no longer that incarnation's node (then nobody needs it)."""
        pause = limits.FLOW_RETRY_S
        while True:
            try:
                await self.call(node, op, fields)
                return
            except (errors.BrokenError, errors.DeadlineExceeded) as error:
                if node == self._context.number or not self.node_is(node, incarnation):
                    log.info("node not told", extra={"node": node, "op": op, "reason": str(error)})
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def _push_until_done(self, port: Port, op: str, fields: dict[str, Any]) -> bool:
        """Push until the process confirms; False when it is (or gets) dead meanwhile."""
        while port.is_alive:
            try:
                await port.push(op, fields)
                return True
            except (errors.BrokenError, errors.DeadlineExceeded, errors.ClosedError) as error:
                log.info("push repeated", extra={"port": port.port, "op": op, "reason": str(error)})
                await asyncio.sleep(limits.FLOW_RETRY_S)
        return False

    # ---------------------------------------------------------------- receiver's side, asked by any node
    async def serve_flow_prepare(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Make a local receiver expect a flow; answers its credit and, for a request, the reply flow's number."""
        record = self._endpoints.get(fields["endpoint"])
        if record is None:
            raise errors.StaleHandleError("the receiver is gone", endpoint=fields["endpoint"])
        target = self._local_port(record.port)
        if target.is_suspect:
            raise errors.BusyError(
                f"{target.name} gives no sign; asked again later", port=target.port
            )
        messages = self._flows.credit_for(target.port, record.messages)
        half = InFlow(
            fields["flow"],
            record.endpoint,
            target.port,
            record.channel,
            fields["klass"],
            fields["producer_port"],
            fields["producer_node"],
            fields["producer_incarnation"],
            messages=messages,
            bytes=record.bytes,
        )
        half.lane = await self._lane_in(half, target)
        answer = {"messages": messages, "bytes": record.bytes, "port": target.port}
        if fields.get("reply_endpoint"):
            half.reply_flow = self._reserve_reply(record, target, fields)
            answer["reply_flow"] = half.reply_flow
        self._flows.keep(half)
        steps.at("flow.in.kept")
        await self._push_flow_in(target, half, half.endpoint)
        steps.at("flow.in.pushed")
        self.opened_in(half.flow)
        return answer

    async def serve_flow_start(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The requester expects the reply flow: give it to the responder."""
        out = self._flows.outs.get(fields["flow"])
        if out is None:
            raise errors.StaleHandleError("the reply flow is gone", flow=fields["flow"])
        source = self._local_port(out.port)
        out.messages, out.bytes = fields["messages"], fields["bytes"]
        out.lane = await self._lane_out(
            out.flow, source, out.target_node, fields["port"], out.klass
        )
        await self._offer(source, out, False)
        out.state = "open"
        self._flows.keep(out)
        self.opened_out(out.flow)
        return {}

    async def serve_flow_in_close(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A sender is done with a flow: the receiver takes what is left and forgets it."""
        half = self._flows.ins.get(fields["flow"])
        if half is None:
            return {}
        self._flows.forget_in(half.flow)
        target = self._ports.get(half.port)
        try:
            if target is not None and target.is_alive:
                await target.push(
                    "flow_in_close", {"flow": half.flow, "drain": fields.get("drain", True)}
                )
        finally:  # it may die in the middle: its death finds the half forgotten already
            self._remove_from_gateway(half.flow)
            if half.reply_flow:
                self._spawn(self.close(half.reply_flow))
        steps.at("flow.in.closed")
        return {}

    async def serve_flow_lost(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The receiver's node reports that a consumer died."""
        await self.lose(fields["flow"], fields["handed_upto"], fields["reason"])
        return {}

    # ---------------------------------------------------------------- parts
    def _prepare_fields(self, out: OutFlow, sender: EndpointRecord, source: Port) -> dict[str, Any]:
        return {
            "flow": out.flow,
            "endpoint": out.target_endpoint,
            "klass": out.klass,
            "producer_port": source.port,
            "producer_node": self._context.number,
            "producer_incarnation": self._context.incarnation,
            "reply_endpoint": sender.reply_endpoint,
            "generation": out.generation,
        }

    async def _open_reply(
        self, out: OutFlow, sender: EndpointRecord, grant: dict[str, Any]
    ) -> None:
        """Expect the reply flow here, then let the responder have it."""
        source = self._local_port(sender.port)
        messages = self._flows.credit_for(source.port, sender.messages)
        half = InFlow(
            out.reply_flow,
            sender.reply_endpoint,
            source.port,
            sender.channel,
            out.klass,
            grant["port"],
            out.target_node,
            out.target_incarnation,
            messages=messages,
            bytes=sender.bytes,
        )
        half.lane = await self._lane_in(half, source)
        self._flows.keep(half)
        await self._push_flow_in(source, half, half.endpoint)
        fields = {
            "flow": out.reply_flow,
            "messages": messages,
            "bytes": sender.bytes,
            "port": source.port,
        }
        await self.call(out.target_node, "flow_start", fields)

    def _reserve_reply(self, record: EndpointRecord, target: Port, fields: dict[str, Any]) -> int:
        out = OutFlow(
            self._context.take_flow(),
            record.reply_endpoint,
            target.port,
            record.channel,
            fields["klass"],
            fields["reply_endpoint"],
            fields["producer_node"],
            fields["producer_incarnation"],
            fields.get("generation", 0),
            is_reply=True,
        )
        self._flows.keep(out)
        return out.flow

    async def _push_flow_in(self, target: Port, half: InFlow, endpoint: int) -> None:
        await target.push(
            "flow_in",
            {
                "endpoint": endpoint,
                "flow": half.flow,
                "lane": half.lane,
                "producer_port": half.producer_port,
                "messages": half.messages,
                "bytes": half.bytes,
                "reply_flow": half.reply_flow,
            },
        )

    async def _lane_out(
        self, flow: int, source: Port, target_node: int, target_port: int, klass: str
    ) -> int:
        """Return the sender's lane: direct on one node, to the gateway otherwise."""
        if target_node == self._context.number:
            return (await self._lanes.ensure(source, self._local_port(target_port), klass)).lane
        gateway = self._need_gateway()
        lane = await self._lanes.ensure(source, await gateway.port(), klass)
        gateway.add_forward(flow, lane.lane, target_node)
        return lane.lane

    async def _lane_in(self, half: InFlow, target: Port) -> int:
        """Return the receiver's lane: direct on one node, from the gateway otherwise."""
        if half.producer_node == self._context.number:
            return (
                await self._lanes.ensure(self._local_port(half.producer_port), target, half.klass)
            ).lane
        gateway = self._need_gateway()
        lane = await self._lanes.ensure(target, await gateway.port(), half.klass)
        gateway.add_deliver(half.flow, lane.lane, half.producer_node)
        return lane.lane

    async def take_back(self, out: OutFlow) -> None:
        """Take a half-made flow back as far as it got; the sender never used it."""
        source = self._ports.get(out.port)
        self._flows.forget_out(out.flow)
        self._remove_from_gateway(out.flow)
        undo: list[Coroutine[Any, Any, Any]] = [self._take_back_there(out)]
        if source is not None and source.is_alive and source.connection is not None:
            undo.append(source.push("flow_close", {"flow": out.flow}))
        if out.reply_flow:
            undo.append(self.serve_flow_in_close({"flow": out.reply_flow}))
        for result in await asyncio.gather(*undo, return_exceptions=True):
            if isinstance(result, Exception):
                log.info(
                    "flow not taken back whole", extra={"flow": out.flow, "reason": str(result)}
                )

    async def _take_back_there(self, out: OutFlow) -> None:
        """Tell the receiver's node, now or in the background: it may have prepared what it could not answer."""
        fields = {"flow": out.flow}
        try:
            await self.call(out.target_node, "flow_in_close", fields)
        except (errors.BrokenError, errors.DeadlineExceeded):
            told = self.tell(out.target_node, out.target_incarnation, "flow_in_close", fields)
            self._spawn(told)
            raise

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _remove_from_gateway(self, flow: int) -> None:
        if self.gateway is not None:
            self.gateway.remove_flow(flow)

    def _need_gateway(self) -> Gateway:
        if self.gateway is None:
            raise errors.InternalError("a remote flow on a node without gateway")
        return self.gateway

    def _local_port(self, number: int) -> Port:
        port = self._ports.get(number)
        if port is None or not port.is_alive:
            raise errors.PeerLostError("the process of this endpoint is gone", port=number)
        return port

    async def _no_peers(self, node: int, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        raise errors.PathBrokenError(f"node {node} is not connected", node=node)
