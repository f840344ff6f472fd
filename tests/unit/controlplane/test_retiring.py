"""When a closed flow may be forgotten: nothing is outstanding on it, and its sender knows that it is closed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from fabric.controlplane.flows import FlowTable, InFlow, OutFlow
from fabric.controlplane.retiring import FlowRetirer
from fabric.controlplane.wiring import Wiring


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


@pytest.mark.promise("P1")
async def test_way_back_of_a_retired_request_flow_stays_until_the_responder_has_retired_it():
    keeper = SimpleNamespace(put=lambda *_: None, drop=lambda *_: None)
    context: Any = SimpleNamespace(keeper=keeper, number=1)
    removed: list[int] = []
    calls: list[tuple[int, str, int]] = []

    async def call(node: int, op: str, fields: dict[str, Any], *_: Any) -> dict[str, Any]:
        calls.append((node, op, fields["flow"]))
        return {}

    nobody: Any = SimpleNamespace(get=lambda number: None)
    flows = FlowTable(context)
    request = OutFlow(5, 11, 1, 1, "token", 12, 2, 9, 1, reply_flow=6, state="closing")
    flows.keep(request)
    flows.keep(InFlow(6, 13, 1, 1, "token", 7, 2, 9))
    wiring = Wiring(context, nobody, nobody, nobody, flows)
    wiring.gateway = cast(Any, SimpleNamespace(remove_flow=removed.append))
    wiring.call = call
    await wiring.retire(request)
    assert calls == [(2, "flow_in_close", 5)]
    assert 5 not in flows.outs and removed == [5]
    assert 6 in flows.ins, "ends of the last replies may still be on their way"
    await wiring.serve_flow_in_close({"flow": 6})
    assert 6 not in flows.ins and removed == [5, 6]
