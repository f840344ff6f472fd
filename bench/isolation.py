"""Group `isolation`: what one misbehaving part costs the others (P4).

Round trips over 99 channels, in blocks: disturbed, undisturbed, disturbed, … The p99 of each disturbed block is
divided by that of the undisturbed one beside it; the median of the ratios may be at most 1.5. While the disturbance is
off, a load that uses the machine in the same way without the fabric runs instead, where the disturbance costs CPU.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench.figures import percentile
from bench.isolation_loads import DISTURBANCES, apply_plan
from bench.isolation_rig import RoundTrips
from bench.node import BenchNode
from bench.report import save_group

ROUNDS = 9
BLOCK_S = 0.8
RATIO_MAX = 1.5


def run() -> int:
    """Measure, print and save; 1 when a disturbance costs the others too much."""
    results: dict[str, object] = {}
    failed = []
    with tempfile.TemporaryDirectory(prefix="fab-iso-", dir="/tmp") as name:
        node = BenchNode(Path(name), "bench")  # the name in its plan
        node.start()
        try:
            trips = RoundTrips(str(node.socket))
            apply_plan(str(node.socket), Path(name))
            print(
                f"{'':40}{'undisturbed p99 µs':>20}{'disturbed p99 µs':>18}{'ratio':>8}   of the rounds"
            )
            for make in DISTURBANCES:
                disturbance = make(trips)
                rounds = compare(trips, disturbance)
                results[make.name] = {"p99_us": rounds, "facts": disturbance.facts()}
                ratio = show(make.name, rounds, disturbance.facts())
                failed += [make.name] if ratio > RATIO_MAX else []
            trips.stop()
        finally:
            node.stop()
    print(f"\nsaved {save_group('isolation', results)}")
    for line in failed:
        print(f"NOT HELD: {line}: more than {RATIO_MAX} × the undisturbed p99")
    return 1 if failed else 0


def compare(trips: RoundTrips, disturbance: Any) -> list[tuple[float, float]]:
    """Return (undisturbed, disturbed) p99 in microseconds of every round, the order turned round each time."""
    rounds = []
    for number in range(ROUNDS):
        if number % 2:
            disturbed, calm = disturb(trips, disturbance), control(trips, disturbance)
        else:
            calm, disturbed = control(trips, disturbance), disturb(trips, disturbance)
        rounds.append((percentile(calm, 0.99) / 1e3, percentile(disturbed, 0.99) / 1e3))
    return rounds


def disturb(trips: RoundTrips, disturbance: Any) -> list[int]:
    """One block with the disturbance at work."""
    disturbance.on()
    try:
        return trips.measure(BLOCK_S, disturbance.between)
    finally:
        disturbance.off()


def control(trips: RoundTrips, disturbance: Any) -> list[int]:
    """One block without it, beside a load of the same kind."""
    disturbance.control.start()
    try:
        return trips.measure(BLOCK_S)
    finally:
        disturbance.control.stop()


def show(name: str, rounds: list[tuple[float, float]], facts: str) -> float:
    """Print one row; returns the median of the ratios."""
    ratios = sorted(disturbed / calm for calm, disturbed in rounds)
    ratio = statistics.median(ratios)
    calm, disturbed = (statistics.median(values) for values in zip(*rounds, strict=True))
    print(
        f"{name:40}{calm:>20.1f}{disturbed:>18.1f}{ratio:>8.2f}   [{ratios[0]:.2f}, {ratios[-1]:.2f}], {facts}"
    )
    return ratio
