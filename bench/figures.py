"""From what two halves answered to figures with a unit and a direction. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LOWER, HIGHER = "lower", "higher"


@dataclass(frozen=True)
class Figure:
    """What a figure is called, and which way is better."""

    title: str
    unit: str
    direction: str


FIGURES: Mapping[str, Figure] = {
    "p50_us": Figure("p50", "µs", LOWER),
    "p99_us": Figure("p99", "µs", LOWER),
    "k_per_s": Figure("rate", "k/s", HIGHER),
    "cpu_us": Figure("CPU per message", "µs", LOWER),
    "gb_per_s": Figure("throughput", "GB/s", HIGHER),
    "cpu_s_per_gb": Figure("CPU per GB", "s/GB", LOWER),
    "idle_percent": Figure("CPU of an idle receiver", "% of a core", LOWER),
    "ms": Figure("time", "ms", LOWER),
    "bytes": Figure("memory", "B", LOWER),
    "stated_bytes": Figure("memory as stated", "B", LOWER),
    "client_bytes": Figure("in the process itself", "B", LOWER),
    "share": Figure("of what is possible", "×", HIGHER),
    "least_share": Figure("least of 500 ms", "× possible", HIGHER),
    "p99_ratio": Figure("p99 of transfers", "× ideal", LOWER),
    "gap_ms": Figure("longest gap", "ms", LOWER),
    "late_ms": Figure("latest transfer", "ms late", LOWER),
    "back_ms": Figure("used again after", "ms", LOWER),
    "resume_ms": Figure("resumes after", "ms", LOWER),
    "added_ms": Figure("p99 more than idle", "ms", LOWER),
    "idle_p99_us": Figure("p99 idle", "µs", LOWER),
    "resent_percent": Figure("sent again", "%", LOWER),
    "coded_percent": Figure("sent encoded", "%", HIGHER),
    "decode_gb_per_s": Figure("decoding", "GB/s", HIGHER),
    "agreement": Figure("same next token", "of positions", HIGHER),
    "positions": Figure("positions", "", HIGHER),
    "slow_p99_us": Figure(
        "p99 beside a slow replica", "µs", LOWER
    ),  # of some thousand messages a round
    "recover_s": Figure("recovered after", "s", LOWER),
    "hit_share": Figure("prefix hits", "× one cache without bounds", HIGHER),
    "imbalance": Figure("largest load", "× the mean", LOWER),
    "other_rows_error": Figure("error of the other rows", "× their norm", LOWER),
    "wire_share": Figure("on the wire", "× raw", LOWER),
    "jain": Figure("Jain's index", "", HIGHER),
    "wrong": Figure("lost, twice or torn", "messages", LOWER),
    "unexplained": Figure("without a reason", "", LOWER),
    **{
        f"{case}_{what}": Figure(f"{where}: {words}", unit, HIGHER)
        for case, where in (
            ("better", "tcp shaped"),
            ("worse", "ucx shaped"),
            ("alike", "neither shaped"),
        )
        for what, words, unit in (
            ("tcp", "tcp alone", "GB/s"),
            ("ucx", "ucx alone", "GB/s"),
            ("share", "on the faster rail", "×"),
            ("ratio", "both", "× the faster alone"),
        )
    },
    "unbalanced": Figure("audits out of balance", "", LOWER),
    "astray": Figure("requests astray", "", LOWER),
    "growth": Figure("memory, last third over second", "×", LOWER),
    **{name: Figure(name, "requests", HIGHER) for name in ("fused", "partial")},
    "dropped": Figure("dropped", "requests", LOWER),
    "uncounted": Figure("corruption not counted", "", LOWER),
    "ns": Figure("per chunk", "ns", LOWER),
    "atomic_ns": Figure("atomic add", "ns", LOWER),
    "p99_s": Figure("p99 completion", "s", LOWER),
    "p50_s": Figure("p50 completion", "s", LOWER),
    "differs": Figure("runs of one seed that differ", "", LOWER),
}


def figures(order: Mapping[str, Any], near: Any, far: Any, wall_ns: int) -> dict[str, float]:
    """Return every figure of one order.

    A subject that measures something of its own answers with ``figures``; these are taken as they are. CPU is that of
    both halves and of the daemons that serve them.
    """
    found: dict[str, float] = {**near.get("figures", {}), **far.get("figures", {})}
    cpu_ns = sum(half.get(name, 0) for half in (near, far) for name in ("cpu_ns", "daemons_cpu_ns"))
    make = _OF_WORKLOAD.get(order["run"])
    if make is not None and not found:
        found = make(order, near, far, cpu_ns, wall_ns)
    return found


def spent_ns(near: Any, wall_ns: int) -> int:
    """Return what the timed part of an order took: what the near half says, else what the driver saw."""
    said = near.get("ns", wall_ns)
    return sum(said) if isinstance(said, list) else int(said)


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile; `share` between 0 and 1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios of each round; what cost nothing that could be measured is beyond any ratio."""
    return statistics.median(a / b if b else math.inf for a, b in zip(ours, theirs, strict=True))


def holds(direction: str, ratio: float, bar: float) -> bool:
    """Whether a ratio of ours over theirs keeps its bar."""
    return ratio <= bar if direction == LOWER else ratio >= bar


# ------------------------------------------------------------------ by workload
def _round_trips(
    order: Mapping[str, Any], near: Any, far: Any, cpu_ns: int, wall_ns: int
) -> dict[str, float]:
    times = near["ns"]
    return {
        "p50_us": percentile(times, 0.5) / 1e3,
        "p99_us": percentile(times, 0.99) / 1e3,
        "cpu_us": cpu_ns / (2 * len(times)) / 1e3,
    }


def _rate(
    order: Mapping[str, Any], near: Any, far: Any, cpu_ns: int, wall_ns: int
) -> dict[str, float]:
    return {
        "k_per_s": order["count"] / near["ns"] * 1e6,
        "cpu_us": cpu_ns / order["count"] / 1e3,
    }


def _bulk(
    order: Mapping[str, Any], near: Any, far: Any, cpu_ns: int, wall_ns: int
) -> dict[str, float]:
    size = order["count"] * order["size"]
    return {"gb_per_s": size / near["ns"], "cpu_s_per_gb": cpu_ns / size}


def _hand_over(
    order: Mapping[str, Any], near: Any, far: Any, cpu_ns: int, wall_ns: int
) -> dict[str, float]:
    times = [came - sent for sent, came in zip(near["at"], far["at"], strict=True)]
    return {"p50_us": percentile(times, 0.5) / 1e3}


def _idle(
    order: Mapping[str, Any], near: Any, far: Any, cpu_ns: int, wall_ns: int
) -> dict[str, float]:
    """The far half waits; the near one sleeps, and its share is not counted."""
    used = cpu_ns - near.get("cpu_ns", 0)
    return {"idle_percent": 100 * used / (order["seconds"] * 1e9)}


_OF_WORKLOAD = {
    "round_trips": _round_trips,
    "one_way": _rate,
    "typed": _rate,
    "bulk": _bulk,
    "loaned": _bulk,
    "hand_over": _hand_over,
    "idle": _idle,
}
