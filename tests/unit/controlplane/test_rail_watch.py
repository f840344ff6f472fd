"""What moves a control connection to another rail, and what an interface that goes does to the rails over it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from fabric import limits
from fabric.controlplane import rail_watch
from fabric.controlplane.rail_watch import RailWatch
from fabric.controlplane.rails import Look
from fabric.links.dial import Target
from fabric.telemetry.events import EventLog

PEER, CONTROL = 1, 255
TWO = ("first", "second")


class Links:
    """A node that this one dials, its control connection on rail 0 of two."""

    def __init__(self) -> None:
        self.control = SimpleNamespace(socket=None, is_lost=False)
        self.is_ours, self.has_other, self.is_dialling = True, True, False
        self.looks: list[Look] = []
        self.dialled = 0
        self.rails = SimpleNamespace(
            control_rail=lambda number, rails: 0,
            has_other=lambda number, count, avoid: self.has_other,
            name_of=str,
            look_at_interfaces=lambda: self.looks.pop(0) if self.looks else Look(),
        )

    def peer(self, number: int) -> Any:
        return self.control

    def dials(self, number: int) -> bool:
        return self.is_ours

    def rails_of(self, number: int) -> tuple[str, ...]:
        return TWO

    def dial_other_rail(self, number: int) -> bool:
        if self.is_dialling:
            return False
        self.dialled += 1
        self.is_dialling = True
        return True


@pytest.fixture
def made(monkeypatch):
    links: Any = Links()
    lost: list[tuple[int, int, str]] = []
    nudged: list[Target] = []
    monkeypatch.setattr(rail_watch, "nudge", nudged.append)
    monkeypatch.setattr(limits, "RAIL_LOOK_MS", (1, 1))
    gateway = SimpleNamespace(lose_rail=lambda *about: lost.append(about), on_rail=[])
    daemon: Any = SimpleNamespace(gateway=gateway, context=SimpleNamespace(events=EventLog()))
    watch = RailWatch(daemon, links)
    yield SimpleNamespace(watch=watch, links=links, lost=lost, nudged=nudged, daemon=daemon)
    watch.stop()


def rail_event(rail: int, to: str) -> dict[str, Any]:
    return {"event": "rail", "rail": rail, "from": "up", "to": to, "reason": "silent"}


@pytest.mark.promise("P3")
@pytest.mark.parametrize("to", ["suspect", "held", "down", "absent"])
def test_control_leaves_a_rail_of_which_the_engine_thinks_badly(made, to):
    made.watch._on_rail(PEER, rail_event(0, to))
    assert made.links.dialled == 1
    assert [e["event"] for e in made.daemon.context.events.rows()] == ["control moves"]


@pytest.mark.parametrize(
    ("rail", "to"),
    [(1, "suspect"), (0, "up"), (0, "left_out")],
    ids=["another rail", "the rail is well", "it adds nothing"],
)
def test_control_stays_where_it_is_while_its_own_rail_is_well(made, rail, to):
    made.watch._on_rail(PEER, rail_event(rail, to))
    assert made.links.dialled == 0


@pytest.mark.parametrize("lacking", ["has_other", "is_ours", "control"])
def test_control_stays_without_another_rail_or_where_the_other_node_dials(made, lacking):
    setattr(made.links, lacking, None)
    made.watch._on_rail(PEER, rail_event(0, "down"))
    assert made.links.dialled == 0 and made.watch.moves == 0


def test_control_is_moved_once_however_often_that_is_asked_for(made):
    for _ in range(5):
        made.watch._on_rail(PEER, rail_event(0, "suspect"))
    assert made.links.dialled == made.watch.moves == 1
    assert len(made.daemon.context.events.rows()) == 1


@pytest.mark.parametrize("is_stalled", [True, False])
async def test_unanswered_request_moves_control_only_when_its_path_is_silent(
    made, monkeypatch, is_stalled
):
    monkeypatch.setattr(rail_watch, "is_stalled", lambda sock, sent_s_ago: is_stalled)
    made.watch.look_at_control(PEER, 0.0)
    assert made.links.dialled == is_stalled, "a busy peer is no dead path"


@pytest.mark.promise("P3")
async def test_rails_of_an_interface_that_is_gone_are_given_up_at_once(made):
    made.links.looks = [Look([(PEER, 2, "eth1"), (PEER, 3, "eth1"), (PEER, CONTROL, "eth1")])]
    made.watch._look()
    assert made.lost == [(PEER, 1, "interface eth1 is down")], "once for its two connections"
    assert made.links.control.is_lost and made.links.dialled == 1


async def test_interfaces_are_looked_at_again_while_one_is_down(made):
    down = Look(is_down=True)
    back = Target("10.2.0.9", 7400, "10.2.0.5", "eth1")
    made.links.looks = [down, down, Look(back=[back])]
    made.watch._look()
    async with asyncio.timeout(5.0):
        while not made.nudged:
            await asyncio.sleep(0.001)
    assert made.nudged == [back]
    assert made.watch._again is None, "all are up: nothing to wait for"
