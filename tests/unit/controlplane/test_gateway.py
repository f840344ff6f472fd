"""Which flows a node's gateway carries when a session with another node opens."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from fabric import errors, limits
from fabric.controlplane.endpoints import EndpointTable
from fabric.controlplane.flows import FlowTable, InFlow, OutFlow
from fabric.controlplane.gateway import NodeGateway
from fabric.controlplane.wiring import Wiring
from fabric.registry.records import ChannelRecord
from fabric.telemetry.events import EventLog

GONE_LANE, LANE, NODE = 7, 8, 2


class Engine:
    """Knows one lane, as the engine does after the other was dropped."""

    def __init__(self) -> None:
        self.delivers: list[int] = []
        self.removed: list[int] = []
        self.idle: list[int] = []
        self.busy: set[int] = set()
        self.dropped: list[int] = []
        self.refused: list[int] = []
        self.weights: dict[int, int] = {}
        self._event = os.eventfd(0, os.EFD_CLOEXEC)

    def event_fd(self) -> int:
        return self._event

    def stop(self, wait_ms: int) -> None:
        os.close(self._event)

    def idle_segments(self) -> list[int]:
        return [n for n in self.idle if n not in self.dropped]

    def drop_segment(self, number: int) -> None:
        if number in self.busy:
            self.refused.append(number)
            raise errors.CapacityError("a slot is taken")
        self.dropped.append(number)

    def open_session(self, session: int, node: int, incarnation: int) -> None:
        pass

    def weigh(self, channel: int, weight: int) -> None:
        self.weights[channel] = weight

    def remove_lane(self, lane: int) -> None:
        pass

    def remove_flow(self, flow: int) -> None:
        self.removed.append(flow)

    def add_deliver(self, flow: int, lane: int, session: int, published: int) -> None:
        if lane != LANE:
            raise ValueError("no such lane")
        self.delivers.append(flow)


def gateway(engine: Engine) -> tuple[NodeGateway, EventLog]:
    events = EventLog()
    nothing: Any = []
    context: Any = SimpleNamespace(events=events, native=None, number=1)
    made = NodeGateway(context, nothing, nothing, nothing)
    made._engine = engine
    return made, events


@pytest.mark.promise("P1")
def test_flow_that_cannot_be_carried_keeps_no_other_from_its_session():
    engine = Engine()
    made, events = gateway(engine)
    for flow, lane in ((1, LANE), (2, GONE_LANE), (3, LANE)):
        made.add_deliver(flow, lane, NODE)
    made.open_session(NODE, 99, 5)
    assert engine.delivers == [1, 3]
    assert [(e.kind, e.more["flow"]) for e in events._kept] == [("flow not carried", 2)]


@pytest.mark.promise("P4")
@pytest.mark.parametrize(
    ("reason", "given_up"),
    [("return entry", [5]), ("report", [5]), ("lane record", [5]), ("frame", [])],
)
def test_what_an_engine_keeps_for_a_flow_that_nobody_knows_is_given_up(reason, given_up):
    engine = Engine()
    made, events = gateway(engine)
    made.is_flow = lambda flow: flow == 4
    for flow in (4, 5):
        made._on_event({"event": "flow_unknown", "flow": flow, "reason": reason})
    assert engine.removed == given_up
    assert [e.kind for e in events._kept] == ["engine flow_unknown"] * 2


@pytest.mark.promise("P1")
def test_lane_that_is_dropped_takes_its_flows_with_it():
    engine = Engine()
    made, events = gateway(engine)
    made.add_deliver(1, LANE, NODE)
    made.add_deliver(2, GONE_LANE, NODE)
    made.remove_lane(GONE_LANE)
    made.open_session(NODE, 99, 5)
    assert (engine.delivers, engine.removed) == ([1], [2])
    assert list(events._kept) == []


@pytest.mark.promise("P1")
async def test_flow_into_a_process_that_ends_while_it_is_told_is_carried_no_more():
    async def push(op: str, fields: dict[str, Any]) -> dict[str, Any]:
        raise errors.PeerLostError("sink is gone")

    keeper = SimpleNamespace(put=lambda *_: None, drop=lambda *_: None)
    context: Any = SimpleNamespace(keeper=keeper)
    flows = FlowTable(context)
    flows.keep(InFlow(5, 11, 1, 1, "token", 12, NODE, 9, lane=LANE))
    ports: Any = SimpleNamespace(get=lambda number: SimpleNamespace(is_alive=True, push=push))
    lanes: Any = None
    wiring = Wiring(context, ports, lanes, EndpointTable(context), flows)
    engine = Engine()
    wiring.gateway = gateway(engine)[0]
    wiring.gateway.add_deliver(5, LANE, NODE)
    with pytest.raises(errors.PeerLostError):
        await wiring.serve_flow_in_close({"flow": 5})
    assert (engine.removed, flows.ins) == ([5], {})


@pytest.mark.promise("P3")
def test_late_handshake_of_an_older_incarnation_does_not_replace_the_present_session():
    made, _ = gateway(Engine())
    made.open_session(NODE, 99, 5)
    made.up.add((NODE, 0))
    with pytest.raises(errors.StaleHandleError, match="older than the connected"):
        made.open_session(NODE, 98, 4)
    assert made.session_of(NODE) == 99


def test_lower_incarnation_is_taken_once_the_higher_one_is_gone():
    made, _ = gateway(Engine())
    made.open_session(NODE, 99, 5)
    made._engine.close_session = lambda session: None
    made.open_session(NODE, 98, 4)
    assert made.session_of(NODE) == 98


def arena(owned: set[int]) -> SimpleNamespace:
    """A table of the gateway's own segments, of 4 MiB each, none of which may be kept for later."""
    return SimpleNamespace(
        of=lambda port: [SimpleNamespace(segment=n, size_bytes=4 << 20) for n in owned],
        drop=lambda port, n: owned.remove(n),
        keep_bytes=0,
    )


