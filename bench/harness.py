"""Run subjects in turn and compare them.

A round runs every subject once, in alternating order, so that whatever else the machine does falls on all of them.
The first rounds warm up and are thrown away. A ratio is formed within a round and only then summarised.
Nothing here knows what it measures; subjects bring their own processes.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

RESULTS = Path(__file__).resolve().parent.parent / "build" / "bench"


class Subject(Protocol):
    """One implementation of the same job: a pair of processes, this one and an echo."""

    name: str

    def start(self, placement: Placement) -> None:
        """Bring up the other process; returns when it answers."""

    def round_trips(self, count: int) -> list[int]:
        """Return the time of each of `count` round trips, in nanoseconds."""

    def one_way(self, count: int) -> int:
        """Return the nanoseconds from the first send until the echo confirms the last of `count` messages."""

    def stop(self) -> None:
        """End the other process; safe to repeat."""


@dataclass(frozen=True)
class Placement:
    """CPUs of the two processes; empty means wherever the kernel likes."""

    name: str
    near: tuple[int, ...] = ()
    far: tuple[int, ...] = ()

    def apply_near(self) -> None:
        """Move this process to its CPUs."""
        os.sched_setaffinity(0, self.near or all_cpus())


def all_cpus() -> tuple[int, ...]:
    """CPUs that this process could use when it started."""
    return _CPUS


_CPUS = tuple(sorted(os.sched_getaffinity(0)))


def placements() -> list[Placement]:
    """Free placement, and one CPU for each process where there are two."""
    found = [Placement("free")]
    if len(_CPUS) > 1:
        found.append(Placement("pinned", (_CPUS[0],), (_CPUS[1],)))
    return found


@dataclass
class Sample:
    """One subject in one round."""

    rtt_us_p50: float
    rtt_us_p99: float
    rate_k_per_s: float


@dataclass
class Series:
    """Every round of one subject."""

    name: str
    samples: list[Sample] = field(default_factory=list)

    def median(self, metric: str) -> float:
        """Median over the rounds."""
        return statistics.median(getattr(sample, metric) for sample in self.samples)

    def spread(self, metric: str) -> tuple[float, float]:
        """Least and greatest over the rounds."""
        values = [getattr(sample, metric) for sample in self.samples]
        return min(values), max(values)


def percentile(values: Sequence[int], share: float) -> float:
    """Nearest-rank percentile; `share` between 0 and 1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(subject: Subject, trips: int, messages: int) -> Sample:
    """Run one subject once: round trips first, then one way."""
    times = subject.round_trips(trips)
    elapsed_ns = subject.one_way(messages)
    return Sample(
        rtt_us_p50=percentile(times, 0.5) / 1e3,
        rtt_us_p99=percentile(times, 0.99) / 1e3,
        rate_k_per_s=messages / elapsed_ns * 1e6,
    )


def interleave(
    subjects: Sequence[Subject],
    placement: Placement,
    *,
    rounds: int,
    warm_up: int,
    trips: int,
    messages: int,
    report: Callable[[str], None],
) -> list[Series]:
    """Measure all subjects for a number of rounds, turning the order round each time."""
    series = [Series(subject.name) for subject in subjects]
    started: list[Subject] = []
    try:
        for subject in subjects:
            subject.start(placement)
            started.append(subject)
        placement.apply_near()
        for number in range(warm_up + rounds):
            report(f"{placement.name}: round {number + 1} of {warm_up + rounds}")
            order = list(zip(subjects, series, strict=True))
            for subject, row in order if number % 2 == 0 else reversed(order):
                sample = measure(subject, trips, messages)
                if number >= warm_up:
                    row.samples.append(sample)
    finally:
        os.sched_setaffinity(0, all_cpus())
        for subject in reversed(started):
            subject.stop()
    return series


def ratios(ours: Series, theirs: Series, metric: str) -> list[float]:
    """Ours over theirs, round by round."""
    return [
        getattr(a, metric) / getattr(b, metric)
        for a, b in zip(ours.samples, theirs.samples, strict=True)
    ]


def environment() -> dict[str, object]:
    """What a reader needs to place the figures."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cpus": len(_CPUS),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min": os.getloadavg()[0],
    }


def save(group: str, results: dict[str, object]) -> Path:
    """Write one run as JSON below build/bench and return its path."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{group}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps({"environment": environment(), **results}, indent=2))
    return path
