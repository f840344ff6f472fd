"""Two links of one host: is the better one chosen by what was measured, the worse one left, and is that what is said?

*better*: a rail of UCX's shared memory beside a tcp rail of a shaped loopback. *worse*: a rail of UCX's tcp over a
shaped interface beside a tcp rail over one that is not. *alike*: shared memory beside loopback, as fast as this
machine's cores let both be; there neither has to be left. Which is faster is not taken for granted: each is measured
alone, by a pin.
"""

from __future__ import annotations

from typing import Any

from bench.paths.layouts import BesideStage
from bench.paths.nodes import Nodes
from bench.paths.scenarios import Figures, Order, stream, warm
from bench.sides import Pair, SubjectFailed
from fabric.errors import FabricError
from fabric.links import ucx

SHARE_LEAST = 0.8  # of the bytes, on the faster rail
TCP_RAIL, UCX_RAIL = 0, 1
RECEIVER, SENDER = "n1", "n0"
SETTLE_S = 1.0  # unmeasured, after a pin is taken away


def choice(stage: BesideStage, who: str, order: Order) -> Figures:
    """Return how many of the choices were not the measured one, or were not said; and what was measured."""
    if why := ucx.unavailable():
        raise SubjectFailed(why)
    figures: Figures = {"unexplained": 0.0}
    for case in stage.CASES:
        nodes, pair = stage.beside(case)
        found = compare(nodes, pair, stage, who, order)
        unexplained = found.pop("unexplained")
        figures["unexplained"] += unexplained if case != "alike" else 0.0
        figures |= {f"{case}_{name}": value for name, value in found.items()}
    return figures


def compare(nodes: Nodes, pair: Pair, stage: BesideStage, who: str, order: Order) -> Figures:
    """Measure each rail alone, then both as the scheduler uses them; ask why meanwhile nothing has changed."""
    warm(stage, who, pair, order)
    alone = []
    for rail in (TCP_RAIL, UCX_RAIL):
        pin(nodes, rail)
        alone.append(whole(stage, who, pair, order).arrivals.rate())
    pin(nodes)
    whole(stage, who, pair, {**order, "seconds": SETTLE_S})
    before = delivered(nodes)
    both = whole(stage, who, pair, order).arrivals.rate()
    carried = [now - then for now, then in zip(delivered(nodes), before, strict=True)]
    faster = max((TCP_RAIL, UCX_RAIL), key=lambda rail: alone[rail])
    share = carried[faster] / (sum(carried) or 1)
    told = explained(nodes, order["size"], faster)
    return {
        "tcp": alone[TCP_RAIL] / 1e9,
        "ucx": alone[UCX_RAIL] / 1e9,
        "ratio": both / max(alone),
        "share": share,
        "told_share": told,
        "unexplained": float(share < SHARE_LEAST) + float(told < SHARE_LEAST),
    }


def whole(stage: BesideStage, who: str, pair: Pair, order: Order) -> Any:
    """Run one stream; returns it where all of it came."""
    found = stream(stage, who, pair, order)
    if not found.is_whole or found.wrong():
        raise SubjectFailed(f"{who}: {found.why}")
    return found


def pin(nodes: Nodes, *rails: int) -> None:
    """Have the sending node use only some rails; none named: all again."""
    with nodes.client(0) as client:
        try:
            client.path_pin(RECEIVER, list(rails))
        except FabricError as error:
            raise SubjectFailed(f"rails cannot be pinned: {error}") from error


def delivered(nodes: Nodes) -> list[int]:
    """Return what each rail of the sending node has delivered so far, in bytes."""
    with nodes.client(0) as client:
        rows = sorted(client.path_ls(), key=lambda row: row["rail"])
    return [int(row["delivered"]) for row in rows]


def explained(nodes: Nodes, size: int, rail: int) -> float:
    """Return the share of a message that `path why` says this rail carries; 0 where its words do not name it."""
    with nodes.client(0) as client:
        said = client.path_why(SENDER, RECEIVER, size_bytes=size, klass="bulk")
    row = next(row for row in said["rails"] if row["rail"] == rail)
    is_named = f"rail {rail}" in " ".join(said["words"])
    return float(row["carries_share"]) if is_named else 0.0
