"""Group `paths`: what several rails are worth, and what it costs when one of them is slow, lost or lying.

Rates are those of `tbf` in Mbit/s; where a bar is a number of its own (milliseconds, a share of what the network lets
through) the floor is 1. `run` names a scenario, `layout` and `rates` what it is played on.
"""

from __future__ import annotations

from bench.cases.orders import MIB
from bench.paths.stage import FABRIC, GRPC, MPTCP, NIXL, TCP, UCX, ZMQ
from bench.rounds import Contender
from bench.rows import Row, names, of
from bench.sides import Subject
from bench.verdicts import Bar

OURS = Subject("fabric", FABRIC)
UCXX = Subject("UCX (ucxx), all rails", UCX)
NIXL_WRITE = Subject("NIXL write, all rails", NIXL)
MPTCP_SOCKET = Subject("MPTCP socket", MPTCP)
TCP_SOCKET = Subject("tcp socket, one rail", TCP)
PYZMQ = Subject("pyzmq, one connection", ZMQ)
GRPC_AIO = Subject("gRPC, one connection", GRPC)
RAILED = (UCXX, NIXL_WRITE, MPTCP_SOCKET)
GIB = 1 << 30
ALONE_BYTES = 256 * MIB
EQUAL, UNEVEN, FOUR = (1000, 1000), (1000, 400), (1000, 500, 200, 100)


def row(
    name: str,
    order: dict[str, object],
    peers: tuple[Subject, ...],
    bars: tuple[Bar, ...],
    figures: tuple[str, ...],
    rounds: int = 2,
    floor: Contender | float = 1.0,
) -> Row:
    """Return a row of this group, of 1 MiB messages over two equal rails unless the order says otherwise."""
    given = {"layout": "rails", "rates": EQUAL, "size": MIB, **order}
    return Row(
        "paths", name, given, Contender(OURS), of(*peers), floor, bars, None, figures, rounds=rounds
    )


def ours(figure: str, number: float) -> Bar:
    """Return a bar that is a number of its own."""
    return Bar(figure, number, "floor")


def over(peer: Subject, figure: str, number: float) -> Bar:
    """Return a bar against a peer."""
    return Bar(figure, number, f"peer:{peer.name}", names(peer))


