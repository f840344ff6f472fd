"""Apply a `fabric.yaml`: plugins first, then channels that name them, then modules. What is there already stays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fabric import errors
from fabric.config import ChannelSpec, FabricSpec, ModuleSpec
from fabric.registry.declare import conflict
from fabric.registry.records import ChannelRecord

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

APPLY_S = 60.0


def channel_record(spec: ChannelSpec) -> ChannelRecord:
    """Return the declaration that a channel of a file stands for; its schema comes with the first endpoint."""
    return ChannelRecord(
        name=spec.name,
        type_name=spec.type,
        pattern=spec.pattern,
        delivery=spec.delivery,
        overflow=spec.overflow,
        klass=spec.klass,
        route=spec.route,
        transforms=spec.transforms,
        idempotent=spec.idempotent,
        messages=spec.credit.messages,
        bytes=spec.credit.bytes,
        deadline_s=spec.deadline_s or 0.0,
    )


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
                    f"there is no node {module.node!r}",
                    f"start it with fabricctl up, or use one of: {', '.join(sorted(alive))}",
                )
            )
    for name, channel in spec.channels.items():
        declared = view.channel(name)
        error = conflict(declared, channel_record(channel)) if declared else None
        if error is not None:
            problems.append(
                _problem(
                    spec, f"channels.{name}", str(error), "use the same declaration or another name"
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
            used.append(("route", "routing policy", channel.route, known.routes))
        for key, kind, one, names in used:
            if one not in names:
                problems.append(
                    _problem(
                        spec,
                        f"channels.{name}.{key}",
                        f"there is no {kind} {one!r}",
                        f"load it (fabricctl plugin load FILE), or use one of: {', '.join(sorted(names))}",
                    )
                )
    return problems


def _refuse(problems: list[dict[str, Any]]) -> None:
    if problems:
        text = "\n".join(f"{p['place']}: {p['where']}: {p['what']}. {p['fix']}" for p in problems)
        raise errors.ConfigError(text, problems=problems)


async def apply_spec(
    daemon: Daemon, spec: FabricSpec, known: Callable[[], Awaitable[Extensions]]
) -> dict[str, Any]:
    """Apply a checked file; raises at the first refusal, before anything of that kind was changed."""
    _refuse(problems_of(daemon, spec, await known()))
    changes = []
    for plugin in spec.plugins:
        path = Path(plugin.path)
        known_plugin = any(p.name == path.stem for p in daemon.stages.all())
        try:
            source = path.read_text()
        except OSError as error:
            raise errors.ConfigError(
                f"cannot read the plugin {path}: {error}", path=str(path)
            ) from error
        await daemon.stages.load(path.stem, str(path), source)
        changes.append(_change("plugin", path.stem, "changed" if known_plugin else "added"))
    if spec.plugins:
        _refuse(problems_of(daemon, spec, await known()))
    for channel in spec.channels.values():
        declared = daemon.registry.view.channel(channel.name)
        await daemon.registry.declare(channel_record(channel))
        changes.append(_change("channel", channel.name, "unchanged" if declared else "added"))
    changes += await apply_modules(daemon, list(spec.modules.values()))
    return {"generation": daemon.registry.view.epoch, "changes": changes}


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
