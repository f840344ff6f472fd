"""Group `growth`: what much else that is open costs, and what it costs to open it."""

from __future__ import annotations

from bench import subjects as s
from bench.cases.orders import KIB, TRIP, TRIPS
from bench.rounds import Amount, Contender
from bench.rows import Row, names
from bench.verdicts import Bar

CONNECT = "multiprocessing connect"
IDLE_BYTES_MAX = 16.0 * KIB
NODES_MAX = 16
SAME = 1.1  # two measurements of the same memory differ by some pages
CALLS = Amount(seconds=0.5, least=10, most=200)


def crowded(subject: s.Subject, alone: s.Subject, what: str) -> Row:
    """Return a row of round trips beside much else that is open."""
    return Row(
        "growth",
        f"64 B round trip, {what}",
        TRIP,
        Contender(subject),
        (),
        Contender(alone),
        (Bar("p50_us", 1.3, "floor"), Bar("cpu_us", 1.3, "floor")),
        TRIPS,
        ("p50_us", "p99_us", "cpu_us"),
    )


def idle(what: str, count: int) -> Row:
    """Return a row of what one more idle thing costs in memory: measured, and as the node says."""
    return Row(
        "growth",
        f"idle {what.removesuffix('s')}",
        {"run": what, "count": count},
        Contender(s.FOOTPRINT),
        (),
        IDLE_BYTES_MAX,
        (Bar("bytes", 1.0, "floor"), Bar("stated_bytes", 1.0, "floor")),
        None,
        ("bytes", "stated_bytes", "client_bytes"),
    )


GROWTH = (
    *(
        crowded(s.with_channels(count), s.with_channels(1), f"{count:,} channels")
        for count in (100, 1_000)
    ),
    *(crowded(s.with_ports(count), s.with_ports(2), f"{count} ports") for count in (16, 64)),
    Row(
        "growth",
        "attach",
        {"run": "attach"},
        Contender(s.ALONE),
        (Contender(s.ALONE, {"run": "connect"}, CONNECT),),
        None,
        (Bar("p50_us", 20.0, f"peer:{CONNECT}", (CONNECT,)),),
        CALLS,
    ),
    Row(
        "growth",
        "open an end of a channel",
        {"run": "open"},
        Contender(s.ALONE),
        (Contender(s.GRPC_UNARY, TRIP),),
        None,
        (Bar("p50_us", 3.0, f"peer:{s.GRPC_UNARY.name}", names(s.GRPC_UNARY)),),
        CALLS,
    ),
    Row(
        "growth",
        "node ready, against interpreter, imports and 150 ms",
        {"run": "ready"},
        Contender(s.FOOTPRINT),
        (),
        Contender(s.FOOTPRINT, {"run": "ready_allowance"}, "interpreter, imports, 150 ms"),
        (Bar("ms", 1.0, "floor"),),
        None,
        ("ms",),
    ),
    idle("channels", 500),
    idle("ports", 60),
    Row(
        "growth",
        f"memory of node {NODES_MAX}, against that of node 2",
        {"run": "node"},
        Contender(s.with_nodes(NODES_MAX - 1)),
        (),
        Contender(s.with_nodes(1)),
        (Bar("bytes", SAME, "floor"),),
        None,
        ("bytes", "ms"),
    ),
)
