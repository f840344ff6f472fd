"""Chains of older generations: each runs on until no message can come to it and what it sent has ended.

Nothing is drained by force: a chain whose consumer is slow lives, and with it its generation, as long as that takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from fabric import errors, limits, steps
from fabric.controlplane.audit import ENDED
from fabric.controlplane.plugins import Chain, Plugin
from fabric.controlplane.stage_parts import StageParts
from fabric.registry.records import ChannelRecord, View

log = logging.getLogger("fabricd.stages")


def _is_older(channel: ChannelRecord, generation: int) -> bool:
    """Tell a superseded generation of a channel; one above the present is being made ready by a plan."""
    return generation != channel.generation and (
        generation < channel.generation or channel.graph(generation) is not None
    )


class OldChains:
    """Belongs to the daemon's loop. `keep` reaches the keeper."""

    def __init__(self, parts: StageParts, keep: Callable[[Plugin], None]) -> None:
        self._context = parts.context
        self._ports = parts.ports
        self._flows = parts.flows
        self._endpoints = parts.endpoints
        self._registry = parts.registry
        self._modules = parts.modules
        self._plugins = parts.plugins
        self._push = parts.push
        self._keep = keep
        self._retiring: set[Chain] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def look(self, view: View) -> None:
        """End the chains that no message comes to any more, each once it is empty."""
        for plugin in self._plugins():
            for chain in plugin.running - self._retiring:
                channel = view.channel(chain[0])
                if channel is None or _is_older(channel, chain[2]):
                    self._retiring.add(chain)
                    self._background(self._retire_chain(plugin, chain))

    async def _retire_chain(self, plugin: Plugin, chain: Chain) -> None:
        try:
            pause, longest = limits.GENERATION_POLL_S
            while chain in plugin.running and not await self._end(plugin, chain):
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)
        finally:
            self._retiring.discard(chain)

    async def _end(self, plugin: Plugin, chain: Chain) -> bool:
        """End a chain that is empty; False: not yet, or its host could not be told, and is told again."""
        try:
            if not self._is_empty(plugin, chain):
                return False
            steps.at("chain.empty")
            await self.stop(plugin, chain)
        except errors.FabricError as error:
            log.info("chain not ended yet", extra={"chain": str(chain), "reason": str(error)})
            return False
        return True

    async def stop(self, plugin: Plugin, chain: Chain) -> None:
        """End one chain of a plugin's host and close its endpoints."""
        process = self._modules.find("stage", plugin.name)
        if process is None or chain not in plugin.running:
            return
        channel, transform, generation = chain
        fields = {"channel": channel, "transform": transform, "generation": generation}
        await self._push(process, "stage_stop", fields, limits.CONTROL_CALL_S)
        plugin.running.discard(chain)
        plugin.unsure.discard(chain)
        self._keep(plugin)

    async def drop_generations(self, above: int) -> None:
        """End the chains that were made for plans which did not come into force; nothing was ever sent to them."""
        for plugin in self._plugins():
            for chain in [c for c in plugin.running if c[2] > above]:
                channel = self._registry.view.channel(chain[0])
                if channel is None or channel.graph(chain[2]) is None:
                    await self.stop(plugin, chain)

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

    def _background(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
