"""Plugins of a node: each in a stage host, loaded, run on its channels, healed after a crash, asked for routes.

The host is an ordinary port under supervision; when a new one is ready it gets `stage_load` and `stage_run` again. A
transform belongs to a channel from the moment the registry says so; its endpoints exist before.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fabric import errors, limits, steps
from fabric.controlplane.audit import ENDED
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

Chain = tuple[str, str, int]  #: channel, transform, generation


@dataclass(eq=False)
class Plugin:
    """One loaded plugin. `running`: (channel, transform, generation) its present host runs; `opening` what it begins.

    `is_planned`: a plan brought it, so a plan may take it away; `source` is the text that the host has.
    """

    name: str
    path: str
    exports: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    running: set[Chain] = field(default_factory=set)
    opening: int = 0
    is_planned: bool = False
    digest: str = ""
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    def exported(self, kind: str) -> list[str]:
        """Return the names of its exports of a kind."""
        return [e["name"] for e in self.exports if e["kind"] == kind]

    def export(self, kind: str, name: str) -> dict[str, Any]:
        """Return one export."""
        return next(e for e in self.exports if e["kind"] == kind and e["name"] == name)


def is_installed(name: str) -> bool:
    """Tell whether a transform or policy of this name is registered by an installed package."""
    groups = ("fabric.transforms", "fabric.routes")
    return any(point.name == name for group in groups for point in entry_points(group=group))


def delivered_type(plugin: Plugin, channel: ChannelRecord, transform: str) -> str:
    """Name the type a channel delivers behind `transform`; empty when it is the channel's own."""
    produces = str(plugin.export("transform", transform).get("produces", "any")).partition("@")[0]
    if produces == "any":
        return channel.delivers
    return "" if produces == channel.type_name else produces


async def _no_wait(senders: list[int], timeout_s: float) -> None:
    """Nothing is being set up."""


