"""A plan at one node: try what it brings aside, make its chains ready, become what it says. The registry's node asks.

`converge` is the same for a plan that is applied, rolled back to, or found after an absence: it compares the node with
the plan and does what is missing, so it may be repeated. What it has done is kept for a restarted daemon.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from fabric import errors, limits, steps
from fabric.config import ModuleSpec
from fabric.controlplane.logs import tail
from fabric.controlplane.modules import Process
from fabric.registry.plans import Plan, PluginPlan
from fabric.worker import plugin_check

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

log = logging.getLogger("fabricd.plan")

#: verbs, served by the registry's node (`plan_apply`), and what that asks of every node
VERBS = frozenset(
    {
        "plan_show",
        "plan_apply",
        "plan_attach",
        "plan_detach",
        "plan_diff",
        "plan_rollback",
        "plan_history",
    }
)
CALLS = frozenset({"plan_verify", "plan_prepare", "plan_converge", "plan_usage"})


class PlanNode:
    """Belongs to the daemon's loop; one prepare or converge at a time. `ready` once the daemon has restored all."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._turn = asyncio.Lock()
        self._unloads: set[asyncio.Task[None]] = set()
        self.ready = asyncio.Event()
        kept = daemon.loaded.items.get("plan", ({}, -1))[0]
        self._generation = int(kept.get("generation", 0))
        self._is_done = bool(kept.get("is_done", True))
        self._modules: list[str] = list(kept.get("modules", ()))

    async def serve(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Serve one call of the registry's node."""
        await self.ready.wait()
        if op == "plan_verify":
            return {"exports": await plugin_check.run(fields["plugins"], fields["installed"])}
        if op == "plan_usage":
            return {"usage": self.usage()}
        async with self._turn:
            if op == "plan_prepare":
                return await self._prepare(fields)
            plan = msgspec.convert(fields["plan"], Plan)
            await self._until_epoch(fields["epoch"])
            return {"changes": await self._converge(plan)}

    async def _until_epoch(self, epoch: int) -> None:
        """Wait for the view that a plan was switched in: it comes by itself, on the same connection."""
        pause, longest = limits.GENERATION_POLL_S
        try:
            async with asyncio.timeout(limits.CONTROL_CALL_S):
                while self._daemon.registry.view.epoch < epoch:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, longest)
        except TimeoutError as error:
            raise errors.DeadlineExceeded(
                f"the view of epoch {epoch} did not come within {limits.CONTROL_CALL_S:g} s",
                epoch=epoch,
            ) from error

    # ---------------------------------------------------------------- before the channels are switched
    async def _prepare(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Load what is new and run the chains of the coming generation; nothing is sent to them yet."""
        self._keep(fields["generation"], is_done=False)
        steps.at("plan.node_begun")
        for plugin in msgspec.convert(fields["plugins"], list[PluginPlan]):
            await self._load(plugin)
        for name in fields["installed"]:
            await self._daemon.stages.load(name, "", "", keep=True, how=("apply", 0))
        steps.at("plan.node_loaded")
        ran = {}
        for chain in fields["chains"]:
            ran[chain["channel"]] = await self._daemon.stages.run_chain(
                chain["channel"],
                tuple(chain["transforms"]),
                fields["generation"],
                chain["settings"],
            )
        steps.at("plan.node_prepared")
        return {"ran": ran}

    async def _load(self, plugin: PluginPlan) -> bool:
        """Load a plugin unless its host has this very text; returns whether it did."""
        known = next((p for p in self._daemon.stages.all() if p.name == plugin.name), None)
        is_new = known is None or known.digest != plugin.digest
        if is_new:
            await self._daemon.stages.load(
                plugin.name, plugin.path, plugin.source, keep=True, how=("apply", 0)
            )
        self._daemon.stages.mark_planned(plugin.name, True)
        return is_new

    # ---------------------------------------------------------------- once they are
    async def _converge(self, plan: Plan) -> list[str]:
        """Have the plugins, chains and modules of a plan, and no others that a plan had brought."""
        if self._generation == plan.generation and self._is_done:
            return []
        own = self._daemon.context.name
        self._keep(plan.generation, is_done=False)
        plugins = [p for p in plan.plugins if p.node == own]
        modules = [m for m in plan.modules if m.node == own]
        for plugin in plugins:
            await self._load(plugin)
        await self._run_chains()
        steps.at("plan.node_chained")
        gone = [name for name in self._modules if name not in {m.name for m in modules}]
        self._modules = sorted({*self._modules, *(m.name for m in modules)})
        self._keep(plan.generation, is_done=False)
        await asyncio.gather(*(self._daemon.scaling.remove(name) for name in gone))
        steps.at("plan.node_removed")
        started = await self._start(modules)
        self._unload_others({p.name for p in plugins})
        await self._daemon.stages.old_chains.drop_generations(self._daemon.registry.view.generation)
        self._modules = sorted(m.name for m in modules)
        self._keep(plan.generation, is_done=True)
        steps.at("plan.node_converged")
        return [f"{name} removed" for name in gone] + started

    async def _run_chains(self) -> None:
        for channel in self._daemon.registry.view.channels:
            if channel.transforms:
                await self._daemon.stages.run_chain(
                    channel.name, channel.transforms, channel.generation, channel.settings
                )

    async def _start(self, modules: list[ModuleSpec]) -> list[str]:
        """Make the modules so, together, and wait until each replica is ready."""
        actions = [await self._daemon.scaling.apply(spec) for spec in modules]
        waits = [
            self._until_ready(process)
            for spec in modules
            for process in self._daemon.scaling.replicas_of(spec.name)
        ]
        await asyncio.gather(*waits)
        return [f"{m.name} {a}" for m, a in zip(modules, actions, strict=True)]

    async def _until_ready(self, process: Process) -> None:
        """Wait for a module's `ready`; raises when it ends before, or needs longer than `limits.MODULE_READY_S`."""
        if process.ready.is_set():
            return
        process.ended.clear()
        waits = [asyncio.ensure_future(e.wait()) for e in (process.ready, process.ended)]
        try:
            await asyncio.wait(waits, timeout=limits.MODULE_READY_S, return_when="FIRST_COMPLETED")
        finally:
            for wait in waits:
                wait.cancel()
        if process.ready.is_set():
            return
        path = self._daemon.modules.log_path("module", process.name)
        last = (tail(path, 1) if path.exists() else []) or ["it printed nothing"]
        if process.ended.is_set():
            raise errors.PeerLostError(
                f"module {process.name!r} ended before it was ready: {last[0]};"
                f" see fabricctl module logs {process.name}",
                module=process.name,
            )
        raise errors.DeadlineExceeded(
            f"module {process.name!r} was not ready within {limits.MODULE_READY_S:g} s;"
            f" see fabricctl module logs {process.name}",
            module=process.name,
            limit="MODULE_READY_S",
        )

    def _unload_others(self, wanted: set[str]) -> None:
        for plugin in self._daemon.stages.all():
            if plugin.is_planned and plugin.name not in wanted:
                self._daemon.stages.mark_planned(plugin.name, False)
                self.begin_unload(plugin.name)

    def resume(self) -> None:
        """Serve from now on; go on taking away what the last daemon was taking away."""
        for plugin in self._daemon.stages.all():
            if plugin.is_leaving:
                self.begin_unload(plugin.name)
        self.ready.set()

    def begin_unload(self, name: str) -> None:
        """Take a plugin away in the background, once its chains have ended."""
        task = asyncio.get_running_loop().create_task(self._unload(name))
        self._unloads.add(task)
        task.add_done_callback(self._unloads.discard)

    async def _unload(self, name: str) -> None:
        """Take a plugin away once its chains have ended, unless somebody wants it again meanwhile."""
        pause, longest = limits.GENERATION_POLL_S
        while True:
            plugin = next((p for p in self._daemon.stages.all() if p.name == name), None)
            if plugin is None or not plugin.is_leaving:
                return
            if not plugin.running:
                await self._daemon.stages.unload(name)
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    # ---------------------------------------------------------------- what older generations still carry
    def usage(self) -> list[dict[str, Any]]:
        """Return per channel and generation what of it is here: messages in flight, flows and chains.

        The present generation too: this node's view may be older than the one that asks.
        """
        view = self._daemon.registry.view
        channels = {c.number: c for c in view.channels}
        counts: dict[tuple[str, int], list[int]] = {}
        busy = self._outstanding()
        for out in self._daemon.flows.outs.values():
            channel = channels.get(out.channel)
            if channel is not None:
                row = counts.setdefault((channel.name, out.generation), [0, 0])
                row[0] += busy.get(out.flow, 0)
                row[1] += 1
        for plugin in self._daemon.stages.all():
            for name, _, generation in plugin.running:
                if view.channel(name) is not None:
                    counts.setdefault((name, generation), [0, 0])
        return [
            {"channel": name, "generation": generation, "messages": row[0], "flows": row[1]}
            for (name, generation), row in counts.items()
        ]

    def _outstanding(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for port in self._daemon.ports:
            try:
                state = self._daemon.context.native.inspect_state(port.state_fd)
            except errors.FabricError:
                continue  # listed as unreadable where it is looked at for itself
            for ledger in state["ledgers"]:
                for row in ledger["outstanding"]:
                    found[row["flow"]] = found.get(row["flow"], 0) + (row["state"] != "ended")
        return found

    def _keep(self, generation: int, *, is_done: bool) -> None:
        self._generation, self._is_done = generation, is_done
        self._daemon.context.keeper.put(
            "plan", {"generation": generation, "is_done": is_done, "modules": self._modules}
        )
