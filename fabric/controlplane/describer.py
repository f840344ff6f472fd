"""Know what channels a module class has, before it is started: asked once per version of its source file.

The class is imported in a process of its own (`fabric.worker.describe`); a thread waits for it, never the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fabric import errors, limits
from fabric.config import FabricSpec
from fabric.config.cycles import check_cycles
from fabric.config.ends import ModuleEnds, check_ends, ends_from
from fabric.config.rules import Problem, line
from fabric.config.spec import ChannelSpec
from fabric.worker import describe

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

_REMOTE_SLACK_S = 2.0  # a node may take this much longer than the limit to say that it was reached


class Describer:
    """Answers for the classes that this node can import. Belongs to the daemon's loop."""

    def __init__(self) -> None:
        self._known: dict[str, ModuleEnds] = {}
        self._turn = asyncio.Lock()

    async def describe(self, class_paths: Iterable[str]) -> dict[str, ModuleEnds]:
        """Return what each class says of itself; never raises for what a class does."""
        paths = list(dict.fromkeys(class_paths))[: limits.MODULES_MAX]
        async with self._turn:
            stale = [path for path in paths if not await self._is_fresh(path)]
            found = ends_from(await asyncio.to_thread(describe.run, stale))
            self._known.update({path: ends for path, ends in found.items() if ends.digest})
            while len(self._known) > limits.MODULES_MAX:
                self._known.pop(next(iter(self._known)))
            return {path: found.get(path) or self._known[path] for path in paths}

    async def _is_fresh(self, path: str) -> bool:
        known = self._known.get(path)
        if known is None:
            return False
        return await asyncio.to_thread(describe.digest_of, known.file) == known.digest


async def module_problems(daemon: Daemon, spec: FabricSpec) -> list[dict[str, Any]]:
    """Return where a file and the classes of its modules disagree, and its cycles of credit.

    Every class is described on the node that will run it; one that could not be looked at gives a warning.
    """
    known = await _ends_of(daemon, spec)
    declared = {c.name: channel_spec(c) for c in daemon.registry.view.channels}
    return judge(spec, known, {**declared, **spec.channels})


def refuse(problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Raise `ConfigError` naming every problem that prevents an apply; returns the warnings."""
    found = [p for p in problems if p["severity"] == "error"]
    if found:
        raise errors.ConfigError("\n".join(map(line, found)), problems=found)
    return problems


def judge(
    spec: FabricSpec, known: Mapping[str, ModuleEnds], channels: Mapping[str, ChannelSpec]
) -> list[dict[str, Any]]:
    """Return the problems that descriptions of a file's modules bring to light, as plain values, with their place."""
    problems: list[Problem] = [
        *check_ends(spec, known, channels),
        *check_cycles(spec, known, channels),
    ]
    return [{**problem.to_wire(), "place": spec.place(problem.where)} for problem in problems]


def channel_spec(record: Any) -> ChannelSpec:
    """Return what a declared channel would be in a file, as far as cycles and types go."""
    return ChannelSpec(
        name=record.name,
        type=record.type_name,
        pattern=record.pattern,
        delivery=record.delivery,
        overflow=record.overflow,
        transforms=record.transforms,
        deadline_s=record.deadline_s or None,
    )


async def _ends_of(daemon: Daemon, spec: FabricSpec) -> dict[str, ModuleEnds]:
    own = daemon.context.name
    numbers = {n.name: n.number for n in daemon.registry.view.nodes if n.state == "alive"}
    by_node: dict[str, list[str]] = {}
    for module in spec.modules.values():
        by_node.setdefault(module.node or own, []).append(module.class_path)
    asked = [
        _ask(daemon, numbers[node], paths) for node, paths in by_node.items() if node in numbers
    ]
    found: dict[str, ModuleEnds] = {}
    for answer in await asyncio.gather(*asked):
        found.update(answer)
    return found


async def _ask(daemon: Daemon, node: int, paths: list[str]) -> dict[str, ModuleEnds]:
    try:
        answer = await daemon.calls.call(
            node, "describe", {"classes": paths}, limits.DESCRIBE_S + _REMOTE_SLACK_S
        )
        return ends_from(answer["classes"])
    except errors.FabricError as error:
        return dict.fromkeys(paths, ModuleEnds(error=f"its node did not say: {error}"))