async def test_segment_of_the_gateway_that_stays_empty_is_given_back(monkeypatch):
    monkeypatch.setattr(limits, "SEGMENT_IDLE_S", 0.02)
    engine = Engine()
    engine.idle = [21]
    made, _ = gateway(engine)
    made._port = SimpleNamespace(port=1)
    owned = {21, 22}
    made._segments = arena(owned)
    made._look_at_idle()
    async with asyncio.timeout(5.0):
        while len(owned) > 1:
            await asyncio.sleep(0.005)
    assert (owned, engine.dropped) == ({22}, [21])
    made.stop()


async def test_segment_of_the_gateway_that_is_used_again_stays(monkeypatch):
    monkeypatch.setattr(limits, "SEGMENT_IDLE_S", 0.02)
    engine = Engine()
    engine.idle, engine.busy = [21], {21}
    made, _ = gateway(engine)
    made._port = SimpleNamespace(port=1)
    owned = {21}
    made._segments = arena(owned)
    made._look_at_idle()
    async with asyncio.timeout(5.0):
        while not engine.refused:
            await asyncio.sleep(0.005)
    assert owned == {21}
    made.stop()


@pytest.mark.promise("P9")
async def test_flow_that_is_taken_back_while_its_node_is_not_reached_is_taken_back_later():
    keeper = SimpleNamespace(put=lambda *_: None, drop=lambda *_: None)
    context: Any = SimpleNamespace(keeper=keeper, number=1)
    ports: Any = SimpleNamespace(get=lambda number: None)
    lanes: Any = None
    wiring = Wiring(context, ports, lanes, EndpointTable(context), FlowTable(context))
    asked: list[int] = []
    told = asyncio.Event()

    async def call(node: int, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        asked.append(fields["flow"])
        if len(asked) == 1:
            raise errors.PathBrokenError("node 2 is not connected")
        told.set()
        return {}

    wiring.call, wiring.node_is = call, lambda node, incarnation: True
    await wiring.take_back(OutFlow(5, 11, 1, 1, "token", 12, NODE, 9, 1))
    await asyncio.wait_for(told.wait(), 5.0)
    assert asked == [5, 5]


def test_weights_of_channels_reach_the_engine_and_go_with_them():
    engine = Engine()
    made, _ = gateway(engine)
    light = ChannelRecord(number=1, name="light", type_name="t")
    heavy = ChannelRecord(number=2, name="heavy", type_name="t", weight=3)
    made.weigh([light, heavy])
    assert engine.weights == {2: 3}
    made.weigh([msgspec.structs.replace(light, weight=5), heavy])
    assert engine.weights == {1: 5, 2: 3}
    made.weigh([light])
    assert engine.weights == {1: 1, 2: 1}, "what is not said has 1"
