"""Schedules of rails between two hosts, run by the native simulator around the scheduler that the engine drives.

Pure but for the simulator's own threads of time: nothing here reads a clock, a file or a socket. A schedule is text
(docs/guides/simulation.md); a seed draws one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fabric import _native, errors, limits


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one schedule.

    Attributes
    ----------
    violation : str
        What did not hold, or empty.
    at_s : float
        Simulated time of the violation, or of the last delivery.
    delivered, posted, resent, scratch : int
        Bytes: handed over, put on rails, put on rails again, thrown away by the receiver.
    corrupt : int
        Chunks whose checksum was wrong.
    gap_s : float
        Longest time without a byte placed, between the first and the last.
    rates : tuple of float
        Delivered bytes/s, one a bucket of `bucket_s`.
    took_s : tuple of float
        By transfer, from its grant until it was handed over.
    digest : int
        The same for two runs of one schedule.
    """

    violation: str
    at_s: float
    events: int
    delivered: int
    posted: int
    resent: int
    scratch: int
    corrupt: int
    gap_s: float
    bucket_s: float
    rates: tuple[float, ...]
    took_s: tuple[float, ...]
    rails: tuple[Mapping[str, Any], ...]
    digest: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A seed whose schedule did not hold: what, and when in simulated time."""

    seed: int
    at_s: float
    violation: str


def run(plan: str, bucket_s: float = 0.05) -> Outcome:
    """Run one schedule.

    Parameters
    ----------
    plan : str
        The schedule's text.
    bucket_s : float
        Width of the buckets of `Outcome.rates`.

    Raises
    ------
    ConfigError
        The text is none; names the line.
    """
    if len(plan) > limits.SIMULATION_PLAN_BYTES_MAX:
        raise errors.ConfigError(
            f"the schedule has {len(plan)} characters", limit="SIMULATION_PLAN_BYTES_MAX"
        )
    try:
        found = _native.simulate_plan(plan, max(1, round(bucket_s * 1e9)))
    except ValueError as error:
        raise errors.ConfigError(f"no schedule of rails: {error}", reason=str(error)) from error
    return Outcome(
        violation=found["violation"],
        at_s=found["at_ns"] / 1e9,
        events=found["events"],
        delivered=found["delivered"],
        posted=found["posted"],
        resent=found["resent"],
        scratch=found["scratch"],
        corrupt=found["corrupt"],
        gap_s=found["gap_ns"] / 1e9,
        bucket_s=bucket_s,
        rates=tuple(bytes_ / bucket_s for bytes_ in found["buckets"]),
        took_s=tuple(ns / 1e9 for ns in found["took_ns"]),
        rails=tuple(found["rails"]),
        digest=found["log"],
    )


def drawn(seed: int) -> str:
    """Return the schedule that a seed draws, as text."""
    return _native.random_plan(seed)


def run_seeds(first: int, count: int) -> Iterator[tuple[int, list[Failure]]]:
    """Run the schedules of `count` seeds from `first` on, some at a time.

    Yields
    ------
    tuple of int and list of Failure
        How many have run so far, and those of the latest that did not hold.
    """
    done = 0
    while done < count:
        part = min(limits.SIMULATION_SEEDS_AT_ONCE, count - done)
        failed = _native.simulate_seeds(first + done, part)
        done += part
        yield done, [Failure(seed, at_ns / 1e9, what) for seed, at_ns, what in failed]
