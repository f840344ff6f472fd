"""A lane whose peer broke the rules: who uses it is told, and nothing stays under way on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fabric import errors
from fabric.controlplane.broken_lanes import BrokenLanes
from fabric.controlplane.death import OUTCOME_UNKNOWN
from fabric.controlplane.flows import FlowTable, InFlow, OutFlow
from fabric.controlplane.lanes import Lane
from fabric.telemetry.events import EventLog

LOCAL, REMOTE, BROKEN, GOOD = 1, 2, 5, 6


class Wiring:
    def __init__(self) -> None:
        self.told: list[tuple[int, str, int]] = []
        self.lost: list[tuple[int, int]] = []
        self.closed: list[int] = []

    async def tell(self, node: int, incarnation: int, op: str, fields: dict[str, Any]) -> None:
        self.told.append((node, op, fields["flow"]))

    async def lose(self, flow: int, handed_upto: int, reason: int) -> None:
        self.lost.append((flow, reason))

    async def serve_flow_in_close(self, fields: dict[str, Any]) -> dict[str, Any]:
        self.closed.append(fields["flow"])
        return {}


def node() -> tuple[BrokenLanes, Wiring, EventLog]:
    events, wiring = EventLog(), Wiring()
    keeper = SimpleNamespace(put=lambda *_: None, drop=lambda *_: None)
    context: Any = SimpleNamespace(events=events, keeper=keeper)
    flows = FlowTable(context)
    for flow, target, lane in ((1, LOCAL, BROKEN), (2, REMOTE, BROKEN), (3, LOCAL, GOOD)):
        flows.keep(OutFlow(flow, 11, 1, 1, "token", 12, target, 9, 1, lane=lane, state="open"))
    for flow, producer, lane in ((1, LOCAL, BROKEN), (4, REMOTE, BROKEN), (3, LOCAL, GOOD)):
        flows.keep(InFlow(flow, 12, 2, 1, "token", 1, producer, 9, lane=lane))
    lanes: Any = SimpleNamespace(get={5: Lane(BROKEN, 1, (1, 2)), 6: Lane(GOOD, 1, (1, 2))}.get)
    return BrokenLanes(context, lanes, flows, wiring, lambda port: f"p{port}"), wiring, events  # type: ignore[arg-type]


@pytest.mark.promise("P1", "P3")
async def test_everything_on_the_lane_is_lost_and_nothing_else():
    broken, wiring, events = node()
    port: Any = SimpleNamespace(port=1, name="victim")
    await broken.report(port, {"lane": BROKEN, "reason": "a flow sequence is missing"})
    assert sorted(wiring.told) == [
        (LOCAL, "flow_lost", 1),
        (REMOTE, "flow_in_close", 2),
        (REMOTE, "flow_lost", 4),
    ]
    assert wiring.lost == [(2, OUTCOME_UNKNOWN)] and sorted(wiring.closed) == [1, 4]
    (event,) = events._kept
    assert (event.kind, event.port, event.more["peer"]) == ("peer broke the rules", "victim", "p2")


async def test_process_cannot_break_the_lane_of_others():
    broken, wiring, _ = node()
    port: Any = SimpleNamespace(port=3, name="stranger")
    with pytest.raises(errors.StaleHandleError, match="no lane"):
        await broken.report(port, {"lane": BROKEN, "reason": ""})
    assert not wiring.told and not wiring.lost
