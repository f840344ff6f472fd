"""The fabric on one node: two attached processes, a direct lane between them.

Subject ``bench.ours.lane``, everything of `bench.loops`. Options: ``{"wait": "poll" | "adaptive" | "sleep"}``. The near
half starts a real node, keeper and daemon, in the run's folder, and stops it; its answers carry ``daemons_cpu_ns``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.node import BenchNode
from bench.ours.ends import FabricEnd, attach, tell, wait_for


def connect(role: str, folder: Path, options: dict[str, Any]) -> FabricEnd:
    """Near brings the node up, far waits for it; both attach."""
    if role == "far":
        return FabricEnd(role, attach(role, wait_for(folder)["far"], options))
    node = BenchNode(folder)
    node.start()
    try:
        tell(folder, {"far": str(node.socket)})
        return FabricEnd(role, attach(role, str(node.socket), options), node)
    except BaseException:
        node.stop()
        raise
