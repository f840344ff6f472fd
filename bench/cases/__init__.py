"""What is measured and what is promised: the rows of every group, with their bars.

A row is one order of `bench.loops` in one or two placements; each of its bars becomes a case of the report. Rows
without bars are printed only. Adding a row is adding an entry to its group.
"""

from __future__ import annotations

from bench.cases.bulk import BULK
from bench.cases.growth import GROWTH
from bench.cases.latency import LATENCY
from bench.cases.paths import PATHS
from bench.cases.rate import RATE
from bench.cases.tcp import TCP
from bench.cases.transforms import TRANSFORMS
from bench.rows import Row

GROUPS: dict[str, tuple[Row, ...]] = {
    "latency": LATENCY,
    "rate": RATE,
    "bulk": BULK,
    "tcp": TCP,
    "growth": GROWTH,
    "paths": PATHS,
    "transforms": TRANSFORMS,
}
