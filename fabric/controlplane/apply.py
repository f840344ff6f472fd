"""What a `fabric.yaml` asks of this cluster: its plan, what is wrong with it here, and the modules of one node.

How a plan comes into force is `plan_apply`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fabric import errors
from fabric.config import FabricSpec, ModuleSpec
from fabric.config.reader import did_you_mean
from fabric.config.routes import BUILT_IN, name_of
from fabric.controlplane.plan_rules import channel_record, check_channel_change
from fabric.registry.plans import Plan, PluginPlan

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

APPLY_S = 60.0


def plan_of(daemon: Daemon, spec: FabricSpec) -> Plan:
    """Return the plan that a file stands for on this node; reads its plugins.

    Raises
    ------
    ConfigError
        A plugin cannot be read.
    """
    own = daemon.context.name
    return Plan(
        by=asker(daemon),
        when_s=time.time(),  # wall time, for the history
        source=spec.source,
        plugins=tuple(_plugin_plan(plugin.path, own) for plugin in spec.plugins),
        channels=tuple(spec.channels.values()),
        modules=tuple(
            msgspec.structs.replace(m, node=m.node or own) for m in spec.modules.values()
        ),
    )


def asker(daemon: Daemon) -> str:
    """Name who asks on this node: the control socket is its user's alone."""
    return f"{os.getuid()}@{daemon.context.name}"


def _plugin_plan(path: str, node: str) -> PluginPlan:
    try:
        source = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"cannot read the plugin {path}: {error}", path=path) from error
    return PluginPlan(name=Path(path).stem, path=path, source=source, node=node)


def replicas_of(spec: ModuleSpec) -> list[str]:
    """Return the process names of a module: its own, or numbered from 0."""
    return (
        [spec.name]
        if spec.replicas == 1
        else [f"{spec.name}-{index}" for index in range(spec.replicas)]
    )


class Extensions(NamedTuple):
    """Names that channels can use: of plugins loaded anywhere in the cluster, and of installed ones."""

    plugins: frozenset[str]
    transforms: frozenset[str]
    routes: frozenset[str]


def extensions(plugin_rows: Iterable[dict[str, Any]]) -> Extensions:
    """Return what the listed plugins export, and what is registered under the entry-point groups."""
    rows = list(plugin_rows)
    exports = [export for row in rows for export in row["exports"]]

    def named(kind: str) -> frozenset[str]:
        loaded = {str(export["name"]) for export in exports if export["kind"] == kind}
        return frozenset(loaded | {point.name for point in entry_points(group=f"fabric.{kind}s")})

    return Extensions(frozenset(row["name"] for row in rows), named("transform"), named("route"))


def problems_of(daemon: Daemon, spec: FabricSpec, known: Extensions) -> list[dict[str, Any]]:
    """Return what this cluster would refuse: nodes that are not there, channels declared otherwise, unknown names."""
    problems = []
    view = daemon.registry.view
    alive = [n.name for n in view.nodes if n.state == "alive"]
    for name, module in spec.modules.items():
        if module.node is not None and module.node not in alive:
            problems.append(
                _problem(
                    spec,
                    f"modules.{name}.node",
                    f"there is no node {module.node!r}{did_you_mean(module.node, alive)}",
                    f"Start it with fabricctl up, or use one of: {', '.join(sorted(alive))}",
                )
            )
    for name, channel in spec.channels.items():
        declared = view.channel(name)
        if declared is None:
            continue
        wanted = msgspec.structs.replace(channel_record(channel), delivers=declared.delivers)
        try:
            check_channel_change(view, declared, wanted)
        except errors.FabricError as error:
            problems.append(
                _problem(
                    spec, f"channels.{name}", str(error), "Use the same declaration or another name"
                )
            )
    # What a plugin exports is known once it was loaded; apply asks again then.
    if all(Path(plugin.path).stem in known.plugins for plugin in spec.plugins):
        problems += _unknown_names(spec, known)
    return problems


def _unknown_names(spec: FabricSpec, known: Extensions) -> list[dict[str, Any]]:
    problems = []
    for name, channel in spec.channels.items():
        used = [("transforms", "transform", one, known.transforms) for one in channel.transforms]
        if channel.route is not None:
            routes = known.routes | BUILT_IN.keys()
            used.append(("route", "routing policy", name_of(channel.route), routes))
        for key, kind, one, names in used:
            if one not in names:
                problems.append(
                    _problem(
                        spec,
                        f"channels.{name}.{key}",
                        f"there is no {kind} {one!r}{did_you_mean(one, sorted(names))}",
                        f"Load it (fabricctl plugin load FILE), or use one of: {', '.join(sorted(names))}",
                    )
                )
    return problems


async def apply_modules(daemon: Daemon, specs: list[ModuleSpec]) -> list[dict[str, Any]]:
    own = daemon.context.name
    by_node: dict[str, list[ModuleSpec]] = {}
    for spec in specs:
        by_node.setdefault(spec.node or own, []).append(spec)
    numbers = {n.name: n.number for n in daemon.registry.view.nodes}
    calls = [
        daemon.calls.call(
            numbers[node], "apply_modules", {"modules": msgspec.to_builtins(group)}, APPLY_S
        )
        for node, group in by_node.items()
    ]
    answers = await asyncio.gather(*calls)
    return [change for answer in answers for change in answer["changes"]]


async def start_modules(daemon: Daemon, specs: list[ModuleSpec]) -> list[dict[str, Any]]:
    """Make the modules of this node so: new ones, changed ones again, none twice."""
    changes = []
    for spec in specs:
        action = await daemon.scaling.apply(spec)
        override = daemon.scaling.override_of(spec.name)
        note = "" if override is None else f", scaled to {override}"
        changes.append(_change("module", spec.name, action, f"on {daemon.context.name}{note}"))
    return changes


def _change(kind: str, name: str, action: str, detail: str = "") -> dict[str, Any]:
    return {"kind": kind, "name": name, "action": action, "detail": detail}


def _problem(spec: FabricSpec, where: str, what: str, fix: str) -> dict[str, Any]:
    return {
        "where": where,
        "what": what,
        "fix": fix,
        "place": spec.place(where),
        "severity": "error",
    }
