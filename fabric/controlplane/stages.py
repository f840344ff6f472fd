"""Plugins of a node: each in a stage host, loaded, run on its channels, healed after a crash, asked for routes.

The host is an ordinary port under supervision; when a new one is ready it gets `stage_load` and `stage_run` again. A
transform belongs to a channel from the moment the registry says so; its endpoints exist before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric import errors, limits
from fabric.controlplane.context import Context
from fabric.controlplane.endpoints import EndpointTable
from fabric.controlplane.flows import FlowTable, OutFlow
from fabric.controlplane.keeper_client import Loaded
from fabric.controlplane.modules import ModuleTable, Process
from fabric.controlplane.ports import Port, PortTable
from fabric.registry.client import RegistryClient
from fabric.registry.declare import unknown_channel
from fabric.registry.records import ChannelRecord, View
from fabric.worker.supervisor import State

log = logging.getLogger("fabricd.stages")

LOAD_S = 30.0  #: a plugin file may import what it needs


@dataclass(eq=False)
class Plugin:
    """One loaded plugin. `running`: (channel, transform) its present host runs."""

    name: str
    path: str
    exports: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    running: set[tuple[str, str]] = field(default_factory=set)
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    def exported(self, kind: str) -> list[str]:
        """Return the names of its exports of a kind."""
        return [e["name"] for e in self.exports if e["kind"] == kind]

    def export(self, kind: str, name: str) -> dict[str, Any]:
        """Return one export."""
        return next(e for e in self.exports if e["kind"] == kind and e["name"] == name)


def delivered_type(plugin: Plugin, channel: ChannelRecord, transform: str) -> str:
    """Name the type a channel delivers behind `transform`; empty when it is the channel's own."""
    produces = str(plugin.export("transform", transform).get("produces", "any")).partition("@")[0]
    if produces == "any":
        return channel.delivers
    return "" if produces == channel.type_name else produces


async def _no_wait(senders: list[int], timeout_s: float) -> None:
    """Nothing is being set up."""


