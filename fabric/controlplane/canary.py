"""New code of a plugin beside the running one, on copies of live messages: compared, taken away on a difference.

The stage host runs the candidate in a child process (`fabric.worker.canary`); this starts that, looks at what it found,
and ends it: on the first difference or failure (rolled back, an event says why), or once it was asked for long enough.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fabric import errors, limits
from fabric.controlplane.plugins import Plugin

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

LOOK_S = 0.1


class Canaries:
    """Belongs to the daemon's loop."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._candidates: dict[str, tuple[str, str]] = {}  # path and text by plugin
        self._watches: dict[str, asyncio.Task[None]] = {}

    async def begin(self, plugin: Plugin, fields: dict[str, Any]) -> None:
        """Start `{path, source, seconds, messages}` beside the running version.

        Raises
        ------
        ContractError
            The candidate does not load, or lacks a transform that runs.
        """
        await self.end(plugin, "replaced by another canary")
        path, source = fields.get("path") or plugin.path, fields.get("source") or ""
        seconds = min(fields.get("seconds") or limits.CANARY_S, limits.CANARY_S_MAX)
        await self._push(plugin, "stage_canary", {"plugin": plugin.name, "path": path, "source": source})  # fmt: skip
        self._candidates[plugin.name] = path, source
        plugin.canary = {
            "state": "running",
            "path": path,
            "seconds": seconds,
            "messages": fields.get("messages") or 0,
            "compared": 0,
        }
        watch = asyncio.get_running_loop().create_task(self._watch(plugin, seconds))
        self._watches[plugin.name] = watch

    def candidate(self, plugin: Plugin) -> tuple[str, str]:
        """Return path and text of what may be promoted; `PluginError` says why nothing may."""
        state = plugin.canary.get("state", "")
        if state not in ("running", "passed") or plugin.name not in self._candidates:
            why = plugin.canary.get("reason") or "there is no canary"
            raise errors.PluginError(
                f"nothing of {plugin.name!r} can be promoted: {why}; fabricctl plugin canary {plugin.name} FILE",
                plugin=plugin.name,
            )
        if not plugin.canary["compared"]:
            raise errors.PluginError(
                f"the canary of {plugin.name!r} has seen no message yet: wait for traffic, or reload the file instead",
                plugin=plugin.name,
            )
        return self._candidates[plugin.name]

    async def end(self, plugin: Plugin, reason: str) -> None:
        """End a canary that runs; without one nothing happens."""
        watch = self._watches.pop(plugin.name, None)
        if watch is not None:
            watch.cancel()
        if plugin.canary.get("state") == "running":
            await self._finish(plugin, "ended", reason)
        self._candidates.pop(plugin.name, None)

    async def _watch(self, plugin: Plugin, seconds: float) -> None:
        """Look until there is a difference, or enough was compared for long enough."""
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + seconds
        while plugin.canary["state"] == "running":
            await asyncio.sleep(LOOK_S)
            try:
                found = await self._push(plugin, "stage_canary_look", {})
            except errors.FabricError as error:
                await self._finish(plugin, "rolled back", f"its stage host does not say: {error}")
                return
            plugin.canary.update(found)
            enough = plugin.canary["messages"]
            if found["reason"]:
                await self._finish(plugin, "rolled back", found["reason"])
            elif enough and found["compared"] >= enough:
                await self._finish(plugin, "passed", f"{found['compared']} messages were equal")
            elif loop.time() >= ends_s:
                state = "passed" if found["compared"] else "ended"
                await self._finish(plugin, state, f"{found['compared']} messages were equal")

    async def _finish(self, plugin: Plugin, state: str, reason: str) -> None:
        plugin.canary.update(state=state, reason=reason)
        severity = "warning" if state == "rolled back" else "info"
        self._daemon.context.events.add(
            f"canary {state}", severity=severity, plugin=plugin.name, reason=reason,
            compared=plugin.canary["compared"],
        )  # fmt: skip
        try:
            await self._push(plugin, "stage_canary_end", {})
        except errors.FabricError:
            return  # the child ends with its host

    async def _push(self, plugin: Plugin, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        return await self._daemon.stages.ask_host(plugin, op, fields)
