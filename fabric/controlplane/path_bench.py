"""Measure the live rails to a node within a budget: each alone, all at once, and the fabric over them.

The first two are probes: connections of their own beside the engine's, so that what a rail can do and what the fabric
makes of it are told apart. The third is `EdgeBench`, ends and transient channels included. Nothing is left behind.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fabric import errors, limits
from fabric.controlplane.rail_probe import Wish
from fabric.paths.explain import rate
from fabric.worker.probe_plan import Budget

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon
    from fabric.controlplane.edge_bench import EdgeBench
    from fabric.controlplane.path_calls import PathCalls

_ALONE, _TOGETHER, _FABRIC = 0.35, 0.15, 0.5  # shares of time and payload
_TRIPS = 50
_SHARED = 0.8  # of the sum; less than that, and the rails share something


@dataclass(frozen=True, slots=True)
class Part:
    """A share of a budget."""

    seconds: float
    size_bytes: int


class PathBench:
    """Belongs to the daemon's loop."""

    def __init__(self, daemon: Daemon, paths: PathCalls, edge: EdgeBench) -> None:
        self._daemon = daemon
        self._paths = paths
        self._edge = edge

    async def run(self, peer: str, budget: Budget) -> dict[str, Any]:
        """Measure from this node to `peer`; returns the report.

        Raises
        ------
        ConfigError
            There is no such node, or the budget is outside its bounds.
        PathBrokenError
            No rail to it is up.
        """
        budget.check()
        began = time.monotonic()
        node, rows = self._paths.up(peer)
        alone = await self._alone(node, rows, _part(budget, _ALONE / len(rows)))
        good = [row for row in rows if any(r["rail"] == row["rail"] and "rate" in r for r in alone)]
        raw = await self._raw(node, good, _part(budget, _TOGETHER / max(1, len(good)), _TOGETHER))
        fabric = await self._fabric(peer, node, budget)
        total = sum(row.get("rate", 0) for row in alone)
        together = [with_share(row, total) for row in (raw, fabric)]
        return {
            "source": self._daemon.context.name,
            "peer": peer,
            "budget": {"seconds": budget.seconds, "size_bytes": budget.size_bytes},
            "rails": alone,
            "together": together,
            "words": words(alone, *together),
            "seconds": round(time.monotonic() - began, 3),
            "bytes": sum(row.get("bytes", 0) for row in (*alone, raw, fabric)),
        }

    async def _alone(self, node: Any, rows: Sequence[Any], part: Part) -> list[dict[str, Any]]:
        wish = Wish(_TRIPS, part.size_bytes, part.seconds)
        return [await self._paths.probes.one(node, row, wish) for row in rows]

    async def _raw(self, node: Any, rows: Sequence[Any], part: Part) -> dict[str, Any]:
        wish = Wish(1, part.size_bytes, part.seconds)
        found = await self._paths.probes.together(node, rows, wish)
        good = [row for row in found if "rate" in row]
        return {
            "name": "probes",
            "rate": sum(row["rate"] for row in good),
            "bytes": sum(row["bytes"] for row in good),
            "by_rail": [{"rail": row["rail"], "rate": row["rate"]} for row in good],
        }

    async def _fabric(self, peer: str, node: Any, budget: Budget) -> dict[str, Any]:
        """Send messages over channels of its own, and see what each rail carried of them."""
        own = Budget(
            max(budget.seconds * _FABRIC, limits.BENCH_SECONDS[0]),
            max(int(budget.size_bytes * _FABRIC), limits.BENCH_BYTES[0]),
            budget.memory_bytes,
        )
        before = self._delivered(node)
        try:
            report = await self._edge.run(self._daemon.context.name, peer, own)
        except errors.FabricError as error:
            return {"name": "fabric", "left_out": error.message}
        best = max(report["steps"], key=lambda step: step.get("gb_per_s", 0.0))
        if not best.get("gb_per_s"):
            why = best.get("left_out") or "no step with large messages fitted in its share"
            return {"name": "fabric", "left_out": f"{why}: give more --bytes or --seconds"}
        moved = {rail: n - before.get(rail, 0) for rail, n in self._delivered(node).items()}
        total = max(sum(moved.values()), 1)
        found = best["gb_per_s"] * 1e9
        return {
            "name": f"fabric, {best['name']}",
            "rate": found,
            "bytes": report["used"]["bytes"],
            "by_rail": [
                {"rail": rail, "rate": found * n / total} for rail, n in sorted(moved.items()) if n
            ],
        }

    def _delivered(self, node: Any) -> dict[int, int]:
        return {row["rail"]: int(row["delivered"]) for row in self._paths.rows_to(node)}


def _part(budget: Budget, share: float, of_time: float | None = None) -> Part:
    """Return a share of the budget, within what one probe may take."""
    seconds = budget.seconds * (share if of_time is None else of_time)
    least, most = limits.PATH_PROBE_SECONDS
    size = min(int(budget.size_bytes * share), limits.PATH_PROBE_BYTES_MAX)
    return Part(min(max(seconds, least), most), max(size, limits.PATH_PROBE_BYTES_MIN))


def with_share(row: dict[str, Any], total: float) -> dict[str, Any]:
    """Return a row of all rails with what it is of the sum of each alone."""
    return {**row, "of_sum": row["rate"] / total if row.get("rate") and total else 0.0}


def words(
    alone: Sequence[dict[str, Any]], raw: dict[str, Any], fabric: dict[str, Any]
) -> list[str]:
    """Return what the figures mean."""
    rates = [row["rate"] for row in alone if row.get("rate")]
    said = [
        f"Rail {row['rail']} was not measured: {row['failed']}."
        for row in alone
        if row.get("failed")
    ]
    if len(rates) > 1:
        said.append(_shared(raw, sum(rates), max(rates)))
    if fabric.get("left_out"):
        said.append(f"The fabric was not measured: {fabric['left_out']}.")
    elif rates:
        said.append(
            f"The fabric moves {rate(fabric['rate'])}, {100 * fabric['of_sum']:.0f} % of the sum of the rails alone"
            f" ({fabric['name'].removeprefix('fabric, ')})."
        )
    return said


def _shared(raw: dict[str, Any], total: float, best: float) -> str:
    if raw["of_sum"] >= _SHARED:
        return f"At once the rails reach {100 * raw['of_sum']:.0f} % of their sum: they share no bottleneck."
    return (
        f"At once the rails reach {rate(raw['rate'])} of {rate(total)}, the best alone {rate(best)}: they share a"
        " bottleneck, a link or the CPU."
    )
