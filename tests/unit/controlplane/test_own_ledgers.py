"""Whose counts a daemon archives: a process writes its ledgers itself, and may have named another's endpoint."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fabric.controlplane.death import DeathHandler
from fabric.controlplane.endpoints import EndpointTable
from fabric.controlplane.ports import Port, restore_ports
from fabric.registry.records import ChannelRecord
from fabric.telemetry.events import EventLog


class Keeper:
    def __init__(self) -> None:
        self.items: dict[str, tuple[dict[str, Any], int]] = {}

    def put(self, key: str, value: dict[str, Any], fd: int = -1) -> None:
        self.items[key] = (value, fd)


def ledger(endpoint: int) -> dict[str, Any]:
    return {
        "endpoint": endpoint, "channel": 1, "accepted": 3, "counts": {(1, 0): 3},
        "delivered_bytes": 30, "outstanding": [],
    }  # fmt: skip


def opened(pattern: str, role: str) -> tuple[Any, Port]:
    keeper = Keeper()
    numbers = iter(range(11, 99))
    context: Any = SimpleNamespace(
        keeper=keeper, events=EventLog(), number=1, incarnation=1, take_endpoint=lambda: next(numbers)
    )  # fmt: skip
    port = Port(1, 1, "p", 1, 1, state_fd=3)
    channel = ChannelRecord(number=1, name="c", type_name="t", pattern=pattern)
    EndpointTable(context).add(port, channel, {"role": role})
    for part in ("state", "doorbell", "event"):
        keeper.put(f"port/1/{part}", {}, 3)
    (again,) = restore_ports(keeper.items)
    return context, again


def finals(context: Any, port: Port, *ledgers: int) -> list[int]:
    rows = [ledger(endpoint) for endpoint in ledgers]
    context.native = SimpleNamespace(inspect_state=lambda fd: {"ledgers": rows})
    nothing: Any = None
    death = DeathHandler(context, nothing, nothing, nothing, nothing)
    return [final.endpoint for final in death._finals(port)]


@pytest.mark.promise("P1")
def test_counts_under_another_ports_endpoint_are_not_archived():
    context, port = opened("stream", "sender")
    assert finals(context, port, 11, 12, 1 << 63) == [11]
    (event,) = context.events._kept
    assert event.kind == "ledger of an endpoint that is not its own"


@pytest.mark.parametrize(
    ("pattern", "role", "sends"), [("request", "requester", 11), ("request", "responder", 12)]
)
def test_counts_of_both_ends_of_a_request_channel_are_archived_after_a_restart(
    pattern, role, sends
):
    context, port = opened(pattern, role)
    assert finals(context, port, sends) == [sends] and not context.events._kept
