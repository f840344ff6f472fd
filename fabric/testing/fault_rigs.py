"""Engine rigs over links that lose, repeat, reorder, corrupt and delay: the same suite has to hold.

A connection that such a fault breaks is made again at once by the rig's event thread, as a daemon dials again.
"""

from __future__ import annotations

from typing import Any, Final

from fabric import _native
from fabric.testing.rigs import RIGS, EngineRig, InprocRig, RailsRig, TcpRig

#: One frame in so many; rare enough that a test of 500 messages meets each a few times.
FAULTS: Final = {
    "link_lose": 397,
    "link_repeat": 379,
    "link_reorder": 353,
    "link_corrupt": 401,
    "link_delay_us": 50,
}


class Faulty(EngineRig):
    """Mix in before a rig of engines. Needs FABRIC_FAULTS=1 in the environment."""

    def __init__(self) -> None:
        super().__init__()
        for engine in self.engines:
            arm(engine)

    def _answer(self, side: int, engine: _native.Engine, event: dict[str, Any]) -> None:
        super()._answer(side, engine, event)
        if event["event"] == "link_down" and event["session"] == self.session:
            self.revive(event["group"])

    def revive(self, group: int) -> None:
        """Connect a group again when one of its ends is down."""
        ends = [row for engine in self.engines for row in engine.stats()["groups"]]
        here = [row["up"] for row in ends if row["group"] == group]
        if not all(here):
            self.connect_group(group)

    def _restart(self, side: int) -> None:
        super()._restart(side)
        arm(self.engines[side])


def arm(engine: _native.Engine) -> None:
    """Let every link of an engine misbehave."""
    for fault, argument in FAULTS.items():
        engine.inject(fault, argument)


class FaultInprocRig(Faulty, InprocRig):
    """In-process queues that misbehave."""

    name = "fault_inproc"


class FaultTcpRig(Faulty, TcpRig):
    """Loopback TCP that misbehaves."""

    name = "fault_tcp"


class FaultRailsRig(Faulty, RailsRig):
    """Two rails that misbehave, each by itself."""

    name = "fault_rails"


RIGS.update({rig.name: rig for rig in (FaultInprocRig, FaultTcpRig, FaultRailsRig)})
