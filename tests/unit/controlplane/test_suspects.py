"""Who is told that a flow leads to somebody who is silent: until confirmed, the newest state only, over a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from fabric import errors
from fabric.controlplane import suspects as module
from fabric.controlplane.flows import FlowTable, InFlow, OutFlow
from fabric.controlplane.suspects import Suspects

FLOW = 5


class FakePort:
    def __init__(self, port: int) -> None:
        self.port, self.is_alive, self.is_suspect = port, True, False
        self.pushes: list[bool] = []
        self.failures = 0
        self.on_failure: Callable[[], None] = lambda: None

    async def push(self, op: str, fields: dict[str, Any]) -> None:
        assert op == "flow_suspect"
        if self.failures:
            self.failures -= 1
            self.on_failure()
            raise errors.DeadlineExceeded("no answer")
        self.pushes.append(fields["suspect"])


class Node:
    """Sender on port 1, receiver on port 2, one flow between them; what the keeper holds is in `items`."""

    def __init__(self) -> None:
        self.number = 1
        self.items: dict[str, Any] = {}
        self.keeper = self
        self.sender, self.receiver = FakePort(1), FakePort(2)
        self.ports = {1: self.sender, 2: self.receiver}
        self.flows = FlowTable(self)
        self.flows.keep(OutFlow(FLOW, 11, 1, 1, "token", 12, 1, 9, 1, state="open"))
        self.flows.keep(InFlow(FLOW, 12, 2, 1, "token", 1, 1, 9))
        self.suspects = self.start()

    def start(self) -> Suspects:
        made = Suspects(self, self, self.flows)

        async def call(node: int, op: str, fields: dict[str, Any]) -> dict[str, Any]:
            return made.serve(fields)

        made.call = call
        return made

    def get(self, number: int) -> FakePort | None:
        return self.ports.get(number)

    def put(self, key: str, value: Any, fd: int = -1) -> None:
        self.items[key] = (value, fd)

    def drop(self, key: str) -> None:
        self.items.pop(key, None)

    def told(self) -> set[str]:
        return {key for key in self.items if key.startswith("suspect/")}

    async def becomes(self, suspect: bool) -> None:
        self.receiver.is_suspect = suspect
        self.suspects.port_changed(self.receiver)
        await settle()


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


@pytest.fixture
def node(monkeypatch):
    monkeypatch.setattr(module.limits, "FLOW_RETRY_S", 0.0)
    return Node()


async def test_sender_hears_of_silence_and_of_its_end_once_each(node):
    await node.becomes(True)
    assert node.sender.pushes == [True] and len(node.told()) == 2
    assert node.suspects.suspect_endpoints(11) == {12}
    await node.becomes(False)
    assert node.sender.pushes == [True, False] and not node.told()


async def test_telling_is_repeated_until_confirmed(node):
    node.sender.failures = 3
    await node.becomes(True)
    assert node.sender.pushes == [True]


async def test_silence_that_ended_before_it_was_confirmed_is_told_as_it_is_now(node):
    def wakes():
        node.receiver.is_suspect = False
        node.suspects.port_changed(node.receiver)
        node.suspects.serve({"flow": FLOW, "suspect": False})

    node.sender.failures, node.sender.on_failure = 1, wakes
    await node.becomes(True)
    assert not node.suspects.suspect_endpoints(11)
    assert not node.told()
    assert node.sender.pushes == [False], (
        "it may have heard of the silence although it did not answer"
    )


async def test_successor_takes_back_what_its_predecessor_told(node):
    await node.becomes(True)
    kept = dict(node.items)
    node.receiver.is_suspect = False  # while no daemon was there
    node.suspects = node.start()
    node.suspects.restore(kept)
    await settle()
    assert node.sender.pushes == [True, False] and not node.told()


async def test_flows_to_a_silent_node_are_suspect_until_it_is_back(node):
    node.flows.keep(OutFlow(6, 11, 1, 1, "token", 99, 2, 9, 1, state="open"))
    node.suspects.nodes_are({2})
    await settle()
    node.suspects.nodes_are(set())
    await settle()
    assert node.sender.pushes == [True, False]


async def test_flow_that_is_gone_leaves_nothing_behind(node):
    await node.becomes(True)
    node.flows.forget_out(FLOW)
    node.flows.forget_in(FLOW)
    assert not node.told() and not node.suspects.suspect_endpoints(11)
