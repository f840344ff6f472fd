"""What a measurement of an edge does within a budget: which steps, with how much time and payload each. Pure.

The same plan is made by fabricctl, which states it, and by the probe, which keeps to it. Names and figures are those of
`bench/cases`. A step that does not fit stays in the plan and says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fabric import limits, units
from fabric.dataplane.segments import plan_segment
from fabric.errors import ConfigError

MIB = 1 << 20
SMALL = 64  # bytes of a small message
BATCH = 64
TRIPS, ONE_WAY, BATCHED, LOANED, ARRAY = "round_trips", "one_way", "batched", "loaned", "array"
LARGE = (LOANED, ARRAY)  # runs of large messages
_IDLE_SHARE = 0.04  # of the time: how loaded both machines are before anything is sent
_SMALL_SHARES = {TRIPS: (0.36, 0.01), ONE_WAY: (0.12, 0.04), BATCHED: (0.12, 0.08)}  # time, payload
_LARGE_SHARES = (0.36, 0.87)
_SIZES = ((MIB, 1, 1), (MIB, 8, 1), (16 * MIB, 1, 3), (16 * MIB, 8, 4))  # size, window, weight


@dataclass(frozen=True, slots=True)
class Budget:
    """What a measurement may cost: wall-clock of measuring, payload on the edge, memory on each node."""

    seconds: float
    size_bytes: int
    memory_bytes: int

    def check(self) -> Budget:
        """Return it.

        Raises
        ------
        ConfigError
            A part is below what a measurement needs or above what it may take; the bounds are named.
        """
        for option, value, (least, most), shown in (
            ("--seconds", self.seconds, limits.BENCH_SECONDS, lambda s: f"{s:g} s"),
            ("--bytes", self.size_bytes, limits.BENCH_BYTES, units.format_bytes),
            ("--memory", self.memory_bytes, limits.BENCH_MEMORY_BYTES, units.format_bytes),
        ):
            if not least <= value <= most:
                raise ConfigError(
                    f"{option} is {shown(value)}: give {shown(least)} to {shown(most)}",
                    key=option,
                    least=least,
                    most=most,
                )
        return self

    @property
    def idle_s(self) -> float:
        """Seconds at the beginning in which nothing is sent."""
        return self.seconds * _IDLE_SHARE


@dataclass(frozen=True, slots=True)
class Step:
    """One row: `size` bytes a message, `window` of them unconfirmed at most; `left_out` says why there is no figure."""

    name: str
    run: str
    size: int
    window: int = 1
    weight: int = 1
    seconds: float = 0.0
    size_bytes: int = 0
    left_out: str = ""

    @property
    def least(self) -> int:
        """Messages without which there is no figure: a window to warm up, and one more than that to be timed."""
        return 2 * (self.window + 1) if self.run in LARGE else 2 * BATCH

    @property
    def payload(self) -> int:
        """Bytes on the edge for one message; a round trip is two."""
        return 2 * self.size if self.run == TRIPS else self.size


def plan(budget: Budget) -> tuple[Step, ...]:
    """Return every step in its order, with its share of the budget or the reason why it is left out."""
    small = [_small(step, budget) for step in _small_steps()]
    large = _fit_memory(_large_steps(), budget.memory_bytes)
    return (*small, *_share_payload(large, budget))


def memory_bytes(steps: Iterable[Step]) -> int:
    """Return the arena and buffers that steps need on the sending node: segments of each size, and one source."""
    arenas: dict[int, int] = {}
    source = 0
    for step in steps:
        slot_bytes, slots = plan_segment(step.size)
        segments = -(
            -(step.window + 1) // slots
        )  # one slot more: it is released behind its confirmation
        arenas[step.size] = max(arenas.get(step.size, 0), segments * slots * slot_bytes)
        source = max(source, step.size if step.run == ARRAY else 0)
    return sum(arenas.values()) + source


def taken(steps: Iterable[Step]) -> list[Step]:
    """Return the steps that are not left out."""
    return [step for step in steps if not step.left_out]


def _small(step: Step, budget: Budget) -> Step:
    """Return a step of small messages with its share; they need hardly any memory."""
    time_share, payload_share = _SMALL_SHARES[step.run]
    size_bytes = int(budget.size_bytes * payload_share)
    need = step.least * step.payload
    if need > size_bytes:
        return replace(step, left_out=_needs(need / payload_share, "--bytes"))
    return replace(step, seconds=budget.seconds * time_share, size_bytes=size_bytes)


def _needs(size_bytes: float, option: str) -> str:
    return f"needs {units.format_bytes(math.ceil(size_bytes))} of {option}"


def _small_steps() -> tuple[Step, ...]:
    return (
        Step("64 B round trip, default wait", TRIPS, SMALL),
        Step("64 B, one call a message", ONE_WAY, SMALL),
        Step(f"64 B, {BATCH} a call", BATCHED, SMALL),
    )


def _large_steps() -> list[Step]:
    return [
        Step(f"{size // MIB} MiB {title}, window {window}", run, size, window, weight)
        for run, title in ((LOANED, "loaned"), (ARRAY, "send(array)"))
        for size, window, weight in _SIZES
    ]


def _fit_memory(steps: list[Step], most: int) -> list[Step]:
    fitted: list[Step] = []
    for step in steps:
        need = memory_bytes([*taken(fitted), step])
        reason = _needs(need, "--memory") if need > most else ""
        fitted.append(replace(step, left_out=reason))
    return fitted


def _share_payload(steps: list[Step], budget: Budget) -> list[Step]:
    """Give each step its share of time and payload; those that get too little leave theirs to the others."""
    time_share, payload_share = _LARGE_SHARES
    while True:
        used = taken(steps)
        weights = sum(step.weight for step in used)
        unit = budget.size_bytes * payload_share / max(1, weights)
        short = [s for s in used if s.least * s.size > unit * s.weight]
        if not short:
            break
        worst = max(short, key=lambda s: s.least * s.size / s.weight)
        reason = _needs(
            worst.least * worst.size / worst.weight * weights / payload_share, "--bytes"
        )
        steps = [replace(s, left_out=reason) if s is worst else s for s in steps]
    seconds = budget.seconds * time_share / max(1, len(used))
    return [
        s if s.left_out else replace(s, seconds=seconds, size_bytes=int(unit * s.weight))
        for s in steps
    ]
