"""How many replicas of each module run on this node, and which: apply, scale, drain, stop.

A scale is no plan generation. It is an override, kept over a restart of the daemon, until an apply changes that
module. Replicas keep their names: `name` or `name-0`, then `name-1`, `name-2` …; one that runs is never renamed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from fabric import errors, limits, steps
from fabric.config import ModuleSpec
from fabric.controlplane.context import Context
from fabric.controlplane.modules import ModuleTable, Process, unknown_name


def replica_index(module: str, replica: str) -> int:
    """Return the number of a replica; the plain name counts as the first."""
    tail = replica[len(module) + 1 :]
    return int(tail) if tail.isdigit() else 0


def replica_names(module: str, count: int, present: Iterable[str]) -> list[str]:
    """Return the names of `count` replicas: those that run, lowest first, then new ones with free numbers."""
    names = sorted(present, key=lambda name: replica_index(module, name))[:count]
    if not names and count == 1:
        return [module]
    taken = {replica_index(module, name) for name in names}
    free = (index for index in range(count) if index not in taken)
    return names + [
        f"{module}-{index}" for index, _ in zip(free, range(count - len(names)), strict=False)
    ]


class Scaling:
    """Belongs to the daemon's loop. `withdraw(process)` makes senders look for other receivers before it is stopped."""

    def __init__(self, context: Context, modules: ModuleTable) -> None:
        self._context = context
        self._modules = modules
        self._kept: dict[str, dict[str, Any]] = {}  # module → {about, replicas}: overrides
        self._locks: dict[str, asyncio.Lock] = {}
        self.withdraw: Callable[[Process], Awaitable[None]]

    def restore(self, items: dict[str, tuple[dict[str, Any], int]]) -> None:
        """Take back the overrides that the keeper held."""
        for key, (value, _) in items.items():
            if key.startswith("scale/"):
                self._kept[value["about"]["name"]] = value

    def replicas_of(self, module: str) -> list[Process]:
        """Return the running replicas of a module."""
        found = [p for p in self._modules.all("module") if p.about.get("name") == module]
        return sorted(found, key=lambda p: replica_index(module, p.name))

    def override_of(self, module: str) -> int | None:
        """Return the count that a scale asked for; None where the applied one holds."""
        kept = self._kept.get(module)
        return int(kept["replicas"]) if kept else None

    def scaled(self) -> list[str]:
        """Return the modules with an override, those without a replica included."""
        return sorted(self._kept)

    # ---------------------------------------------------------------- verbs
    async def apply(self, spec: ModuleSpec) -> str:
        """Make a module as applied; a scale holds on while the module itself is unchanged. Returns the action."""
        plain = msgspec.to_builtins(spec)
        async with self._locks.setdefault(spec.name, asyncio.Lock()):
            kept = self._kept.get(spec.name)
            if kept is not None and kept["about"] == plain:
                return await self._make_so(plain, kept["replicas"])
            self._forget(spec.name)
            return await self._make_so(plain, spec.replicas)

    async def scale(self, module: str, replicas: int) -> dict[str, Any]:
        """Run `replicas` of a module from now on; those that are too many are drained."""
        if not 0 <= replicas <= limits.REPLICAS_MAX:
            raise errors.CapacityError(
                f"{replicas} replicas of {module!r}: use 0 to REPLICAS_MAX ({limits.REPLICAS_MAX})",
                limit="REPLICAS_MAX",
            )
        async with self._locks.setdefault(module, asyncio.Lock()):
            about = self._about(module)
            self._keep(about, replicas)
            await self._make_so(about, replicas, limits.MODULE_DRAIN_S)
            return self._answer(module)

    async def drain(self, name: str, grace_s: float) -> dict[str, Any]:
        """Drain one replica (or all of a module) and leave it out from now on."""
        one = self._modules.find("module", name)
        module = str(one.about["name"]) if one is not None else name
        async with self._locks.setdefault(module, asyncio.Lock()):
            about, running = self._about(module), self.replicas_of(module)
            leaving = [one] if one is not None and len(running) > 1 else running
            self._keep(about, len(running) - len(leaving))
            await asyncio.gather(*(self._stop(p, grace_s) for p in leaving))
            return self._answer(module) | {"name": name}

    async def remove(self, module: str) -> None:
        """Stop all of a module and forget its scale: the plan no longer names it."""
        async with self._locks.setdefault(module, asyncio.Lock()):
            await asyncio.gather(*(self._stop(p, limits.DRAIN_S) for p in self.replicas_of(module)))
            self._forget(module)

    # ---------------------------------------------------------------- parts
    async def _make_so(
        self, about: dict[str, Any], count: int, grace_s: float = limits.DRAIN_S
    ) -> str:
        module = about["name"]
        running = self.replicas_of(module)
        other = [p for p in running if _without_count(p.about) != _without_count(about)]
        same = [p for p in running if p not in other]
        names = replica_names(module, count, [p.name for p in same])
        leaving = other + [p for p in same if p.name not in names]
        await asyncio.gather(*(self._stop(p, grace_s) for p in leaving))
        for process in self.replicas_of(module):
            process.about = about
            self._modules.keep(process)
        spec = msgspec.convert(about, ModuleSpec)
        started = [n for n in names if self._modules.find("module", n) is None]
        for name in started:
            self._modules.start_module(spec, name)
            steps.at("scale.started")
        if leaving or (started and same):
            return "changed"
        return "added" if started else "unchanged"

    async def _stop(self, process: Process, grace_s: float) -> None:
        """Take a replica out: nothing new for it, then it finishes what it holds, hands back the rest and leaves."""
        await self.withdraw(process)
        steps.at("drain.withdrawn")
        await self._modules.stop(process, grace_s)

    def _about(self, module: str) -> dict[str, Any]:
        running = self.replicas_of(module)
        if running:
            return running[0].about
        if module in self._kept:
            return dict(self._kept[module]["about"])
        known = sorted(
            {str(p.about["name"]) for p in self._modules.all("module")} | set(self._kept)
        )
        raise unknown_name("module", module, known)

    def _answer(self, module: str) -> dict[str, Any]:
        rows = [{"name": p.name, "state": p.life.state.value} for p in self.replicas_of(module)]
        return {
            "name": module,
            "state": "running" if rows else "stopped",
            "replicas": rows,
            "override": self.override_of(module),
        }

    def _keep(self, about: dict[str, Any], replicas: int) -> None:
        self._kept[about["name"]] = value = {"about": about, "replicas": replicas}
        self._context.keeper.put(f"scale/{about['name']}", value)
        steps.at("scale.kept")
        self._context.events.add("module scaled", module=about["name"], replicas=replicas)

    def _forget(self, module: str) -> None:
        if self._kept.pop(module, None) is not None:
            self._context.keeper.drop(f"scale/{module}")


def _without_count(about: dict[str, Any]) -> dict[str, Any]:
    """A change of the number of replicas restarts none of them."""
    return {key: value for key, value in about.items() if key != "replicas"}
