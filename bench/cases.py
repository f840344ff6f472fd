"""What is measured and what is promised: the rows of every group, with their bars.

A row is one order of `bench.loops` in one or two placements; each of its bars becomes a case of the report. Rows
without bars are printed only. Adding a row is adding an entry here.
"""

from __future__ import annotations

from bench import subjects as s
from bench.rounds import ROUNDS, Amount, Contender
from bench.rows import Row, names, of
from bench.verdicts import Bar

KIB, MIB = 1 << 10, 1 << 20
SMALL = 64
SAMPLES = 50_000  # of a 99th percentile, in one round
SAMPLES_LEAST = SAMPLES // ROUNDS  # of one whose round trips are slow: as many over the rounds
IDLE_PERCENT_MAX = 1.0


# ------------------------------------------------------------------ latency
TRIP = {"run": "round_trips", "size": SMALL}
TRIPS = Amount(seconds=0.3, least=1_000, most=20_000)
TAIL = Amount(seconds=2.0, least=SAMPLES_LEAST, most=SAMPLES)
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
MESSAGES = Amount(seconds=0.4, least=2_000, most=1_000_000)
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
        of(s.PYZMQ, s.GRPC_STREAM, s.GRPC_UNARY),
        None,
        (Bar("k_per_s", 2.0, "peer:best", names(s.PYZMQ)),),
        MESSAGES,
        ("k_per_s", "cpu_us"),
    ),
)

# ------------------------------------------------------------------ bulk
LARGE = (MIB, 16 * MIB, 256 * MIB)
WINDOWS = (1, 8)
CARRIERS = (s.UNIX_SOCKET, s.PYZMQ, s.UCXX_POLL, s.ICEORYX2_POLL, s.NIXL_READ)
SLOW_CARRIERS = (s.MULTIPROCESSING, s.ZENOH_SHM, s.GRPC_STREAM, s.GLOO, s.NIXL_WRITE)
NEEDED_CARRIERS = (s.UCXX_POLL, s.ICEORYX2_POLL, s.PYZMQ)
THROUGHPUT = ("gb_per_s", "cpu_s_per_gb")
BULK_S = 0.3


def arrays(window: int) -> Amount:
    """Return how much one round of large arrays is: every window is filled, and every source was sent before."""
    return Amount(BULK_S, least=max(4, window + 2), most=2_000)


def bulk(size: int, reads: bool, window: int) -> Row:
    """Return one row of ``send(array)`` on one node."""
    how = "summed" if reads else "viewed"
    bars = [
        Bar("gb_per_s", 1.0, "peer:best", names(*NEEDED_CARRIERS)),
        Bar("gb_per_s", 0.9, "floor"),
    ]
    if (size, reads, window) == (16 * MIB, False, 8):
        bars.append(Bar("cpu_s_per_gb", 1.0, "peer:best", names(s.UCXX_POLL, s.NIXL_READ)))
    everyone = size < 256 * MIB and not reads and window == 1
    return Row(
        "bulk",
        f"{size // MIB} MiB send(array), {how}, window {window}",
        {"run": "bulk", "size": size, "read": reads, "window": window},
        Contender(s.DEFAULT),
        of(*CARRIERS, *(SLOW_CARRIERS if everyone else ())),
        Contender(s.MEMCPY),
        tuple(bars),
        arrays(window),
        THROUGHPUT,
    )


def hand_over(size: int, title: str, floor: Contender | None, *bars: Bar) -> Row:
    """Return a row of loan, write in place, send, until the receiver's `receive` returned."""
    return Row(
        "bulk",
        f"loan of {title} to receive",
        {"run": "hand_over", "size": size},
        Contender(s.POLL),
        of(s.ICEORYX2_POLL, s.ICEORYX2_SLEEP),
        floor,
        (*bars, Bar("p50_us", 1.0, "peer:best", names(s.ICEORYX2_POLL))),
        Amount(BULK_S, least=10, most=300),
    )