def together(size: int, count: int, peers: tuple[Subject, ...], rounds: int) -> Row:
    """Return a row of two equal rails against each of them alone, with `ALONE_BYTES` at most: it takes longer."""
    alone = {"run": "singly", "count": max(1, count // 2), "size": min(size, ALONE_BYTES)}
    return row(
        f"two rails, 1 + 1 Gbit/s, {size // MIB} MiB",
        {"run": "steady", "size": size, "count": count, "window": 2, "give_up_s": 30.0},
        peers,
        (ours("gb_per_s", 0.98), over(UCXX, "gb_per_s", 0.99)),
        ("gb_per_s", "share", "resent_percent", "wrong"),
        rounds,
        Contender(OURS, alone, "each rail alone, added"),
    )


def striped(what: str, rates: tuple[int, ...]) -> Row:
    """Return a row of rails that differ."""
    return row(
        f"{what} Gbit/s",
        {"run": "steady", "rates": rates, "seconds": 3.0},
        (*RAILED, TCP_SOCKET),
        (ours("share", 0.95), *(over(peer, "gb_per_s", 1.3) for peer in RAILED)),
        ("gb_per_s", "share", "resent_percent", "wrong"),
        3,
    )


LOSS = {"run": "lost", "seconds": 10.0, "at": (1.5, 7.5)}
SLOWER = {"run": "throttled", "seconds": 8.0, "at": (2.0, 5.0)}
LOSS_FIGURES = ("gap_ms", "late_ms", "back_ms", "gb_per_s", "wrong")
INTACT = ours("wrong", 0.0)


def loss(what: str, silent: bool, peers: tuple[Subject, ...]) -> tuple[Row, Row]:
    """Return the rows of a rail that goes for 6 s: gaps between 1 MiB messages, and transfers of 16 MiB."""
    order = {**LOSS, "silent": silent}
    return (
        row(
            f"one of two {what} for 6 s, 1 MiB",
            order,
            peers,
            (ours("gap_ms", 50.0), ours("back_ms", 1000.0), INTACT),
            LOSS_FIGURES,
        ),
        row(
            f"one of two {what} for 6 s, transfers of 16 MiB",
            {**order, "size": 16 * MIB, "window": 2},
            (),
            (ours("late_ms", 50.0), INTACT),
            LOSS_FIGURES,
        ),
    )


CHOICE_FIGURES = (
    "unexplained",
    *(f"{case}_{name}" for case in ("better", "worse") for name in ("tcp", "ucx", "share")),
    *(f"alike_{name}" for name in ("tcp", "ucx", "ratio")),
)

PATHS = (
    together(64 * MIB, 6, RAILED, 3),
    together(GIB, 1, (UCXX,), 1),
    striped("uneven, 1 + 0.4", UNEVEN),
    striped("four rails, 1 + 0.5 + 0.2 + 0.1", FOUR),
    row(
        "one of two throttled to 0.1 Gbit/s and back, 1 MiB",
        SLOWER,
        RAILED,
        (ours("least_share", 0.93), ours("back_ms", 1000.0), INTACT),
        ("least_share", "gb_per_s", "back_ms", "wrong"),
    ),
    row(
        "one of two throttled to 0.1 Gbit/s and back, transfers of 16 MiB",
        {**SLOWER, "size": 16 * MIB, "window": 2},
        RAILED,
        (ours("p99_ratio", 1.5),),
        ("p99_ratio", "gb_per_s", "wrong"),
        1,
    ),
    *loss("down", False, RAILED),
    *loss("a black hole", True, (UCXX, MPTCP_SOCKET)),
    row(
        "nothing fails",
        {"run": "steady", "seconds": 3.0},
        (),
        (ours("resent_percent", 2.0), INTACT),
        ("resent_percent", "gb_per_s", "wrong"),
        3,
    ),
    row(
        "both down for 3 s, then one returns",
        {"run": "dark", "seconds": 6.0, "at": (1.0, 4.0), "expiring": 20},
        (),
        tuple(
            ours(figure, number)
            for figure, number in (("resume_ms", 200.0), ("unexplained", 0.0), ("unbalanced", 0.0))
        ),
        ("resume_ms", "unexplained", "unbalanced", "wrong"),
    ),
    row(
        "64 B control round trip beside bulk on both rails",
        {"run": "beside", "seconds": 3.0},
        (PYZMQ, GRPC_AIO),
        (ours("added_ms", 3.0),),
        ("added_ms", "p99_us", "idle_p99_us"),
        3,
    ),
    row(
        "incast: 4 nodes send 64 MiB each over one 1 Gbit/s port",
        {"run": "incast", "layout": "incast", "count": 64},
        (),
        (ours("share", 0.92), ours("jain", 0.97), ours("added_ms", 5.0), INTACT),
        ("share", "jain", "added_ms", "wrong"),
    ),
    row(
        "two rails that share one 1 Gbit/s bottleneck",
        {"run": "steady", "layout": "shared", "seconds": 3.0},
        (UCXX, MPTCP_SOCKET),
        (ours("gb_per_s", 0.98),),
        ("gb_per_s", "resent_percent", "wrong"),
        3,
        Contender(OURS, {"run": "alone"}, "one rail alone"),
    ),
    row(
        "one clean rail at full speed",
        {"run": "steady", "rates": (0,), "seconds": 1.5, "is_checked": False},
        (TCP_SOCKET,),
        (ours("gb_per_s", 0.98),),
        ("gb_per_s", "resent_percent", "wrong"),
        5,
        Contender(OURS, {"run": "pinned"}, "the scheduler fixed to it"),
    ),
    row(
        "a rail that flaps every 300 ms for 10 s",
        {"run": "flapping", "seconds": 11.5, "at": (1.0, 11.0), "period_s": 0.3},
        (),
        (ours("least_share", 0.95), INTACT),
        ("least_share", "gap_ms", "gb_per_s", "wrong"),
    ),
    row(
        "5 % of chunks corrupted",
        {"run": "corrupted", "seconds": 3.0, "every": 20},
        (),
        (INTACT, ours("uncounted", 0.0)),
        ("wrong", "uncounted", "gb_per_s"),
        1,
    ),
    row(
        "ucx link beside tcp on one host",
        {
            "run": "choice",
            "layout": "beside",
            "size": 16 * MIB,
            "window": 4,
            "seconds": 2.0,
            "is_checked": False,
        },
        (),
        (ours("unexplained", 0.0),),
        CHOICE_FIGURES,
        1,
    ),
    row(
        "scheduler cost per chunk, 8 rails",
        {"run": "cost", "layout": "none"},
        (),
        (ours("ns", 1000.0),),
        ("ns", "atomic_ns"),
        3,
    ),
    row(
        "simulator: 1,000 nodes, one rail in 50 at 10 %",
        {"run": "simulated", "layout": "none"},
        (Subject("static hashing (ECMP)", "ecmp"), Subject("round-robin striping", "round_robin")),
        (
            Bar("p99_s", 0.5, "peer:static hashing (ECMP)", ("static hashing (ECMP)",)),
            Bar("p99_s", 0.7, "peer:round-robin striping", ("round-robin striping",)),
            ours("differs", 0.0),
        ),
        ("p99_s", "p50_s", "differs"),
        1,
    ),
)
