"""What happens to a plugin after it was loaded: reload, canary, promote, roll back, unload, debug; asked on any node.

Each verb is one coroutine that answers the plugin's row. The node that has the plugin does it; what changes channels
goes through a plan, so that every message sees one graph.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from fabric import errors, limits
from fabric.controlplane.apply import asker
from fabric.controlplane.canary import Canaries
from fabric.controlplane.listing import plugin_row
from fabric.controlplane.modules import unknown_name
from fabric.controlplane.plugins import Plugin

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

VERBS = ("reload", "canary", "promote", "rollback", "unload", "debug", "undebug")
CALL_S = limits.APPLY_S


class PluginLife:
    """Belongs to the daemon's loop; one verb at a time for one plugin."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._turns: dict[str, asyncio.Lock] = {}
        self.canaries = Canaries(daemon)

    async def change(self, verb: str, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Have the node that has plugin `name` do `verb`; returns its row afterwards.

        Raises
        ------
        ConfigError
            No such plugin, verb or version.
        PluginError, ContractError
            The new code cannot take over; what ran goes on.
        """
        if verb not in VERBS:
            raise errors.ConfigError(f"no verb {verb!r}; use {', '.join(VERBS)}", key="verb")
        rows = await self._daemon.control.ls("plugin")
        owner = next((row["node"] for row in rows if row["name"] == name), None)
        if owner is None:
            raise unknown_name("plugin", name, sorted(str(row["name"]) for row in rows))
        view = self._daemon.registry.view
        node = next((n.number for n in view.nodes if n.name == owner), self._daemon.context.number)
        asked = {**fields, "verb": verb, "name": name}
        return await self._daemon.calls.call(node, "plugin_change", asked, CALL_S)

    async def serve(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Do a verb on this node."""
        name, verb = fields["name"], fields["verb"]
        plugin = self._daemon.stages.get(name)
        more: dict[str, Any] = {}
        async with self._turns.setdefault(name, asyncio.Lock()):
            if verb == "reload":
                await self._reload(plugin, fields)
            elif verb == "canary":
                await self.canaries.begin(plugin, fields)
            elif verb == "promote":
                await self._promote(plugin)
            elif verb == "rollback":
                await self._rollback(plugin, fields)
            elif verb == "unload":
                await self._unload(plugin)
            elif verb == "debug":
                more = {"environment": await self._daemon.stages.hold(plugin)}
            else:
                await self._daemon.stages.give_back(plugin)
        process = self._daemon.modules.find("stage", name)
        return {**plugin_row(self._daemon.context.name, plugin, process), **more}

    async def _reload(self, plugin: Plugin, fields: dict[str, Any]) -> None:
        path, source = fields.get("path") or plugin.path, fields.get("source") or ""
        await self.canaries.end(plugin, "replaced by a reload")
        await self._daemon.stages.load(plugin.name, path, source, how=("reload", 0))

    async def _promote(self, plugin: Plugin) -> None:
        """Let the candidate of a canary take over, unless it has shown a difference."""
        path, source = self.canaries.candidate(plugin)
        await self.canaries.end(plugin, "promoted")
        await self._daemon.stages.load(plugin.name, path, source, how=("promote", 0))

    async def _rollback(self, plugin: Plugin, fields: dict[str, Any]) -> None:
        """End a canary; without one, run an earlier version again."""
        if plugin.canary.get("state") == "running" and not fields.get("version"):
            await self.canaries.end(plugin, "rolled back")
            return
        row, source = self._daemon.stages.versions.before(plugin, fields.get("version") or None)
        how = ("rollback", row["number"])
        await self._daemon.stages.load(plugin.name, row["path"], source, how=how)

    async def _unload(self, plugin: Plugin) -> None:
        """Take it off its channels by a plan, wait until nothing is in its chains, end its host."""
        daemon = self._daemon
        await self.canaries.end(plugin, "unloaded")
        fields = {
            "name": plugin.name,
            "transforms": plugin.exported("transform"),
            "routes": plugin.exported("route"),
            "by": asker(daemon),
            "when_s": time.time(),  # wall time, for the history
        }
        node = daemon.membership.registry_number
        await daemon.calls.call(node, "plan_detach", fields, limits.APPLY_S)
        daemon.stages.leave(plugin)
        daemon.plan_node.begin_unload(plugin.name)
        await self._gone(plugin)

    async def _gone(self, plugin: Plugin) -> None:
        pause, longest = limits.GENERATION_POLL_S
        try:
            async with asyncio.timeout(limits.PLUGIN_UNLOAD_S):
                while plugin in self._daemon.stages.all():
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, longest)
        except TimeoutError:
            return  # its row says that it is leaving: a slow consumer keeps its chain as long as it takes
