"""Group `latency`: one small message there and back, by every way of waiting."""

from __future__ import annotations

from bench import subjects as s
from bench.cases.orders import TAIL, TRIP, TRIPS
from bench.rounds import Contender
from bench.rows import Row, names, of
from bench.verdicts import Bar

IDLE_PERCENT_MAX = 1.0
SLEEPERS = (
    s.UNIX_SOCKET,
    s.MULTIPROCESSING,
    s.PYZMQ,
    s.UCXX_SLEEP,
    s.UCXX_ASYNCIO,
    s.ICEORYX2_SLEEP,
)
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
