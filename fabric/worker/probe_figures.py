"""From rounds of a step to its figures, under the names of `bench/figures.py`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fabric.worker.probe_plan import LARGE, TRIPS, Step


@dataclass(frozen=True, slots=True)
class Round:
    """What one round took: wall-clock, CPU of both ends and of the daemons; `times_ns` of each round trip."""

    count: int
    ns: int
    ends_ns: int
    daemons_ns: int
    times_ns: Sequence[int] = ()


def figures(step: Step, rounds: Sequence[Round]) -> dict[str, Any]:
    """Return the figures of a step over all its rounds. CPU is that of both ends and of the daemons together."""
    count, ns = sum(r.count for r in rounds), sum(r.ns for r in rounds)
    daemons_ns = sum(r.daemons_ns for r in rounds)
    cpu_ns = daemons_ns + sum(r.ends_ns for r in rounds)
    if step.run in LARGE:
        size = count * step.size
        return {
            "messages": count,
            "gb_per_s": _rounded(size / ns),
            "cpu_s_per_gb": _rounded(cpu_ns / size),
            "daemons_cpu_s_per_gb": _rounded(daemons_ns / size),
        }
    one_way = 2 * count if step.run == TRIPS else count
    cpu = {
        "messages": one_way,
        "cpu_us": _rounded(cpu_ns / one_way / 1e3),
        "daemons_cpu_us": _rounded(daemons_ns / one_way / 1e3),
    }
    if step.run != TRIPS:
        return {"k_per_s": _rounded(count / ns * 1e6), **cpu}
    times = sorted(t for r in rounds for t in r.times_ns)
    return {
        "p50_us": _rounded(_percentile(times, 0.5) / 1e3),
        "p99_us": _rounded(_percentile(times, 0.99) / 1e3),
        **cpu,
    }


def _percentile(ordered: Sequence[int], share: float) -> int:
    """Nearest rank."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