def _is_older(channel: ChannelRecord, generation: int) -> bool:
    """Tell a superseded generation of a channel; one above the present is being made ready by a plan."""
    return generation != channel.generation and (
        generation < channel.generation or channel.graph(generation) is not None
    )


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
        self._retiring: set[Chain] = set()
        self.flows_settled: Callable[[list[int], float], Awaitable[None]] = _no_wait
        self._routes_told: dict[int, str | None] = {}
        modules.on_ready = self._on_ready

    def all(self) -> list[Plugin]:
        """Return the plugins by name."""
        return sorted(self._plugins.values(), key=lambda p: p.name)

    async def load(self, name: str, path: str, source: str, keep: bool = False) -> Plugin:
        """Load a plugin, or load it again with new source, in its stage host.

        With `keep`, chains that run go on with the code that they have.

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
            draft = self._write_source(name, source)
            fields = {"plugin": name, "path": path, "source": source, "keep": keep}
            answer = await self._push(process, "stage_load", fields, LOAD_S)
        except BaseException:
            if known is None:
                await self._drop_host(name)
            raise
        os.replace(draft, self._source_path(name))
        plugin.path, plugin.exports, plugin.error = path, answer["exports"], ""
        plugin.digest = hashlib.sha256(source.encode()).hexdigest()
        self._plugins[name] = plugin
        self._keep(plugin)
        if not keep:
            await self._run_all(plugin, process)
        return plugin

    async def unload(self, name: str) -> None:
        """Take a plugin away: its host ends, its source goes. Its chains must have ended before."""
        plugin = self._plugins.pop(name, None)
        if plugin is None:
            return
        self._context.keeper.drop(f"plugin/{name}")
        await self._drop_host(name)
        self._source_path(name).unlink(missing_ok=True)

    def mark_planned(self, name: str, is_planned: bool) -> None:
        """Note whether a plan has a plugin."""
        plugin = self._plugins[name]
        if plugin.is_planned != is_planned:
            plugin.is_planned = is_planned
            self._keep(plugin)

    def chosen(self, plugin: Plugin, channel: str, kind: str | None) -> tuple[str, str]:
        """Return the kind (`transform`, `route`) and name of what is to be put on a channel.

        Raises
        ------
        PluginError
            The plugin exports none, or several, of the kind.
        """
        transforms, routes = plugin.exported("transform"), plugin.exported("route")
        which = kind or ("transform" if transforms else "route")
        names = transforms if which == "transform" else routes
        if len(names) != 1:
            raise errors.PluginError(
                f"plugin {plugin.name!r} exports {len(names)} of kind {which};"
                " give --kind, or name them in fabric.yaml",
                plugin=plugin.name,
                channel=channel,
                exports=names,
            )
        return which, names[0]

    # ---------------------------------------------------------------- what happened
    def on_port_gone(self, port: Port) -> None:
        """A stage host died: its chains are gone until it is back."""
        for plugin in self._plugins.values():
            if port.owner == f"stage-{plugin.name}":
                plugin.running.clear()

    def on_reported(self, port: Port, what: str) -> None:
        """A stage host resumed: its chains still run."""

    def generation_of(self, port: Port) -> int:
        """Return the generation that a stage host's new endpoint serves: one chain of a plugin is begun at a time."""
        plugin = self._plugins.get(port.name)
        return plugin.opening if plugin is not None else 0

    def on_view(self, view: View) -> None:
        """A channel may ask for a transform that a plugin here has, or that is installed; its policy may be new."""
        self._tell_routes(view)
        self._retire_chains(view)
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
                plugin.running = {
                    (channel, name, number) for channel, name, number in value["running"]
                }
                plugin.is_planned, plugin.digest = value["is_planned"], value["digest"]
                self._plugins[plugin.name] = plugin

    def _uses(self, channel: ChannelRecord) -> bool:
        """Tell whether this node has an end of a channel (so that its policies are needed here)."""
        return any(e.channel == channel.number for e in self._endpoints.all())

    async def _load_installed(self, name: str) -> None:
        """Load an installed plugin by the name it is registered under; a name nobody registered is an event."""
        if not is_installed(name):
            self._context.events.add(
                "plugin not found", plugin=name, reason="no file, not installed"
            )
            return
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
        if process is not None and process.life.state in (State.STOPPING, State.STOPPED):
            await self._modules.stop(process, 1.0)  # it was being taken away: to its end, then anew
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
                        await self._run(
                            plugin, process, channel.name, name, index, channel.generation
                        )
                        delivers = delivered_type(plugin, channel, name)
                        if name == channel.transforms[-1] and delivers != channel.delivers:
                            await self._registry.change(channel.name, delivers=delivers)
                    except errors.FabricError as error:
                        plugin.error = str(error)
                        self._context.events.add(
                            "transform does not run", transform=name, reason=str(error)
                        )

    async def run_chain(self, channel: str, transforms: tuple[str, ...], generation: int) -> int:
        """Run what plugins here have of a channel's graph of one generation; returns how many transforms that are.

        Raises
        ------
        FabricError
            What a host says that cannot run one.
        """
        count = 0
        for index, name in enumerate(transforms):
            plugin = next((p for p in self.all() if name in p.exported("transform")), None)
            if plugin is not None:
                process = await self._ready_host(plugin.name)
                await self._run(plugin, process, channel, name, index, generation)
                count += 1
        return count

    async def _run(
        self,
        plugin: Plugin,
        process: Process,
        channel: str,
        transform: str,
        stage: int,
        generation: int,
    ) -> None:
        chain = (channel, transform, generation)
        async with plugin.busy:
            if chain in plugin.running:
                return
            fields = {
                "channel": channel,
                "transform": transform,
                "stage": stage,
                "generation": generation,
            }
            plugin.opening = generation
            await self._push(process, "stage_run", fields, limits.CONTROL_CALL_S)
            plugin.running.add(chain)
            self._keep(plugin)

    # ---------------------------------------------------------------- chains of older generations
    def _retire_chains(self, view: View) -> None:
        """End the chains that no message comes to any more, each once it is empty."""
        for plugin in self._plugins.values():
            for chain in plugin.running - self._retiring:
                channel = view.channel(chain[0])
                if channel is None or _is_older(channel, chain[2]):
                    self._retiring.add(chain)
                    self._background(self._retire_chain(plugin, chain))

    async def _retire_chain(self, plugin: Plugin, chain: Chain) -> None:
        try:
            pause, longest = limits.GENERATION_POLL_S
            while chain in plugin.running and not self._is_empty(plugin, chain):
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)
            steps.at("chain.empty")
            await self.stop_chain(plugin, chain)
        except errors.FabricError as error:
            log.info("chain not ended", extra={"chain": str(chain), "reason": str(error)})
        finally:
            self._retiring.discard(chain)

    async def stop_chain(self, plugin: Plugin, chain: Chain) -> None:
        """End one chain of a plugin's host and close its endpoints."""
        process = self._modules.find("stage", plugin.name)
        if process is None or chain not in plugin.running:
            return
        channel, transform, generation = chain
        fields = {"channel": channel, "transform": transform, "generation": generation}
        await self._push(process, "stage_stop", fields, limits.CONTROL_CALL_S)
        plugin.running.discard(chain)
        self._keep(plugin)

    async def drop_generations(self, above: int) -> None:
        """End the chains that were made for plans which did not come into force; nothing was ever sent to them."""
        for plugin in self.all():
            for chain in [c for c in plugin.running if c[2] > above]:
                channel = self._registry.view.channel(chain[0])
                if channel is None or channel.graph(chain[2]) is None:
                    await self.stop_chain(plugin, chain)

    def _is_empty(self, plugin: Plugin, chain: Chain) -> bool:
        """Nobody sends to its inlet, and what left its outlet has ended."""
        ends = [
            e for e in self._endpoints.all()
            if e.transform == chain[1] and e.generation == chain[2] and self._name_of(e.channel) == chain[0]
        ]  # fmt: skip
        mine = {e.endpoint for e in ends if e.port_name == plugin.name}
        if any(half.endpoint in mine for half in self._flows.ins.values()):
            return False
        for number in {e.port for e in ends if e.endpoint in mine}:
            port = self._ports.get(number)
            if port is None or not port.is_alive:
                continue
            state = self._context.native.inspect_state(port.state_fd)
            for ledger in state["ledgers"]:
                if ledger["endpoint"] in mine and any(
                    row["state"] != ENDED for row in ledger["outstanding"]
                ):
                    return False
        return True

    def _name_of(self, channel: int) -> str:
        return next((c.name for c in self._registry.view.channels if c.number == channel), "")

    def transform_of(self, port: Port, channel: str, stage: int, role: str) -> str:
        """Name the transform whose hop a stage host opens without naming it; empty when it is not known."""
        record = self._registry.view.channel(channel)
        index = stage if role == "receiver" else stage - 1
        if record is not None and 0 <= index < len(record.transforms):
            return record.transforms[index]
        return ""

    def _source_path(self, name: str) -> Path:
        return self._context.state_dir / "plugins" / f"{name}.source"

    def _write_source(self, name: str, source: str) -> Path:
        """Write a plugin's text for later hosts beside the present one; returns where."""
        path = self._source_path(name)
        draft = path.with_suffix(".new")
        try:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            draft.write_text(source)
            return draft
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise errors.StorageError(
                f"the plugin {name!r} cannot be kept in {path}: {error.strerror or error};"
                " free some space or make the folder writable, then load it again",
                path=str(path),
                reason=str(error),
            ) from error

    def _keep(self, plugin: Plugin) -> None:
        value = {
            "name": plugin.name,
            "path": plugin.path,
            "exports": plugin.exports,
            "running": sorted(plugin.running),
            "is_planned": plugin.is_planned,
            "digest": plugin.digest,
        }
        self._context.keeper.put(f"plugin/{plugin.name}", value)

    def _background(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
