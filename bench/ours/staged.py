"""The fabric on one node with a transform between the two halves: a no-op in Python, in a stage host of its own.

Subject ``bench.ours.staged``: `bench.ours.lane` with the transform on the bytes of both ways, put in while the halves
are attached, as `fabricctl plugin load` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.node import BenchNode
from bench.ours.ends import FabricEnd, attach, tell, wait_for
from fabric.controlplane.api.client import ControlClient

NOOP = """
import fabric

@fabric.transform("noop", pure=True)
class Noop:
    def apply(self, batch, ctx):
        return batch
"""


def connect(role: str, folder: Path, options: dict[str, Any]) -> FabricEnd:
    """Near brings the node up and loads the transform, far waits for both; both attach."""
    if role == "far":
        return FabricEnd(role, attach(role, wait_for(folder)["far"], options))
    node = BenchNode(folder)
    node.start()
    try:
        end = FabricEnd(role, attach(role, str(node.socket), options), node)
        with ControlClient(f"{node.socket}.ctl") as client:
            for channel in ("bytes.out", "bytes.back"):
                client.plugin_load("noop.py", NOOP, channel=channel)
        tell(folder, {"far": str(node.socket)})
        return end
    except BaseException:
        node.stop()
        raise
