"""A join under load: every request ends once, and memory stays as it is."""

from __future__ import annotations

from bench import subjects as s
from bench.rounds import Contender
from bench.rows import Row
from bench.verdicts import Bar

ORDER = {"run": "fusion", "seconds": 10.0, "rate": 1000, "late": 0.05, "missing": 0.01}
FIGURES = ("astray", "growth", "k_per_s", "p50_us", "fused", "partial", "dropped")

FUSION = (
    Row(
        "transforms",
        "fusion of 1,000 requests/s, two inputs, 5 % late, 1 % missing",
        ORDER,
        Contender(s.FUSION),
        (),
        1.0,  # one request astray, the same memory, a thousand a second
        (
            Bar("astray", 0.5, "floor"),
            Bar("growth", 1.05, "floor"),
            Bar("k_per_s", 0.98, "floor"),
        ),
        None,
        FIGURES,
    ),
)
