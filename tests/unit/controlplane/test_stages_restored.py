"""What a restarted daemon does about plugins and chains that its predecessor was changing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from fabric.controlplane.plan_node import PlanNode
from fabric.controlplane.stages import StageTable
from fabric.registry.records import ChannelRecord, Graph, View
from fabric.worker.supervisor import State

OLD, NEW = ("live", "one", 1), ("live", "one", 2)


class Host:
    """A stage host that answers every push at once, and remembers it."""

    def __init__(self) -> None:
        self.pushed: list[tuple[str, int]] = []
        self.port = SimpleNamespace(
            port=7, is_alive=True, state_fd=3, connection=self, owner="stage-one", name="one"
        )
        ready = asyncio.Event()
        ready.set()
        life = SimpleNamespace(state=State.READY)
        self.process = SimpleNamespace(kind="stage", name="one", port=7, ready=ready, life=life)
        self.stopped: list[str] = []

    async def push(self, op: str, fields: dict[str, Any], *_: Any) -> dict[str, Any]:
        self.pushed.append((op, fields["generation"]))
        return {}

    async def stop(self, process: Any, grace_s: float) -> None:
        self.stopped.append(process.name)


def table(host: Host, processes: list[Any]) -> StageTable:
    """A table whose node sees a channel in generation 2, with one graph before."""
    channel = ChannelRecord(
        number=1, name="live", type_name="t", transforms=("one",), generation=2,
        older=(Graph(generation=1, transforms=("one",)),),
    )  # fmt: skip
    view = View(epoch=1, channels=(channel,))

    async def change(*_: Any, **__: Any) -> None:
        return None

    registry: Any = SimpleNamespace(view=view, change=change)
    keeper = SimpleNamespace(put=lambda *_: None, drop=lambda *_: None)
    events = SimpleNamespace(add=lambda *_, **__: None)
    context: Any = SimpleNamespace(keeper=keeper, events=events, native=None)
    modules: Any = SimpleNamespace(
        all=lambda kind: processes,
        find=lambda kind, name: next((p for p in processes if p.name == name), None),
        stop=host.stop,
    )
    ports: Any = SimpleNamespace(get=lambda number: host.port)
    ends: Any = SimpleNamespace(all=lambda: [], of=lambda port: [])
    flows: Any = SimpleNamespace(ins={}, outs={})
    return StageTable(context, ports, flows, ends, registry, modules)


def kept(
    running: list[tuple[str, str, int]], is_leaving: bool = False, exported: str = "one"
) -> Any:
    export = {"kind": "transform", "name": exported, "produces": "any"}
    value = {
        "name": "one", "path": "one.py", "exports": [export], "running": running,
        "is_planned": False, "is_leaving": is_leaving, "digest": "",
    }  # fmt: skip
    return SimpleNamespace(items={"plugin/one": (value, -1)})


async def until(condition: Any) -> None:
    async with asyncio.timeout(3):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.promise("P7")
async def test_older_chain_ends_although_no_newer_view_comes_after_the_restart():
    host = Host()
    table(host, [host.process]).restore(kept([OLD, NEW]))
    await until(lambda: ("stage_stop", 1) in host.pushed)


async def test_chain_that_the_last_daemon_may_have_been_ending_is_run_again():
    host = Host()
    stages = table(host, [host.process])
    stages.restore(kept([NEW]))
    await until(lambda: host.pushed == [("stage_run", 2)])
    await stages.run_chain("live", ("one",), 2, {})
    assert host.pushed == [("stage_run", 2)], "once is enough"


async def test_view_that_comes_before_the_plugins_are_known_asks_for_nothing():
    host = Host()
    stages = table(host, [host.process])
    asked: list[str] = []
    stages._uses = lambda channel: bool(asked.append(channel.name))  # type: ignore[method-assign]
    stages.on_view(stages._registry.view)
    assert not asked


async def test_host_whose_loading_was_cut_off_is_stopped():
    host = Host()
    table(host, [host.process]).restore(SimpleNamespace(items={}))  # type: ignore[arg-type]
    await until(lambda: host.stopped == ["one"])


@pytest.mark.parametrize("is_leaving", [True, False])
async def test_unloading_that_was_cut_off_goes_on(is_leaving):
    host = Host()
    stages = table(host, [host.process])
    stages.restore(kept([], is_leaving, exported="unused"))
    unloaded: list[str] = []

    async def unload(name: str) -> None:
        unloaded.append(name)
        stages._plugins.pop(name)

    stages.unload = unload  # type: ignore[method-assign]
    loaded = SimpleNamespace(items={})
    node = PlanNode(SimpleNamespace(stages=stages, loaded=loaded))  # type: ignore[arg-type]
    node.resume()
    await asyncio.sleep(0.02)
    assert unloaded == (["one"] if is_leaving else [])
