"""The fabric between two nodes over tcp on loopback: near attached to one daemon, far to the other.

Subject ``bench.ours.nodes``, everything of `bench.loops`; every message goes through both daemons. Options:
``{"wait": …}`` as for `bench.ours.lane`, ``{"checksums": false}`` for payloads without checksums between the nodes. The
near half starts both nodes in the run's folder, and stops them; its answers carry ``daemons_cpu_ns`` of both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.node import BenchNode
from bench.ours.ends import FabricEnd, attach, tell, wait_for


def connect(role: str, folder: Path, options: dict[str, Any]) -> FabricEnd:
    """Near brings both nodes up, far waits for them; each attaches to its own."""
    if role == "far":
        return FabricEnd(role, attach(role, wait_for(folder)["far"], options))
    more = () if options.get("checksums", True) else ("--checksums", "off")
    first = BenchNode(folder, "a", *more)
    second = BenchNode(folder, "b", *more, join=first.listen)
    try:
        first.start()
        second.start()
        tell(folder, {"far": str(second.socket)})
        return FabricEnd(role, attach(role, str(first.socket), options), second, first)
    except BaseException:
        second.stop()
        first.stop()
        raise
