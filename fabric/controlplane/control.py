"""The facade behind the control API: every verb of `fabricctl` as one coroutine that answers plain dicts.

It looks things up and delegates; it holds no state of its own. Called from the daemon's loop only.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric import __version__, errors, limits
from fabric.config import FabricSpec, ModuleSpec
from fabric.controlplane.apply import (
    Extensions,
    apply_modules,
    asker,
    extensions,
    plan_of,
    problems_of,
)
from fabric.controlplane.auditor import Auditor
from fabric.controlplane.codec_calls import CodecCalls
from fabric.controlplane.describer import module_problems, refuse
from fabric.controlplane.edge_bench import EdgeBench
from fabric.controlplane.listing import (
    channel_rows,
    channel_view,
    node_rows,
    summary,
)
from fabric.controlplane.modules import unknown_name
from fabric.controlplane.node_calls import plain
from fabric.controlplane.node_memory import memory
from fabric.controlplane.observed_events import find_events
from fabric.controlplane.observer import observed
from fabric.controlplane.path_bench import PathBench
from fabric.controlplane.path_calls import PathCalls
from fabric.controlplane.plugin_life import PluginLife
from fabric.controlplane.rail_probe import Wish
from fabric.controlplane.type_rows import type_rows
from fabric.registry.declare import unknown_channel
from fabric.worker.probe_plan import Budget

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon
    from fabric.controlplane.plugins import Plugin

SUMMARY_S = 2.0
MODULE_CALL_S = limits.MODULE_DRAIN_S + 10.0


class Control:
    """One per daemon; see docs/ARCHITECTURE.md, *What the verbs answer*."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.auditor = Auditor(daemon)
        self._edge_bench = EdgeBench(daemon)
        self.plugin_life = PluginLife(daemon)
        self.paths = PathCalls(daemon)
        self.codecs = CodecCalls(daemon)
        self._path_bench = PathBench(daemon, self.paths, self._edge_bench)

    async def status(self) -> dict[str, Any]:
        """Say who this node is and how much it carries."""
        daemon = self._daemon
        view = daemon.registry.view
        registry = view.node(daemon.membership.registry_number)
        listen = daemon.membership.links.listens_on()
        return {
            "node": daemon.context.name,
            "number": daemon.context.number,
            "incarnation": daemon.context.incarnation,
            "state": "stopping"
            if daemon.is_stopping
            else ("serving" if daemon.context.number else "joining"),
            "version": __version__,
            "pid": os.getpid(),
            "keeper_pid": daemon.keeper_pid,
            "socket": daemon.context.socket_path,
            "control_socket": daemon.context.socket_path + ".ctl",
            "state_dir": str(daemon.context.state_dir),
            "log": str(daemon.context.state_dir / "logs" / "fabricd.log"),
            "listen": f"{listen[0]}:{listen[1]}" if listen else None,
            "registry": registry.name if registry else None,
            "trouble": daemon.membership.trouble or None,
            "generation": view.generation,
            "live": list(view.live),
            "epoch": view.epoch,
            "uptime_s": daemon.uptime_s(),
            "downgrades": daemon.paths.downgrades,
            "waiting": self.paths.waiting(),
            "ports": sum(p.is_alive and p.kind != "gateway" for p in daemon.ports),
            "channels": len(view.channels),
            "modules": len(daemon.modules.all("module")),
            "plugins": len(daemon.stages.all()),
            "settling": daemon.death.settling(),
            "arena_bytes": daemon.segments.total_bytes(),
            "memory": memory(daemon),
            "events": daemon.context.events.rows()[-20:],
            "metrics": daemon.metrics.address,
            **observed(daemon.observer),
        }

    async def topology(self) -> dict[str, Any]:
        """Show nodes, links, ports, channels with endpoints and flows, cluster-wide."""
        view = self._daemon.registry.view
        parts = await self._summaries()
        ports = [row for part in parts.values() for row in part["ports"]]
        links = [row for part in parts.values() for row in part["links"]]
        received: dict[
            int, dict[str, int]
        ] = {}  # by flow; only the receiver's node has counted them
        for part in parts.values():
            for flow, messages, size_bytes in part["received"]:
                received[flow] = {"messages": messages, "bytes": size_bytes}
        flows = [
            {**row, **received.get(row["flow"], {"messages": 0, "bytes": 0})}
            for part in parts.values()
            for row in part["flows"]
        ]
        return {
            "generation": view.generation,
            "live": list(view.live),
            "epoch": view.epoch,
            "nodes": node_rows(view, self._daemon.context.number),
            "links": links,
            "ports": ports,
            "channels": [channel_view(view, c, flows) for c in view.channels],
        }

    async def ls(self, kind: str) -> list[dict[str, Any]]:
        """List nodes, modules, channels, plugins or types of the cluster."""
        view = self._daemon.registry.view
        if kind == "node":
            return node_rows(view, self._daemon.context.number)
        if kind not in ("module", "channel", "plugin", "type"):
            raise errors.ConfigError(
                f"unknown kind {kind!r}; use node, module, channel, plugin or type", kind=kind
            )
        parts = await self._summaries()
        if kind == "type":
            return type_rows(view.channels, (p for part in parts.values() for p in part["plugins"]))
        if kind == "channel":
            archived = await self._daemon.registry.archived()
            return channel_rows(view, list(parts.values()), archived)
        return [row for part in parts.values() for row in part[f"{kind}s"]]

    async def show(self, kind: str, name: str) -> dict[str, Any]:
        """Show one of them; a name that does not exist is `ConfigError` with the nearest that does."""
        rows = await self.ls(kind)
        for row in rows:
            if row["name"] == name:
                return row
        near = difflib.get_close_matches(name, [str(row["name"]) for row in rows], 1)
        hint = f"did you mean {near[0]!r}?" if near else f"fabricctl {kind} ls shows what there is"
        raise errors.ConfigError(f"there is no {kind} {name!r}; {hint}", kind=kind)

    async def validate(self, spec: FabricSpec) -> dict[str, Any]:
        """Check a file against this cluster: nodes that exist, channels that would conflict, names that are known."""
        problems = problems_of(self._daemon, spec, await self._extensions())
        return {"problems": problems + await module_problems(self._daemon, spec)}

    async def plan(self, spec: FabricSpec) -> dict[str, Any]:
        """Say what an apply would change, without changing anything."""
        remarks = await self._check(spec)
        fields = {"plan": plain(plan_of(self._daemon, spec))}
        return {"problems": remarks, **await self._ask_registry("plan_show", fields)}

    async def apply(self, spec: FabricSpec) -> dict[str, Any]:
        """Bring the next generation into force, on every node or on none; what the file no longer names goes."""
        remarks = await self._check(spec)
        fields = {"plan": plain(plan_of(self._daemon, spec))}
        return {"problems": remarks, **await self._ask_registry("plan_apply", fields)}

    async def diff(
        self, old: int | None = None, new: int | None = None, spec: FabricSpec | None = None
    ) -> dict[str, Any]:
        """Compare two generations, or one with a file; left out: the last two."""
        plan = plain(plan_of(self._daemon, spec)) if spec is not None else None
        return await self._ask_registry("plan_diff", {"from": old, "to": new, "plan": plan})

    async def rollback(self, generation: int | None = None) -> dict[str, Any]:
        """Apply an earlier generation, the last good one when none is named, as a new one."""
        fields = {"generation": generation, "by": asker(self._daemon), "when_s": _wall_s()}
        return await self._ask_registry("plan_rollback", fields)

    async def history(self) -> dict[str, Any]:
        """List the generations that are kept, newest first, and which are live."""
        return await self._ask_registry("plan_history", {})

    async def _check(self, spec: FabricSpec) -> list[dict[str, Any]]:
        found = problems_of(self._daemon, spec, await self._extensions())
        return refuse(found + await module_problems(self._daemon, spec))

    async def _ask_registry(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        node = self._daemon.membership.registry_number
        return await self._daemon.calls.call(node, op, fields, limits.APPLY_S)

    async def plugin_load(
        self, path: str, source: str, channel: str | None = None, kind: str | None = None
    ) -> dict[str, Any]:
        """Load (or load again) a plugin on this node and, if asked, put it on a channel; on a refusal nothing stays."""
        daemon = self._daemon
        name = Path(path).stem if path.endswith(".py") else path  # a module, or what is installed
        if channel is not None and daemon.registry.view.channel(channel) is None:
            raise unknown_channel(channel, [c.name for c in daemon.registry.view.channels])
        is_new = all(p.name != name for p in daemon.stages.all())
        plugin = await daemon.stages.load(name, path, source)
        generation = daemon.registry.view.generation
        if channel is not None:
            try:
                generation = await self._attach(plugin, channel, kind)
            except errors.FabricError:
                if is_new:
                    await daemon.stages.unload(name)
                raise
        return {
            "name": plugin.name,
            "exports": plugin.exports,
            "channel": channel,
            "generation": generation,
        }

    async def _attach(self, plugin: Plugin, channel: str, kind: str | None) -> int:
        which, name = self._daemon.stages.chosen(plugin, channel, kind)
        fields = {"channel": channel, "kind": which, "name": name, "by": asker(self._daemon)}
        answer = await self._ask_registry("plan_attach", {**fields, "when_s": _wall_s()})
        return int(answer["generation"])

    async def plugin_change(self, verb: str, name: str, **fields: Any) -> dict[str, Any]:
        """Reload, canary, promote, roll back, unload or debug a plugin, wherever it is; answers its row."""
        return await self.plugin_life.change(verb, name, fields)

    async def plugin_logs(self, name: str, lines: int) -> dict[str, Any]:
        """Return what a plugin printed, tracebacks included."""
        return await self._logs("plugin", name, lines)

    async def module_logs(self, name: str, lines: int) -> dict[str, Any]:
        """Return what a module printed, wherever it runs."""
        return await self._logs("module", name, lines)

    async def module_stop(self, name: str) -> dict[str, Any]:
        """Stop a module or one replica, wherever it runs; it is not started again."""
        return await self.module_drain(name, limits.DRAIN_S)

    async def module_drain(self, name: str, grace_s: float) -> dict[str, Any]:
        """Let a replica (or all of a module) finish what it holds within `grace_s`, hand back the rest and leave."""
        grace_s = min(max(grace_s, 0.0), limits.MODULE_DRAIN_S)
        return await self._at_module(name, "module_drain", {"name": name, "grace_s": grace_s})

    async def module_scale(self, name: str, replicas: int) -> dict[str, Any]:
        """Run so many replicas of a module, until an apply changes it."""
        return await self._at_module(name, "module_scale", {"name": name, "replicas": replicas})

    async def module_add(self, spec: FabricSpec) -> dict[str, Any]:
        """Start the modules of `spec` beside those that run, once their nodes and classes were looked at."""
        problems = await self._check(spec)
        changes = await apply_modules(self._daemon, list(spec.modules.values()))
        return {"changes": changes, "problems": problems}

    async def _at_module(self, name: str, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Call the node that has a module (or replica) of this name."""
        parts = await self._summaries()
        for node, part in parts.items():
            if name in part["scaled"] or any(
                name in (row["name"], row["module"]) for row in part["modules"]
            ):
                return await self._daemon.calls.call(node, op, fields, MODULE_CALL_S)
        known = {str(row["name"]) for part in parts.values() for row in part["modules"]}
        raise unknown_name("module", name, sorted(known))

    async def audit(self) -> dict[str, Any]:
        """Compare ledgers with what is found at one consistent cut of all nodes."""
        return await self.auditor.run()

    async def bench_edge(self, source: str, target: str, budget: Budget) -> dict[str, Any]:
        """Measure what the edge from node `source` to `target` delivers now; leaves nothing behind."""
        return await self._edge_bench.run(source, target, budget)

    async def path_ls(self, source: str = "") -> list[dict[str, Any]]:
        """List every rail of a node (this one by default) to every other."""
        return await self.paths.ls(source)

    async def path_show(
        self, peer: str, rail: int | None, size_bytes: int, source: str = ""
    ) -> dict[str, Any]:
        """Show the rails to a node: scores, changes, decisions."""
        return await self.paths.show(peer, rail, size_bytes, source)

    async def path_why(
        self, source: str, target: str, size_bytes: int, klass: str
    ) -> dict[str, Any]:
        """Say where a message would go, and why; nothing is sent."""
        return await self.paths.why(source, target, size_bytes, klass)

    async def codec_why(self, channel: str) -> list[dict[str, Any]]:
        """Say what the codec of a channel decided of late, by sender."""
        return await self.codecs.why(channel)

    async def codec_bench(
        self, channel: str, codecs: Sequence[str], seconds: float
    ) -> list[dict[str, Any]]:
        """Measure codecs on copies of what a channel carries."""
        return await self.codecs.bench(channel, codecs, seconds)

    async def path_probe(
        self, peer: str, rail: int | None, wish: Wish, source: str = ""
    ) -> dict[str, Any]:
        """Measure rails by themselves."""
        return await self.paths.probe(peer, rail, wish, source)

    async def path_pin(self, peer: str, rails: Sequence[int]) -> dict[str, Any]:
        """Bind what this node sends to a peer to some rails; none: let all carry."""
        return await self.paths.pin(peer, rails)

    async def bench_path(self, peer: str, budget: Budget) -> dict[str, Any]:
        """Measure the live rails to a node, alone and together, and the fabric over them."""
        return await self._path_bench.run(peer, budget)

    async def events(self, after: Mapping[str, int] | None = None, **query: Any) -> dict[str, Any]:
        """Return the events of all nodes that a query takes; see `fabric.telemetry.events.Query`."""
        return await find_events(self._daemon, after or {}, query)

    async def metrics(self) -> dict[str, Any]:
        """Return this node's metrics in Prometheus' text format."""
        return {"text": self._daemon.metrics.text().decode()}

    async def down(self) -> dict[str, Any]:
        """End this node in order; answers first, with every process that will end."""
        daemon = self._daemon
        pids = [os.getpid(), daemon.keeper_pid]
        kinds = ("probe", "module", "stage")
        pids += [p.pid for kind in kinds for p in daemon.modules.all(kind) if p.pid]
        asyncio.get_running_loop().call_later(0.1, daemon.context.keeper.stop)
        return {"pids": pids}

    # ---------------------------------------------------------------- served to other nodes
    async def serve(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Serve what another node's control asks of this one."""
        daemon = self._daemon
        if op == "summary":
            return summary(daemon)
        if op == "plugin_change":
            return await self.plugin_life.serve(fields)
        if op == "module_drain":
            return await daemon.scaling.drain(fields["name"], fields["grace_s"])
        if op == "module_scale":
            return await daemon.scaling.scale(fields["name"], fields["replicas"])
        if op == "apply_modules":
            import msgspec

            specs = msgspec.convert(fields["modules"], list[ModuleSpec])
            from fabric.controlplane.apply import start_modules

            return {"changes": await start_modules(daemon, specs)}
        kind = "stage" if op == "plugin_logs" else "module"
        return {"lines": daemon.modules.log_lines(kind, fields["name"], fields["lines"])}

    async def _extensions(self) -> Extensions:
        return extensions(await self.ls("plugin"))

    async def _summaries(self) -> dict[int, dict[str, Any]]:
        """Ask every node for its part; one that does not answer is left out and noted."""
        nodes = [n.number for n in self._daemon.registry.view.nodes if n.state != "dead"]
        calls = [self._daemon.calls.call(n, "summary", {}, SUMMARY_S) for n in nodes]
        found = await asyncio.gather(*calls, return_exceptions=True)
        parts = {}
        for node, answer in zip(nodes, found, strict=True):
            if isinstance(answer, dict):
                parts[node] = answer
            elif not isinstance(answer, errors.FabricError):
                raise answer
            else:
                self._daemon.context.events.add(
                    "node did not answer", node=node, reason=str(answer)
                )
        return parts

    async def _logs(self, kind: str, name: str, lines: int) -> dict[str, Any]:
        rows = await self.ls(kind)
        owner = next((row.get("node") for row in rows if row["name"] == name), None)
        view = self._daemon.registry.view
        node = next((n.number for n in view.nodes if n.name == owner), self._daemon.context.number)
        return await self._daemon.calls.call(node, f"{kind}_logs", {"name": name, "lines": lines})


def _wall_s() -> float:
    return time.time()  # wall time, for the history
