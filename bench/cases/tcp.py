"""Group `tcp`: between two nodes over loopback, through both daemons."""

from __future__ import annotations

from bench import subjects as s
from bench.cases.orders import BATCH, MESSAGES, MIB, SMALL, THROUGHPUT, TRIP, TRIPS, arrays
from bench.rounds import Contender
from bench.rows import Row, names, of
from bench.verdicts import Bar

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
