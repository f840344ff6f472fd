"""What is measured and what is promised: rows of work, who does it, how much of it, and the bars.

A row is one order of `bench.loops` in one or two placements; each of its bars becomes a case of the report. Rows
without bars are printed only. Nothing here runs anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench import subjects as s
from bench.rounds import ROUNDS, Amount, Contender
from bench.sides import Subject
from bench.verdicts import Bar

KIB, MIB = 1 << 10, 1 << 20
SMALL = 64
SAMPLES = 50_000  # of a 99th percentile, in one round
SAMPLES_LEAST = SAMPLES // ROUNDS  # of one whose round trips are slow: as many over the rounds
IDLE_PERCENT_MAX = 1.0


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes
    ----------
    group, name : str
    order : Mapping
        For `bench.loops`, without ``count``.
    ours : Contender
    peers : tuple of Contender
    floor : Contender, float or None
        What ours is held against where it is not a peer; a number where it is given.
    bars : tuple of Bar
    amount : Amount or None
        How much one round is; None where the order says everything.
    figures : tuple of str
        Shown in the table, in this order.
    is_latency : bool
        In both placements; each has to hold, so the worse one counts.
    """

    group: str
    name: str
    order: Mapping[str, Any]
    ours: Contender
    peers: tuple[Contender, ...] = ()
    floor: Contender | float | None = None
    bars: tuple[Bar, ...] = ()
    amount: Amount | None = None
    figures: tuple[str, ...] = ("p50_us",)
    is_latency: bool = False
    rounds: int = field(default=ROUNDS)

    def subjects(self) -> list[Subject]:
        """Return everyone that takes part."""
        floor = (self.floor,) if isinstance(self.floor, Contender) else ()
        return [each.subject for each in (self.ours, *self.peers, *floor)]


def of(*subjects: Subject) -> tuple[Contender, ...]:
    """Return contenders that follow the row's order."""
    return tuple(Contender(subject) for subject in subjects)


def names(*subjects: Subject) -> tuple[str, ...]:
    """Return their names."""
    return tuple(subject.name for subject in subjects)


# ------------------------------------------------------------------ latency
TRIP = {"run": "round_trips", "size": SMALL}
TRIPS = Amount(seconds=0.5, least=1_000, most=20_000)
TAIL = Amount(seconds=2.0, least=SAMPLES_LEAST, most=SAMPLES)
SLEEPERS = (s.UNIX_SOCKET, s.MULTIPROCESSING, s.PYZMQ, s.UCXX_SLEEP, s.ICEORYX2_SLEEP)
LATENCY = (
    Row(
        "latency",
        "64 B round trip, both polling",
        TRIP,
        Contender(s.POLL),
        of(s.UCXX_POLL, s.ICEORYX2_POLL, s.NIXL_WRITE),
        Contender(s.RING_SPIN),
        (Bar("p50_us", 0.3, "peer:best", names(s.UCXX_POLL, s.ICEORYX2_POLL)),),
        TRIPS,
        ("p50_us", "p99_us", "cpu_us"),
        is_latency=True,
    ),
    Row(
        "latency",
        "64 B round trip, default wait",
        TRIP,
        Contender(s.DEFAULT),
        of(*SLEEPERS, s.ZENOH, s.ZENOH_SHM, s.GRPC_UNARY, s.GRPC_STREAM, s.GLOO),
        Contender(s.RING_FUTEX),
        (Bar("p50_us", 0.5, "peer:unix socket", names(s.UNIX_SOCKET)),),
        TRIPS,
        ("p50_us", "cpu_us"),
        is_latency=True,
    ),
    Row(
        "latency",
        "64 B round trip, default wait, tail",
        TRIP,
        Contender(s.DEFAULT),
        of(*SLEEPERS),
        Contender(s.RING_FUTEX),
        (Bar("p99_us", 1.0, "peer:best", names(s.UNIX_SOCKET, s.PYZMQ, s.UCXX_SLEEP)),),
        TAIL,
        ("p99_us", "p50_us"),
        is_latency=True,
    ),
    Row(
        "latency",
        "64 B round trip, no spin",
        TRIP,
        Contender(s.SLEEP),
        of(s.UNIX_SOCKET),
        Contender(s.RING_FUTEX),
        (
            Bar("p50_us", 1.3, "floor"),
            Bar("p50_us", 1.0, "peer:unix socket", names(s.UNIX_SOCKET)),
        ),
        TRIPS,
        ("p50_us", "p99_us", "cpu_us"),
        is_latency=True,
    ),
    Row(
        "latency",
        "idle receiver, default wait",
        {"run": "idle", "seconds": 1.0},
        Contender(s.DEFAULT),
        of(s.UNIX_SOCKET, s.PYZMQ, s.UCXX_SLEEP),
        IDLE_PERCENT_MAX,
        (Bar("idle_percent", 1.0, "floor"),),
        None,
        ("idle_percent",),
    ),
)

# ------------------------------------------------------------------ rate
STREAMERS = (
    s.UNIX_SOCKET,
    s.MULTIPROCESSING,
    s.PYZMQ,
    s.UCXX_POLL,
    s.ICEORYX2_POLL,
    s.ZENOH,
    s.ZENOH_SHM,
    s.GRPC_STREAM,
    s.GLOO,
)
MESSAGES = Amount(seconds=0.5, least=2_000, most=1_000_000)
BATCH = 64
RATE = (
    Row(
        "rate",
        "64 B, one call a message",
        {"run": "one_way", "size": SMALL},
        Contender(s.DEFAULT),
        of(*STREAMERS),
        Contender(s.RING_FUTEX),
        (Bar("k_per_s", 2.0, "peer:best", names(s.PYZMQ, s.UNIX_SOCKET)),),
        MESSAGES,
        ("k_per_s", "cpu_us"),
    ),
    Row(
        "rate",
        f"64 B, {BATCH} a call",
        {"run": "one_way", "size": SMALL, "batch": BATCH},
        Contender(s.DEFAULT),
        of(*STREAMERS),
        Contender(s.RING_FUTEX),
        (
            Bar("k_per_s", 10.0, "peer:best", names(s.PYZMQ, s.UNIX_SOCKET)),
            Bar("cpu_us", 1.0, "peer:best", names(s.PYZMQ)),
        ),
        MESSAGES,
        ("k_per_s", "cpu_us"),
    ),
    Row(
        "rate",
        "typed message, 4 scalars and 1 KiB tensor",
        {"run": "typed"},
        Contender(s.DEFAULT),
        of(*STREAMERS),
        None,
        (Bar("k_per_s", 2.0, "peer:best", names(s.PYZMQ)),),
        MESSAGES,
        ("k_per_s", "cpu_us"),
    ),
)

GROUPS: dict[str, tuple[Row, ...]] = {"latency": LATENCY, "rate": RATE}
