"""Whether a plan can be: its plugins load, its types fit along each chain, nobody loses what they have open.

Every node loads what is new to it in a process of its own; nothing that runs is touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fabric import errors, limits
from fabric.controlplane import plan_rules
from fabric.controlplane.node_calls import plain
from fabric.registry.plans import Plan

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

_CALL_S = limits.VERIFY_S + 5.0  # a node says itself that a plugin was too slow


class PlanVerifier:
    """Belongs to the daemon's loop, on the registry's node."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def verify(self, plan: Plan, good: Plan | None, alive: dict[str, int]) -> Plan:
        """Ask every node concerned; returns the plan with what becomes of the channels. Raises the first refusal.

        `good` is the plan in force, `alive` the nodes that are there, by name.
        """
        current = {p.name: p for p in (good.plugins if good else ())}
        by_node: dict[str, list[dict[str, Any]]] = {}
        for plugin in plan.plugins:
            by_node.setdefault(plugin.node, []).append(plain(plugin))
        for node in {*by_node, *(m.node for m in plan.modules if m.node)} - set(alive):
            raise errors.PathBrokenError(
                f"node {node!r} is not here; start it with fabricctl up, or move what it runs",
                node=node,
            )
        rows = await self._daemon.control.ls("plugin")
        others = {row["name"]: row["exports"] for row in rows if row["name"] not in current}
        known = _transforms(others)
        answers = await asyncio.gather(*(
            self._daemon.calls.call(alive[node], "plan_verify", {"plugins": group, "installed": []}, _CALL_S)
            for node, group in by_node.items()
        ))  # fmt: skip
        exports = {name: e for answer in answers for name, e in answer["exports"].items()}
        known |= _transforms(exports)
        known |= await self._installed(plan, known)
        again = [
            e["name"]
            for p in plan.plugins
            if p.name in current and current[p.name].digest != p.digest
            for e in exports.get(p.name, ())
        ]
        leaving = self._leaving(plan, good)
        return plan_rules.records_of(plan, self._daemon.registry.view, known, again, leaving)

    async def _installed(self, plan: Plan, known: dict[str, Any]) -> dict[str, Any]:
        """Return the exports of installed transforms that the plan names and nobody has loaded."""
        names = sorted({t for c in plan.channels for t in c.transforms} - set(known))
        if not names:
            return {}
        fields = {"plugins": [], "installed": names}
        own = self._daemon.context.number
        answer = await self._daemon.calls.call(own, "plan_verify", fields, _CALL_S)
        return _transforms(answer["exports"])

    @staticmethod
    def _leaving(plan: Plan, current: Plan | None) -> list[str]:
        staying = {m.name for m in plan.modules}
        gone = [m for m in (current.modules if current else ()) if m.name not in staying]
        return [
            name
            for m in gone
            for name in (m.name, *(f"{m.name}-{i}" for i in range(limits.REPLICAS_MAX)))
        ]


def _transforms(exports: Mapping[str, Iterable[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return every transform of some plugins' exports by its name, with its plugin."""
    return {
        e["name"]: {**e, "plugin": plugin}
        for plugin, rows in exports.items()
        for e in rows
        if e["kind"] == "transform"
    }
