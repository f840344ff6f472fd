"""What a Python transform costs: a no-op in a stage host, beside the direct lane that it stands in.

A round trip passes the transform twice and the lane of the direct subject twice. That a transform adds at most four
hops to each way is therefore a round trip of at most five times the direct one.
"""

from __future__ import annotations

from bench import subjects as s
from bench.cases.orders import BATCH, MESSAGES, MIB, SMALL, TRIP, TRIPS
from bench.rounds import Amount, Contender
from bench.rows import Row, names, of
from bench.sides import Subject
from bench.verdicts import Bar

STAGED = Subject("fabric, no-op transform", "bench.ours.staged")
HOPS_MAX = 5.0
DIRECT = names(s.DEFAULT)

STAGE = (
    Row(
        "transforms",
        "no-op Python transform, 64 B round trip",
        TRIP,
        Contender(STAGED),
        of(s.DEFAULT),
        None,
        (Bar("p50_us", HOPS_MAX, f"peer:{s.DEFAULT.name}", DIRECT),),
        TRIPS,
        ("p50_us", "p99_us"),
    ),
    Row(
        "transforms",
        "no-op Python transform, 1 MiB round trip",
        {"run": "round_trips", "size": MIB},
        Contender(STAGED),
        of(s.DEFAULT),
        None,
        (Bar("p50_us", HOPS_MAX, f"peer:{s.DEFAULT.name}", DIRECT),),
        Amount(seconds=0.3, least=50, most=2_000),
        ("p50_us", "p99_us"),
    ),
    Row(
        "transforms",
        f"no-op Python transform, 64 B, {BATCH} a call",
        {"run": "one_way", "size": SMALL, "batch": BATCH},
        Contender(STAGED),
        of(s.DEFAULT),
        None,
        (Bar("k_per_s", 0.25, f"peer:{s.DEFAULT.name}", DIRECT),),
        MESSAGES,
        ("k_per_s", "cpu_us"),
    ),
)
