"""Codecs by themselves: lossless throughput beside libraries on one core, and what quantisation costs a real model."""

from __future__ import annotations

from bench import subjects as s
from bench.rounds import Contender
from bench.rows import Row, names, of
from bench.sides import Subject
from bench.verdicts import Bar

CODEC = Subject("fabric compress", "bench.ours.codec")
ACCURACY = Subject("fabric quantize", "bench.ours.accuracy")
AGREEMENT = Subject("fabric quantize KV", "bench.ours.accuracy", {"compares": True})
PEERS = (
    s.peer("zstd-1 + shuffle", "codecs", codec="zstd"),
    s.peer("blosc2", "codecs", codec="blosc2"),
    s.peer("zipnn", "codecs", codec="zipnn"),
)


def accuracy(name: str, run: str, code: str, bar: Bar, figures: tuple[str, ...]) -> Row:
    """Return a row that is held against a number."""
    subject = AGREEMENT if run == "agreement" else ACCURACY
    ours = Contender(subject, {"code": code}, f"quantize {code}")
    return Row(
        "transforms",
        name,
        {"run": run},
        ours,
        floor=1.0,
        bars=(bar,),
        figures=figures,
        rounds=1,
        is_exact=True,
    )


CODECS = (
    Row(
        "transforms",
        "lossless codec of bf16 KV, one core",
        {"run": "codec"},
        Contender(CODEC),
        of(*PEERS),
        None,
        (
            Bar("gb_per_s", 1.0, "peer:best", names(*PEERS)),
            Bar("decode_gb_per_s", 1.0, "peer:best", names(*PEERS)),
            Bar("wire_share", 1.0, "peer:best", names(*PEERS)),
        ),
        figures=("gb_per_s", "decode_gb_per_s", "wire_share"),
    ),
    accuracy(
        "next tokens after int8 KV, as after bf16 KV",
        "agreement",
        "i8",
        Bar("agreement", 0.96, "floor"),
        ("agreement", "positions"),
    ),
    *(
        accuracy(
            f"hidden states beside a row times 25,000, {code}",
            "outliers",
            code,
            Bar("other_rows_error", 0.025, "floor"),
            ("other_rows_error",),
        )
        for code in ("i8", "f8_e4m3")
    ),
)
