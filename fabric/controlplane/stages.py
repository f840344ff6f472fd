"""Plugins of a node: each in a stage host, loaded, run on its channels, healed after a crash, asked for routes.

The host is an ordinary port under supervision; when a new one is ready it gets `stage_load` and `stage_run` again. A
transform belongs to a channel from the moment the registry says so; its endpoints exist before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fabric import errors, limits
from fabric.config.routes import BUILT_IN, name_of
from fabric.controlplane.context import Context
from fabric.controlplane.endpoints import EndpointTable
from fabric.controlplane.flows import FlowTable
from fabric.controlplane.keeper_client import Loaded
from fabric.controlplane.modules import ModuleTable, Process, unknown_name
from fabric.controlplane.old_chains import OldChains
from fabric.controlplane.plugin_versions import PluginVersions, digest_of
from fabric.controlplane.plugins import Plugin, delivered_type, is_installed
from fabric.controlplane.ports import Port, PortTable
from fabric.controlplane.route_asks import RouteAsks
from fabric.controlplane.stage_parts import StageParts
from fabric.controlplane.view_change import ViewChange
from fabric.registry.client import RegistryClient
from fabric.registry.records import ChannelRecord, View
from fabric.worker.supervisor import State

log = logging.getLogger("fabricd.stages")

Settings = Mapping[str, Mapping[str, Any]]  #: transform → its parameters on a channel
LOAD_S = 30.0  #: a plugin file may import what it needs


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
        self._is_restored = False
        self.versions = PluginVersions(context)
        parts = StageParts(
            context, ports, flows, endpoints, registry, modules, plugins=self.all, push=self._push
        )
        self.routes = RouteAsks(parts)
        self.old_chains = OldChains(parts, self._keep)
        modules.on_ready = self._on_ready

    def all(self) -> list[Plugin]:
        """Return the plugins by name."""
        return sorted(self._plugins.values(), key=lambda p: p.name)

    def get(self, name: str) -> Plugin:
        """Return a plugin by name; `ConfigError` naming the nearest."""
        if name not in self._plugins:
            raise unknown_name("plugin", name, sorted(self._plugins))
        return self._plugins[name]

    async def load(
        self,
        name: str,
        path: str,
        source: str,
        keep: bool = False,
        how: tuple[str, int] = ("load", 0),
    ) -> Plugin:
        """Load a plugin, or load it again with new source, in its stage host.

        With `keep`, chains that run go on with the code that they have. `how` is what its history says: what loaded it
        and, after a rollback, which version it is again.

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
        self.versions.add(plugin, path, source, *how)
        plugin.path, plugin.exports, plugin.error = path, answer["exports"], ""
        plugin.digest = digest_of(source)
        plugin.is_leaving = False
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
        self.versions.forget(name)

    def leave(self, plugin: Plugin) -> None:
        """Note that a plugin is to go, once its chains have ended."""
        plugin.is_planned, plugin.is_leaving = False, True
        self._keep(plugin)

    async def hold(self, plugin: Plugin) -> dict[str, str]:
        """End a plugin's host, for somebody to run it by hand with the environment that this returns."""
        process = self._host(plugin)
        return await self._modules.hold(process)

    async def give_back(self, plugin: Plugin) -> None:
        """Supervise the host of a plugin again."""
        self._modules.give_back(self._host(plugin))

    async def ask_host(self, plugin: Plugin, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Ask a plugin's host something; it may import what it needs for the answer."""
        return await self._push(self._host(plugin), op, fields, LOAD_S)

    def _host(self, plugin: Plugin) -> Process:
        process = self._modules.find("stage", plugin.name)
        if process is None:
            raise errors.PeerLostError(
                f"plugin {plugin.name!r} has no stage host", plugin=plugin.name
            )
        return process

    def mark_planned(self, name: str, is_planned: bool) -> None:
        """Note whether a plan has a plugin; one that a plan no longer has is to go."""
        plugin = self._plugins[name]
        if plugin.is_planned != is_planned:
            plugin.is_planned, plugin.is_leaving = is_planned, not is_planned
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
        """A stage host resumed: what it runs is completed, what ended without this daemon's knowing included."""
        plugin = next((p for p in self.all() if port.owner == f"stage-{p.name}"), None)
        process = self._modules.find("stage", plugin.name) if plugin is not None else None
        if what == "resumed" and plugin is not None and process is not None:
            self._background(self._run_all(plugin, process))

    def generation_of(self, port: Port) -> int:
        """Return the generation that a stage host's new endpoint serves: one chain of a plugin is begun at a time."""
        plugin = self._plugins.get(port.name)
        return plugin.opening if plugin is not None else 0

    def on_view(self, view: View, change: ViewChange | None = None) -> None:
        """A channel may ask for a transform that a plugin here has, or that is installed; its policy may be new."""
        if not self._is_restored:
            return  # looked at once it is known what runs here
        if change is None or change.has_records or change.is_general:
            self.routes.tell(view)
            self.old_chains.look(view)
        else:
            self.routes.table.tell(view, change.among(view.channels))
        for plugin in self._plugins.values():
            process = self._modules.find("stage", plugin.name)
            if process is not None and process.ready.is_set():
                self._background(self._run_all(plugin, process))
        known = {name for plugin in self._plugins.values() for name in plugin.exported("transform")}
        for channel in view.channels if change is None else change.among(view.channels):
            route = name_of(channel.route)
            asked = [route] if route and route not in BUILT_IN else []  # senders have the rest
            for name in (*channel.transforms, *asked):
                if name not in known and name not in self._installed_asked and self._uses(channel):
                    self._installed_asked.add(name)
                    self._background(self._load_installed(name))

    def restore(self, loaded: Loaded) -> None:
        """Take back the plugins that the last daemon had loaded, and compare them with the view of now."""
        for key, (value, _) in loaded.items.items():
            if key.startswith("plugin/"):
                plugin = Plugin(value["name"], value["path"], value["exports"])
                plugin.running = {
                    (channel, name, number) for channel, name, number in value["running"]
                }
                plugin.unsure = set(plugin.running)
                plugin.is_planned, plugin.digest = value["is_planned"], value["digest"]
                plugin.is_leaving = value.get("is_leaving", False)
                plugin.versions = value.get("versions", [])
                self._plugins[plugin.name] = plugin
        for process in self._modules.all("stage"):
            if process.name not in self._plugins:  # its loading or unloading was cut off
                self._background(self._modules.stop(process, 1.0))
        self._is_restored = True
        self.on_view(self._registry.view)

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
            self._tell_deaths(plugin, answer.get("guard") or {})
            await self._run_all(plugin, process)
        except errors.FabricError as error:
            plugin.error = str(error)
            self._context.events.add("plugin not healed", plugin=plugin.name, reason=str(error))

    def _tell_deaths(self, plugin: Plugin, guard: dict[str, Any]) -> None:
        """Say how often the hosts of a plugin have died one after the other, and why, where that is known."""
        if not guard.get("deaths"):
            return
        reason = guard.get("reason") or "its process was killed, or ended itself"
        rest_s = float(guard.get("rest_s") or 0.0)
        rests = f"; left out for {rest_s:g} s, its messages go by on_error" if rest_s else ""
        plugin.error = f"{guard['deaths']} of its stage hosts ended: {reason}{rests}"
        self._context.events.add(
            "plugin ended its host", severity="warning", plugin=plugin.name,
            reason=f"{reason}{rests}", deaths=guard["deaths"],
        )  # fmt: skip

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
        if port is not None and port.is_alive and port.connection is None:
            with contextlib.suppress(
                TimeoutError
            ):  # after a restart of this daemon it is back at once
                async with asyncio.timeout(min(timeout_s, limits.PUSH_S)):
                    await port.connected.wait()
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
                        graph = (channel.name, index, channel.generation)
                        await self._run(plugin, process, name, graph, channel.settings)
                        delivers = delivered_type(plugin, channel, name)
                        if name == channel.transforms[-1] and delivers != channel.delivers:
                            await self._registry.change(channel.name, delivers=delivers)
                    except errors.FabricError as error:
                        plugin.error = str(error)
                        self._context.events.add(
                            "transform does not run", transform=name, reason=str(error)
                        )

    async def run_chain(
        self, channel: str, transforms: tuple[str, ...], generation: int, settings: Settings
    ) -> int:
        """Run what plugins here have of a channel's graph of one generation; returns how many transforms that are.

        `settings` are the parameters that the graph gives its transforms, by name.

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
                await self._run(plugin, process, name, (channel, index, generation), settings)
                count += 1
        return count

    async def _run(
        self,
        plugin: Plugin,
        process: Process,
        transform: str,
        graph: tuple[str, int, int],
        settings: Settings,
    ) -> None:
        """Run one transform in its host; `graph` is the channel, the hop and the generation."""
        channel, stage, generation = graph
        chain = (channel, transform, generation)
        async with plugin.busy:
            if chain in plugin.running - plugin.unsure:
                return
            fields = {
                "channel": channel,
                "transform": transform,
                "stage": stage,
                "generation": generation,
                "parameters": settings.get(transform, {}),
            }
            plugin.opening = generation
            await self._push(process, "stage_run", fields, limits.CONTROL_CALL_S)
            plugin.running.add(chain)
            plugin.unsure.discard(chain)
            self._keep(plugin)

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
            "is_leaving": plugin.is_leaving,
            "digest": plugin.digest,
            "versions": plugin.versions,
        }
        self._context.keeper.put(f"plugin/{plugin.name}", value)

    def _background(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