BULK = (
    *(bulk(size, reads, window) for size in LARGE for reads in (False, True) for window in WINDOWS),
    hand_over(64 * KIB, "64 KiB", None),
    hand_over(
        256 * MIB,
        "256 MiB",
        Contender(s.POLL, {"size": 64 * KIB}),
        Bar("p50_us", 1.5, "floor"),
    ),
    Row(
        "bulk",
        "broadcast of 16 MiB to 8, until the last receive returned",
        {"run": "broadcast", "size": 16 * MIB, "receivers": 8, "count": 20},
        Contender(s.BROADCAST),
        (),
        Contender(s.BROADCAST, {"run": "broadcast_allowance"}),
        (Bar("ms", 1.0, "floor"),),
        None,
        ("ms",),
    ),
)

# ------------------------------------------------------------------ tcp
TCP_PEERS = (s.TCP_SOCKET, s.PYZMQ_TCP, s.UCXX_TCP, s.NIXL_TCP, s.MOONCAKE)
TCP_SIZES = (16 * MIB, 256 * MIB)
TCP_WINDOW = 8
NEEDED_TCP = names(s.TCP_SOCKET, s.PYZMQ_TCP)


def over_tcp(size: int, what: str, run: str, ours: s.Subject, floor: s.Subject, *bars: Bar) -> Row:
    """Return one row of large arrays between two nodes."""
    return Row(
        "tcp",
        f"two nodes, {size // MIB} MiB {what}",
        {"run": run, "size": size, "window": TCP_WINDOW},
        Contender(ours),
        of(*TCP_PEERS),
        Contender(floor),
        bars,
        arrays(TCP_WINDOW),
        THROUGHPUT,
    )


def best(number: float) -> Bar:
    """Return a bar of throughput against the best peer over tcp."""
    return Bar("gb_per_s", number, "peer:best", NEEDED_TCP)


TCP = (
    Row(
        "tcp",
        "two nodes, 64 B round trip between modules",
        TRIP,
        Contender(s.NODES),
        of(*TCP_PEERS, s.GRPC_UNARY, s.GLOO),
        Contender(s.CHAIN),
        (
            Bar("p50_us", 0.6, f"peer:{s.PYZMQ_TCP.name}", names(s.PYZMQ_TCP)),
            Bar("p50_us", 2.5, "floor"),
        ),
        TRIPS,
        ("p50_us", "p99_us", "cpu_us"),
        is_latency=True,
    ),
    Row(
        "tcp",
        f"two nodes, 64 B, {BATCH} a call",
        {"run": "one_way", "size": SMALL, "batch": BATCH},
        Contender(s.NODES),
        of(*TCP_PEERS),
        Contender(s.CHAIN),
        (),
        MESSAGES,
        ("k_per_s", "cpu_us"),
    ),
    *(
        row
        for size in TCP_SIZES
        for row in (
            over_tcp(
                size,
                "loaned, checksums",
                "loaned",
                s.NODES,
                s.TCP_BULK_CRC,
                Bar("gb_per_s", 0.9, "floor"),
                best(0.9),
            ),
            over_tcp(
                size,
                "loaned, no checksums",
                "loaned",
                s.NODES_PLAIN,
                s.TCP_BULK,
                Bar("gb_per_s", 0.9, "floor"),
                best(1.1),
            ),
            over_tcp(size, "send(array), checksums", "bulk", s.NODES, s.TCP_BULK_CRC, best(0.8)),
        )
    ),
)

# ------------------------------------------------------------------ growth
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
        ("bytes", "stated_bytes"),
    )


GROWTH = (
    *GROWTH,
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

GROUPS: dict[str, tuple[Row, ...]] = {
    "latency": LATENCY,
    "rate": RATE,
    "bulk": BULK,
    "tcp": TCP,
    "growth": GROWTH,
}
