"""When a closed flow may be forgotten: nothing is outstanding on it, and its sender knows that it is closed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fabric.controlplane.flows import FlowTable, OutFlow
from fabric.controlplane.retiring import FlowRetirer


@pytest.mark.promise("P1")
@pytest.mark.parametrize("is_told", [True, False])
async def test_closed_flow_is_forgotten_only_after_its_sender_was_told(is_told):
    keeper = SimpleNamespace(put=lambda *_: None, drop=lambda *_: None)
    native = SimpleNamespace(inspect_state=lambda fd: {"ledgers": []})
    context: Any = SimpleNamespace(keeper=keeper, native=native)

    async def push(op: str, fields: dict[str, Any]) -> dict[str, Any]:
        return {}

    port = SimpleNamespace(is_alive=True, state_fd=3, push=push)
    flows = FlowTable(context)
    flows.keep(OutFlow(5, 11, 1, 1, "token", 12, 1, 9, 1, state="closing", is_told=is_told))
    retired: list[int] = []

    async def retire(out: OutFlow) -> None:
        retired.append(out.flow)

    ports: Any = SimpleNamespace(get=lambda number: port)
    wiring: Any = SimpleNamespace(retire=retire)
    await FlowRetirer(context, ports, flows, wiring).look()
    assert retired == ([5] if is_told else [])
