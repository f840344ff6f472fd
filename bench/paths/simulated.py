"""The row of the simulator: one request trace as KV transfers over 1,000 nodes, by ours and by two fixed policies.

The trace is Mooncake's conversation trace (JSON lines), which is not part of this project: `FABRIC_BENCH_TRACE` names
the file, or it lies at `TRACE`.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from bench.sides import ROOT
from fabric.paths import replay, trace

VARIABLE = "FABRIC_BENCH_TRACE"
TRACE = ROOT / "build" / "bench" / "conversation_trace.jsonl"
SEED = 1
REQUESTS = 1500  # of the trace: 2 TB of KV cache, some two million chunks
POLICIES = {"fabric": "adaptive", "ecmp": "hashed", "round_robin": "striped"}


def figures(who: str) -> dict[str, float]:
    """Return completion times of one policy, and whether a second run of it is the same.

    Raises
    ------
    FileNotFoundError
        There is no trace.
    """
    policy = POLICIES[who]
    first = run(policy)
    found = {"p99_s": first.percentile(0.99), "p50_s": first.percentile(0.5)}
    if who == "fabric":
        again = run.__wrapped__(policy)
        found["differs"] = float(again.digest != first.digest)
    return found


@cache
def run(policy: str) -> replay.Replayed:
    """Replay the trace over nodes like a DGX, one rail in 50 at a tenth of its rate."""
    return replay.replay(requests(), replay.Cluster(), replay.Load(), SEED, policy)


@cache
def requests() -> list[trace.Request]:
    """Read the trace."""
    path = Path(os.environ.get(VARIABLE, TRACE))
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}: {VARIABLE}=FILE names Mooncake's conversation trace"
        )
    return trace.read(path, REQUESTS)
