"""Group `bulk`: large arrays and loans between two processes of a node, and to eight."""

from __future__ import annotations

from bench import subjects as s
from bench.cases.orders import BULK_S, KIB, MIB, THROUGHPUT, arrays
from bench.rounds import Amount, Contender
from bench.rows import Row, names, of
from bench.verdicts import Bar

LARGE = (MIB, 16 * MIB, 256 * MIB)
WINDOWS = (1, 8)
CARRIERS = (s.UNIX_SOCKET, s.PYZMQ, s.UCXX_POLL, s.ICEORYX2_POLL, s.NIXL_READ)
SLEEPING_CARRIERS = (s.UNIX_SOCKET, s.PYZMQ, s.UCXX_SLEEP, s.ICEORYX2_SLEEP)
SLOW_CARRIERS = (s.MULTIPROCESSING, s.ZENOH_SHM, s.GRPC_STREAM, s.GLOO, s.NIXL_WRITE)
NEEDED_CARRIERS = (s.UCXX_POLL, s.ICEORYX2_POLL, s.PYZMQ)


def bulk(size: int, reads: bool, window: int) -> Row:
    """Return one row of ``send(array)`` on one node: the fastest peers poll, so ours does."""
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
        Contender(s.POLL),
        of(*CARRIERS, *(SLOW_CARRIERS if everyone else ())),
        Contender(s.MEMCPY),
        tuple(bars),
        arrays(window),
        THROUGHPUT,
    )


def default_wait(size: int, window: int) -> Row:
    """Return a row of ``send(array)`` with the default wait, beside peers whose receivers sleep as well."""
    return Row(
        "bulk",
        f"{size // MIB} MiB send(array), viewed, window {window}, default wait",
        {"run": "bulk", "size": size, "read": False, "window": window},
        Contender(s.DEFAULT),
        of(*SLEEPING_CARRIERS),
        Contender(s.MEMCPY),
        (
            Bar("gb_per_s", 1.0, "peer:best", names(s.PYZMQ, s.UNIX_SOCKET)),
            Bar("cpu_s_per_gb", 1.0, "peer:best", names(s.PYZMQ, s.UNIX_SOCKET)),
        ),
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
    default_wait(MIB, 1),
    default_wait(16 * MIB, 8),
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
