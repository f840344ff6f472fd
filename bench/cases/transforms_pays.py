"""What `when: pays` is worth on a slow path, and costs on a fast one; both against the same channel without a codec."""

from __future__ import annotations

from typing import Any

from bench.paths.stage import FABRIC
from bench.rounds import Contender
from bench.rows import Row
from bench.sides import Subject
from bench.verdicts import Bar

FIGURES = ("gb_per_s", "coded_percent", "wire_share")
COMPRESS: dict[str, Any] = {"name": "compress", "when": "pays"}
INT8: dict[str, Any] = {"name": "quantize", "code": "i8", "when": "pays"}
SLOW, FAST = (1000,), (0,)


def row(name: str, codec: dict[str, Any], number: float, is_exact: bool, **order: Any) -> Row:
    """Return a row of one codec against no codec."""
    coded = {"label": codec["name"], "transforms": [codec]}
    given = {"run": "kv", "layout": "rails", "rates": SLOW, "seconds": 4.0, **order}
    return Row(
        "transforms",
        name,
        given,
        Contender(Subject("fabric codecs", FABRIC), {**coded, "is_exact": is_exact}, "when: pays"),
        (),
        Contender(Subject("raw", FABRIC), {"label": "raw", "is_exact": True}, "raw"),
        (Bar("gb_per_s", number, "floor"),),
        None,
        FIGURES,
    )


def fast(codec: dict[str, Any], is_exact: bool) -> tuple[Row, Row]:
    """Return the rows of a path that is faster than the codec: time at most 1.05 x raw."""
    name, least = codec["name"], 1 / 1.05
    return (
        row(f"bf16 KV, {name}, an unshaped link", codec, least, is_exact, rates=FAST),
        row(
            f"bf16 KV, {name}, shared memory",
            {**codec, "where": "always"},
            least,
            is_exact,
            rates=FAST,
            is_local=True,
        ),
    )


PAYS = (
    row("bf16 KV over 1 Gbit/s, lossless", COMPRESS, 1.35, True),
    row("bf16 KV over 1 Gbit/s, int8", INT8, 1.85, False),
    *fast(COMPRESS, True),
    *fast(INT8, False),
)
