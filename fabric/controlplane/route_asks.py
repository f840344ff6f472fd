"""Routing policies of a node: asked in their stage hosts for senders, which are told of a new one."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from fabric import errors, limits
from fabric.controlplane.codec_telling import CodecTelling
from fabric.controlplane.flows import OutFlow
from fabric.controlplane.ports import Port
from fabric.controlplane.stage_parts import StageParts
from fabric.registry.declare import unknown_channel
from fabric.registry.records import ChannelRecord, View


async def _no_wait(senders: list[int], timeout_s: float) -> None:
    """Nothing is being set up."""


class RouteAsks:
    """Belongs to the daemon's loop."""

    def __init__(self, parts: StageParts) -> None:
        self._context = parts.context
        self._ports = parts.ports
        self._flows = parts.flows
        self._endpoints = parts.endpoints
        self._registry = parts.registry
        self._modules = parts.modules
        self._plugins = parts.plugins
        self._push = parts.push
        self._told: dict[int, str | None] = {}
        self.codecs = CodecTelling(parts)
        self._tasks: set[asyncio.Task[None]] = set()
        self.flows_settled: Callable[[list[int], float], Awaitable[None]] = _no_wait

    def tell(self, view: View) -> None:
        """Tell local senders of another policy; one that was told nothing yet has what its `open` answered."""
        self.codecs.tell(view)
        routes = {channel.number: channel.route for channel in view.channels}
        told, self._told = self._told, {}
        for record in self._endpoints.all():
            if record.role != "sender" or record.channel not in routes:
                continue
            route = self._told[record.endpoint] = routes[record.channel]
            port = self._ports.get(record.port)
            if told.get(record.endpoint) != route and port is not None:
                self._background(self._tell_route(port, record.endpoint, route))

    async def _tell_route(self, port: Port, endpoint: int, route: str | None) -> None:
        try:
            await port.push("route", {"endpoint": endpoint, "route": route})
        except errors.FabricError as error:
            self._context.events.add("route not told", endpoint=endpoint, reason=str(error))

    async def ask(self, port: Port, fields: dict[str, Any]) -> dict[str, Any]:
        """Choose a flow for a sender: the channel's policy in its stage host, or the fallback after ROUTE_ASK_S."""
        channel = self._registry.view.channel(fields["channel"])
        if channel is None:
            raise unknown_channel(fields["channel"], [c.name for c in self._registry.view.channels])
        flows = await self._flows_to_choose(port, channel)
        if not flows:
            return {"flow": 0, "ttl_s": 0.0}
        if any(self._leads_to_stage(f.target_endpoint) for f in flows):
            # The policy chooses receivers; on the way to a stage there is nothing to choose.
            return {"flow": self._fallback(flows, fields).flow, "ttl_s": limits.ROUTE_PIN_TTL_S}
        plugin = next((p for p in self._plugins() if channel.route in p.exported("route")), None)
        host = self._modules.find("stage", plugin.name) if plugin else None
        if channel.route and host is not None and host.ready.is_set():
            try:
                asked = {
                    "policy": channel.route,
                    "header": self._header(fields),
                    "targets": self._targets(port, flows),
                }
                answer = await self._push(host, "route_decide", asked, limits.ROUTE_ASK_S)
                if answer.get("flow") in {f.flow for f in flows}:
                    return {
                        "flow": answer["flow"],
                        "ttl_s": float(answer.get("ttl_s", limits.ROUTE_PIN_TTL_S)),
                    }
            except errors.FabricError as error:
                self._context.events.add(
                    "route policy failed", policy=channel.route, reason=str(error)
                )
        return {
            "flow": self._fallback(flows, fields).flow,
            "ttl_s": 1.0 if channel.route else limits.ROUTE_PIN_TTL_S,
        }

    async def _flows_to_choose(self, port: Port, channel: ChannelRecord) -> list[OutFlow]:
        """Return the open flows of a port, waiting half of ROUTE_ASK_S for the first, so that no key goes unasked."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limits.ROUTE_ASK_S / 2
        # A policy is asked once for a key: it must see every target, not the first that was set up.
        senders = [e.endpoint for e in self._endpoints.of(port.port) if e.channel == channel.number]
        await self.flows_settled(senders, limits.ROUTE_ASK_S / 2)
        while True:
            flows = [
                f
                for f in self._flows.outs_of_port(port.port)
                if f.channel == channel.number and f.state == "open" and not f.is_reply
            ]
            if flows or loop.time() >= deadline:
                return flows
            await asyncio.sleep(0.01)

    def _leads_to_stage(self, endpoint: int) -> bool:
        return any(e.endpoint == endpoint and e.transform for e in self._registry.view.endpoints)

    @staticmethod
    def _header(fields: dict[str, Any]) -> dict[str, Any]:
        return {
            "channel": fields["channel"],
            "key": fields.get("key"),
            "class": fields.get("klass", "token"),
            "size": fields.get("size", 0),
            "fields": fields.get("fields") or {},
        }

    def _targets(self, port: Port, flows: list[OutFlow]) -> list[dict[str, Any]]:
        state = self._context.native.inspect_state(port.state_fd)
        out: dict[int, int] = {}
        for ledger in state["ledgers"]:
            for row in ledger["outstanding"]:
                out[row["flow"]] = out.get(row["flow"], 0) + 1
        names = {n.number: n.name for n in self._registry.view.nodes}
        owners = {e.endpoint: e.port_name for e in self._registry.view.endpoints}
        return [
            {
                "flow": f.flow,
                "endpoint": f.target_endpoint,
                "node": names.get(f.target_node, ""),
                "module": owners.get(f.target_endpoint, ""),
                "outstanding": out.get(f.flow, 0),
            }
            for f in flows
        ]

    @staticmethod
    def _fallback(flows: list[OutFlow], fields: dict[str, Any]) -> OutFlow:
        """Without a policy's answer: the same key always meets the same target."""
        key = fields.get("key") or b""
        ordered = sorted(flows, key=lambda f: f.target_endpoint)
        return ordered[
            zlib.crc32(key if isinstance(key, bytes) else str(key).encode()) % len(ordered)
        ]

    def _background(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
