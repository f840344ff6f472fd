"""Group `rate`: small messages one way, as many as go."""

from __future__ import annotations

from bench import subjects as s
from bench.cases.orders import BATCH, MESSAGES, SMALL
from bench.rounds import Contender
from bench.rows import Row, names, of
from bench.verdicts import Bar

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
        of(s.PYZMQ, s.GRPC_STREAM),  # unary calls that are open together have no order
        None,
        (Bar("k_per_s", 2.0, "peer:best", names(s.PYZMQ)),),
        MESSAGES,
        ("k_per_s", "cpu_us"),
    ),
)