class StageTable:
    """Belongs to the daemon's loop."""

    def __init__(
        self,
        context: Context,
        ports: PortTable,
        flows: FlowTable,
        endpoints: EndpointTable,
        registry: RegistryClient,
        modules: ModuleTable,
    ) -> None:
        self._context = context
        self._ports = ports
        self._flows = flows
        self._endpoints = endpoints
        self._registry = registry
        self._modules = modules
        self._plugins: dict[str, Plugin] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._installed_asked: set[str] = set()
        self.flows_settled: Callable[[list[int], float], Awaitable[None]] = _no_wait
        self._routes_told: dict[int, str | None] = {}
        modules.on_ready = self._on_ready

    def all(self) -> list[Plugin]:
        """Return the plugins by name."""
        return sorted(self._plugins.values(), key=lambda p: p.name)

    async def load(self, name: str, path: str, source: str) -> Plugin:
        """Load a plugin, or load it again with new source, in its stage host.

        Raises
        ------
        PluginError, ContractError
            What the host says about the file; a plugin that ran before keeps running.
        CapacityError
            `PLUGINS_MAX` or `PLUGIN_SOURCE_BYTES_MAX`.
        """
        if len(source.encode()) > limits.PLUGIN_SOURCE_BYTES_MAX:
            raise errors.CapacityError(
                f"the plugin has {len(source.encode())} bytes, PLUGIN_SOURCE_BYTES_MAX is"
                f" {limits.PLUGIN_SOURCE_BYTES_MAX}",
                limit="PLUGIN_SOURCE_BYTES_MAX",
            )
        if name not in self._plugins and len(self._plugins) >= limits.PLUGINS_MAX:
            raise errors.CapacityError(
                f"PLUGINS_MAX ({limits.PLUGINS_MAX}) are loaded", limit="PLUGINS_MAX"
            )
        known = self._plugins.get(name)
        plugin = known or Plugin(name, path)
        try:
            process = await self._ready_host(name)
            answer = await self._push(
                process, "stage_load", {"plugin": name, "path": path, "source": source}, LOAD_S
            )
        except BaseException:
            if known is None:
                await self._drop_host(name)
            raise
        plugin.path, plugin.exports, plugin.error = path, answer["exports"], ""
        self._plugins[name] = plugin
        self._source_path(name).write_text(source)
        self._keep(plugin)
        await self._run_all(plugin, process)
        return plugin

    async def attach(self, plugin: Plugin, channel_name: str, kind: str | None) -> ChannelRecord:
        """Put a plugin's transform at the end of a channel's chain, or make its policy the channel's route."""
        channel = self._registry.view.channel(channel_name)
        if channel is None:
            raise unknown_channel(channel_name, [c.name for c in self._registry.view.channels])
        transforms, routes = plugin.exported("transform"), plugin.exported("route")
        chosen = kind or ("transform" if transforms else "route")
        names = transforms if chosen == "transform" else routes
        if len(names) != 1:
            raise errors.PluginError(
                f"plugin {plugin.name!r} exports {len(names)} of kind {chosen};"
                " give --kind, or name them in fabric.yaml",
                plugin=plugin.name,
                exports=names,
            )
        if chosen == "route":
            return await self._registry.change(channel_name, route=names[0])
        return await self._attach_transform(plugin, channel, names[0])

    async def _attach_transform(
        self, plugin: Plugin, channel: ChannelRecord, name: str
    ) -> ChannelRecord:
        self._check_transform(plugin, channel, name)
        if name in channel.transforms:
            return channel
        process = self._modules.find("stage", plugin.name)
        if process is None:
            raise errors.PluginError(
                f"plugin {plugin.name!r} has no stage host", plugin=plugin.name
            )
        delivers = delivered_type(plugin, channel, name)
        waiting = [
            e.port_name
            for e in self._registry.view.endpoints
            if e.channel == channel.number and e.role == "receiver" and not e.transform
        ]
        if delivers != channel.delivers and waiting:
            raise errors.TypeMismatchError(
                f"transform {name!r} makes channel {channel.name!r} deliver"
                f" {delivers or channel.type_name}, and {waiting[0]!r} receives the old type;"
                " stop the receivers first",
                channel=channel.name,
                receivers=waiting[:8],
            )
        await self._run(plugin, process, channel.name, name, len(channel.transforms))
        return await self._registry.change(
            channel.name, transforms=(*channel.transforms, name), delivers=delivers
        )

    @staticmethod
    def _check_transform(plugin: Plugin, channel: ChannelRecord, name: str) -> None:
        accepts = str(plugin.export("transform", name).get("accepts", "any")).partition("@")[0]
        carried = channel.delivers or channel.type_name
        if accepts not in ("any", carried):
            raise errors.TypeMismatchError(
                f"transform {name!r} accepts {accepts}, channel {channel.name!r} carries {carried} there",
                channel=channel.name,
                transform=name,
                accepts=accepts,
                carried=carried,
            )
        if channel.pattern not in ("stream", "queue"):
            raise errors.ConfigError(
                f"transforms run on stream and queue channels, {channel.name!r} is {channel.pattern}",
                channel=channel.name,
            )

    # ---------------------------------------------------------------- what happened
    def on_port_gone(self, port: Port) -> None:
        """A stage host died: its chains are gone until it is back."""
        for plugin in self._plugins.values():
            if port.owner == f"stage-{plugin.name}":
                plugin.running.clear()

    def on_reported(self, port: Port, what: str) -> None:
        """A stage host resumed: its chains still run."""

    def on_view(self, view: View) -> None:
        """A channel may ask for a transform that a plugin here has, or that is installed; its policy may be new."""
        self._tell_routes(view)
        for plugin in self._plugins.values():
            process = self._modules.find("stage", plugin.name)
            if process is not None and process.ready.is_set():
                self._background(self._run_all(plugin, process))
        known = {name for plugin in self._plugins.values() for name in plugin.exported("transform")}
        for channel in view.channels:
            for name in (*channel.transforms, *([channel.route] if channel.route else ())):
                if name not in known and name not in self._installed_asked and self._uses(channel):
                    self._installed_asked.add(name)
                    self._background(self._load_installed(name))

    def _tell_routes(self, view: View) -> None:
        """Tell local senders of another policy; one that was told nothing yet has what its `open` answered."""
        routes = {channel.number: channel.route for channel in view.channels}
        told, self._routes_told = self._routes_told, {}
        for record in self._endpoints.all():
            if record.role != "sender" or record.channel not in routes:
                continue
            route = self._routes_told[record.endpoint] = routes[record.channel]
            port = self._ports.get(record.port)
            if told.get(record.endpoint) != route and port is not None:
                self._background(self._tell_route(port, record.endpoint, route))

    async def _tell_route(self, port: Port, endpoint: int, route: str | None) -> None:
        try:
            await port.push("route", {"endpoint": endpoint, "route": route})
        except errors.FabricError as error:
            self._context.events.add("route not told", endpoint=endpoint, reason=str(error))

    def restore(self, loaded: Loaded) -> None:
        """Take back the plugins that the last daemon had loaded."""
        for key, (value, _) in loaded.items.items():
            if key.startswith("plugin/"):
                plugin = Plugin(value["name"], value["path"], value["exports"])
                plugin.running = {(channel, name) for channel, name in value["running"]}
                self._plugins[plugin.name] = plugin

    def _uses(self, channel: ChannelRecord) -> bool:
        """Tell whether this node has an end of a channel (so that its policies are needed here)."""
        return any(e.channel == channel.number for e in self._endpoints.all())

    async def _load_installed(self, name: str) -> None:
        """Load an installed plugin by the name it is registered under; a name nobody registered is an event."""
        if any(
            name in (*p.exported("transform"), *p.exported("route")) for p in self._plugins.values()
        ):
            return
        try:
            await self.load(name, "", "")
        except errors.FabricError as error:
            self._context.events.add("plugin not found", plugin=name, reason=str(error))

    def _on_ready(self, process: Process) -> None:
        plugin = self._plugins.get(process.name) if process.kind == "stage" else None
        if plugin is not None and not plugin.busy.locked():
            self._background(self._heal(plugin, process))

    async def _heal(self, plugin: Plugin, process: Process) -> None:
        """Give a new host what the old one had."""
        source = self._source_path(plugin.name).read_text()
        fields = {"plugin": plugin.name, "path": plugin.path, "source": source}
        try:
            answer = await self._push(process, "stage_load", fields, LOAD_S)
            plugin.exports, plugin.error = answer["exports"], ""
            await self._run_all(plugin, process)
        except errors.FabricError as error:
            plugin.error = str(error)
            self._context.events.add("plugin not healed", plugin=plugin.name, reason=str(error))

    # ---------------------------------------------------------------- routes
    async def route_ask(self, port: Port, fields: dict[str, Any]) -> dict[str, Any]:
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
        plugin = next(
            (p for p in self._plugins.values() if channel.route in p.exported("route")), None
        )
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
        import zlib

        key = fields.get("key") or b""
        ordered = sorted(flows, key=lambda f: f.target_endpoint)
        return ordered[
            zlib.crc32(key if isinstance(key, bytes) else str(key).encode()) % len(ordered)
        ]

    # ---------------------------------------------------------------- host
    async def _ready_host(self, name: str) -> Process:
        process = self._modules.find("stage", name)
        if process is None:
            process = self._modules.start_stage_host(name, {"plugin": name})
        try:
            async with asyncio.timeout(LOAD_S):
                await process.ready.wait()
        except TimeoutError as error:
            raise errors.PluginError(
                f"the stage host of {name!r} is not ready after {LOAD_S:g} s; see fabricctl plugin logs {name}",
                plugin=name,
            ) from error
        return process

    async def _drop_host(self, name: str) -> None:
        process = self._modules.find("stage", name)
        if process is not None and process.life.state is not State.STOPPED:
            await self._modules.stop(process, 1.0)

    async def _push(
        self, process: Process, op: str, fields: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        port = self._ports.get(process.port)
        if port is None or port.connection is None:
            raise errors.PeerLostError(
                f"the stage host of {process.name!r} is not attached", plugin=process.name
            )
        return await port.connection.push(op, fields, (), timeout_s)

    async def _run_all(self, plugin: Plugin, process: Process) -> None:
        """Run what the channels ask for and this host does not run yet."""
        for channel in self._registry.view.channels:
            for index, name in enumerate(channel.transforms):
                if name in plugin.exported("transform"):
                    try:
                        await self._run(plugin, process, channel.name, name, index)
                        delivers = delivered_type(plugin, channel, name)
                        if name == channel.transforms[-1] and delivers != channel.delivers:
                            await self._registry.change(channel.name, delivers=delivers)
                    except errors.FabricError as error:
                        plugin.error = str(error)
                        self._context.events.add(
                            "transform does not run", transform=name, reason=str(error)
                        )

    async def _run(
        self, plugin: Plugin, process: Process, channel: str, transform: str, stage: int
    ) -> None:
        async with plugin.busy:
            if (channel, transform) in plugin.running:
                return
            fields = {"channel": channel, "transform": transform, "stage": stage}
            await self._push(process, "stage_run", fields, limits.CONTROL_CALL_S)
            plugin.running.add((channel, transform))
            self._keep(plugin)

    def transform_of(self, port: Port, channel: str, stage: int, role: str) -> str:
        """Name the transform whose hop a stage host opens without naming it; empty when it is not known."""
        record = self._registry.view.channel(channel)
        index = stage if role == "receiver" else stage - 1
        if record is not None and 0 <= index < len(record.transforms):
            return record.transforms[index]
        return ""

    def _source_path(self, name: str) -> Path:
        folder = self._context.state_dir / "plugins"
        folder.mkdir(exist_ok=True, mode=0o700)
        return folder / f"{name}.source"

    def _keep(self, plugin: Plugin) -> None:
        value = {
            "name": plugin.name,
            "path": plugin.path,
            "exports": plugin.exports,
            "running": sorted(plugin.running),
        }
        self._context.keeper.put(f"plugin/{plugin.name}", value)

    def _background(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
