"""Group `latency`: one typed message with a 64-byte tensor between two Python processes on one node.

Round trip (p50, p99) and one-way rate, the fabric beside pyzmq ipc:// with msgpack, the same message both sides.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict

from bench.fabric_lane import FabricLane, FabricLaneMany
from bench.harness import Series, Subject, interleave, placements, ratios, save
from bench.peers.zmq_ipc import ZmqIpc

ROUNDS, WARM_UP = 9, 2
TRIPS, MESSAGES = 1500, 20_000
# Less is better for the first two, more for the last. Gates: p50 and rate.
METRICS = {"rtt_us_p50": "RTT p50 µs", "rtt_us_p99": "RTT p99 µs", "rate_k_per_s": "one way k/s"}
GATES = {"rtt_us_p50": -1, "rate_k_per_s": 1}


def run() -> int:
    """Measure, print and save; 1 when a gate does not hold."""
    failed: list[str] = []
    results: dict[str, object] = {}
    for placement in placements():
        subjects: list[Subject] = [FabricLane(), ZmqIpc(), FabricLaneMany()]
        series = interleave(
            subjects,
            placement,
            rounds=ROUNDS,
            warm_up=WARM_UP,
            trips=TRIPS,
            messages=MESSAGES,
            report=progress,
        )
        progress("")
        show(placement.name, series)
        results[placement.name] = {s.name: [asdict(x) for x in s.samples] for s in series}
        failed += gates(placement.name, *series[:2])
    print(f"\nsaved {save('latency', results)}")
    for line in failed:
        print(f"NOT HELD: {line}")
    return 1 if failed else 0


def progress(text: str) -> None:
    """Keep one line of progress on a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def show(placement: str, series: Sequence[Series]) -> None:
    """Print medians and spread, and the ratio of the first row to each."""
    print(
        f"\n{placement} placement, {len(series[0].samples)} interleaved rounds: median [least, greatest]"
    )
    print(f"{'':24}" + "".join(f"{title:>28}" for title in METRICS.values()))
    for row in series:
        cells = ""
        for metric in METRICS:
            low, high = row.spread(metric)
            cells += f"{row.median(metric):>10.1f} [{low:>6.1f}, {high:>6.1f}]".rjust(28)
        print(f"{row.name:24}{cells}")
    for other in series[1:2]:
        cells = "".join(
            f"{statistics.median(ratios(series[0], other, metric)):>28.2f}" for metric in METRICS
        )
        print(f"{'fabric / peer':24}{cells}")


def gates(placement: str, ours: Series, theirs: Series) -> list[str]:
    """Say which promise does not hold: the median of the rounds' ratios decides."""
    failed = []
    for metric, direction in GATES.items():
        ratio = statistics.median(ratios(ours, theirs, metric))
        if (ratio >= 1) if direction < 0 else (ratio <= 1):
            failed.append(f"{placement}: {METRICS[metric]}: fabric / {theirs.name} = {ratio:.2f}")
    return failed
