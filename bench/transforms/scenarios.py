"""What a codec moves over a path: effective bytes a second of KV, raw bytes counted, of a channel with it."""

from __future__ import annotations

from typing import Any

from bench.paths.scenarios import Figures, Order, Scenario
from bench.paths.stage import FABRIC, Stage
from bench.sides import FREE, Pair, Subject, SubjectFailed
from bench.transforms import kv

ORDER_S = 60.0
WARM = {"run": "kv", "seconds": 1.0}  # connections grow, the path and the codec get measured


def carried(stage: Stage, who: str, order: Order) -> Figures:
    """One stream of KV, its codec as the order says; `gb_per_s` counts what the receiver got.

    Raises
    ------
    SubjectFailed
        Something was lost, came out of order, or is not what was sent.
    """
    pair = pair_of(stage, order)
    given = {"run": "kv", "seconds": order["seconds"], "is_exact": order["is_exact"]}
    if not getattr(pair, "is_warm", False):
        pair.order({**given, **WARM}, ORDER_S)
        pair.is_warm = True  # type: ignore[attr-defined]
    near, far = pair.order(given, ORDER_S)
    goodput = (far["count"] - 1) * far["message_bytes"] / far["ns"]
    if far["wrong"] or far["count"] != near["sent"]:
        raise SubjectFailed(
            f"{far['wrong']} of {near['sent']} messages are wrong, {far['count']} came"
        )
    figures = {"gb_per_s": goodput}
    if near["raw_bytes"]:
        figures["coded_percent"] = 100 * near["coded"] / (near["coded"] + near["raw"])
        figures["wire_share"] = near["wire_bytes"] / near["raw_bytes"]
    return figures


def pair_of(stage: Stage, order: Order) -> Pair:
    """Return both halves of a contender: on two nodes, or on one where the order says so."""
    kv.load()  # before any half waits for it
    nodes = stage.nodes()
    near, far = nodes.socket(0), nodes.socket(0 if order.get("is_local") else 1)
    name = f"{order['label']}-{'local' if order.get('is_local') else 'far'}"
    key = (FABRIC, (), name)
    if key not in stage._pairs:
        options: dict[str, Any] = {"near": near, "far": far, "channel": name}
        options["transforms"] = list(order.get("transforms", ()))
        stage._pairs[key] = Pair(Subject(FABRIC, "bench.ours.coded", options), FREE)
    return stage._pairs[key]


TRANSFORMS: dict[str, Scenario] = {"kv": carried}
