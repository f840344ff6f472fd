"""Routing policies of a node: asked in their stage hosts for senders, which are told of a new one."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from fabric import errors, limits
from fabric.config.routes import BUILT_IN, name_of
from fabric.controlplane.codec_telling import CodecTelling
from fabric.controlplane.flows import OutFlow
from fabric.controlplane.plugins import Plugin
from fabric.controlplane.ports import Port
from fabric.controlplane.route_costs import RouteCost
from fabric.controlplane.route_table import RouteTable, outstanding
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
        self.table = RouteTable(parts)
        self._costs: dict[str, RouteCost] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.flows_settled: Callable[[list[int], float], Awaitable[None]] = _no_wait

    def tell(self, view: View) -> None:
        """Tell local senders of another policy; one that was told nothing yet has what its `open` answered."""
        self.codecs.tell(view)
        self.table.tell(view, view.channels)
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

    def costs(self, policies: list[str]) -> list[dict[str, Any]]:
        """Return what these policies have cost here, those that were asked."""
        return [self._costs[name].row() for name in policies if name in self._costs]

    async def ask(self, port: Port, fields: dict[str, Any]) -> dict[str, Any]:
        """Choose a flow for a sender: the channel's policy in its stage host, or the fallback that it declares.

        Where it fails, the answer names the ``fallback``, which the sender applies natively: to this message, or, when
        the policy ``is_silent``, to all until it is asked again.
        """
        channel = self._registry.view.channel(fields["channel"])
        if channel is None:
            raise unknown_channel(fields["channel"], [c.name for c in self._registry.view.channels])
        flows = await self._flows_to_choose(port, channel, fields.get("endpoint"))
        if not flows:
            return {"flow": 0, "ttl_s": 0.0}
        if any(self._leads_to_stage(f.target_endpoint) for f in flows):
            # The policy chooses receivers; on the way to a stage there is nothing to choose.
            return {"flow": self._by_key(flows, fields).flow, "ttl_s": limits.ROUTE_PIN_TTL_S}
        name = name_of(channel.route)
        if not name or name in BUILT_IN:  # the channel's policy has just become another one
            return {"flow": self._by_key(flows, fields).flow, "ttl_s": 0.0}
        cost = self._costs.setdefault(name, RouteCost(name))
        cost.cached(int(fields.get("endpoint") or port.port), int(fields.get("hits") or 0))
        plugin = next((p for p in self._plugins() if name in p.exported("route")), None)
        return await self._decision(port, channel, plugin, cost, fields, flows)

    async def _decision(
        self,
        port: Port,
        channel: ChannelRecord,
        plugin: Plugin | None,
        cost: RouteCost,
        fields: dict[str, Any],
        flows: list[OutFlow],
    ) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        if plugin is None or began < cost.paused_until:
            return self._fallback(
                channel, plugin, cost, cost.last_error or "it is not loaded", True
            )
        try:
            answer = await self._push_question(plugin, port, channel, fields, flows)
            offered = {f.flow for f in flows}
            if not answer.get("flows") or not offered.issuperset(answer["flows"]):
                raise errors.ContractError(f"it answered flows {answer.get('flows')!r:.80}")
        except (errors.PeerLostError, errors.DeadlineExceeded, TimeoutError) as error:
            cost.paused_until = loop.time() + limits.ROUTE_PAUSE_S
            reason = str(error) or f"no answer within {limits.ROUTE_DECIDE_S:g} s"
            return self._fallback(channel, plugin, cost, reason, True)
        except errors.FabricError as error:
            return self._fallback(channel, plugin, cost, str(error), False)
        cost.decided(answer, len(fields.get("batch") or (0,)), (loop.time() - began) * 1e6)
        known: dict[str, Any] = {
            key: answer[key] for key in ("flow", "flows", "per", "reads") if key in answer
        }
        known["ttl_s"] = 0.0 if answer.get("per") == "batch" else limits.ROUTE_PIN_TTL_S
        return known

    async def _push_question(
        self,
        plugin: Plugin,
        port: Port,
        channel: ChannelRecord,
        fields: dict[str, Any],
        flows: list[OutFlow],
    ) -> dict[str, Any]:
        host = self._modules.find("stage", plugin.name)
        if host is None or not host.ready.is_set():
            raise errors.PeerLostError(f"the stage host of {plugin.name!r} is not ready")
        question = {
            "policy": channel.route,
            "header": self._header(fields),
            "targets": self._targets(port, flows, channel),
        }
        if fields.get("batch"):
            question["batch"] = [self._header(header) for header in fields["batch"]]
        return await self._push(host, "route_decide", question, limits.ROUTE_DECIDE_S)

    def _fallback(
        self,
        channel: ChannelRecord,
        plugin: Plugin | None,
        cost: RouteCost,
        reason: str,
        is_silent: bool,
    ) -> dict[str, Any]:
        """Let the sender go by the declared fallback for a while; counted, and an event."""
        cost.failed(reason)
        declared = plugin.export("route", cost.name).get("fallback") if plugin is not None else None
        fallback = str(declared or "least_outstanding")
        self._context.events.add(
            "route policy failed", channel=channel.name, policy=cost.name, reason=reason,
            fallback=fallback, fallbacks=cost.fallbacks,
        )  # fmt: skip
        return {
            "flow": 0, "ttl_s": limits.ROUTE_RETRY_S, "fallback": fallback, "is_silent": is_silent,
        }  # fmt: skip

    async def _flows_to_choose(
        self, port: Port, channel: ChannelRecord, endpoint: int | None
    ) -> list[OutFlow]:
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
                if f.channel == channel.number
                and f.state == "open"
                and not f.is_reply
                and endpoint in (None, f.endpoint)
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

    def _targets(
        self, port: Port, flows: list[OutFlow], channel: ChannelRecord
    ) -> list[dict[str, Any]]:
        out = outstanding(self._context.native, port.state_fd)
        view = self._registry.view
        names = {n.number: n.name for n in view.nodes}
        owners = {e.endpoint: e.port_name for e in view.endpoints}
        loads = self._loads(port, channel)
        return [
            {
                "flow": f.flow,
                "endpoint": f.target_endpoint,
                "node": names.get(f.target_node, ""),
                "module": owners.get(f.target_endpoint, ""),
                "outstanding": out.get(f.flow, 0),
                "load": loads.get(f.target_endpoint, 0),
                "distance": int(f.target_node != self._context.number),
            }
            for f in flows
        ]

    def _loads(self, port: Port, channel: ChannelRecord) -> Counter[int]:
        """Count what the other local ports have under way on this channel, by target."""
        flows = [f for f in self._flows.outs.values() if f.channel == channel.number]
        found: Counter[int] = Counter()
        for number in {f.port for f in flows} - {port.port}:
            other = self._ports.get(number)
            counts = outstanding(self._context.native, other.state_fd) if other is not None else {}
            for flow in flows:
                found[flow.target_endpoint] += counts.get(flow.flow, 0)
        return found

    @staticmethod
    def _by_key(flows: list[OutFlow], fields: dict[str, Any]) -> OutFlow:
        """Without a policy: the same key always meets the same target."""
        key = fields.get("key") or b""
        ordered = sorted(flows, key=lambda f: f.target_endpoint)
        return ordered[
            zlib.crc32(key if isinstance(key, bytes) else str(key).encode()) % len(ordered)
        ]

    def _background(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
