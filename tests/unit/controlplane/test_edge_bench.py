"""What holds a measurement together: refusals by name, names of its own, and one taking away for every end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from fabric import errors
from fabric.controlplane.edge_bench import EdgeBench
from fabric.registry.records import ChannelRecord, NodeRecord, View
from fabric.worker.probe_plan import Budget, plan

BUDGET = Budget(1.0, 64 << 20, 64 << 20)
UP = {"target": "b", "state": "up", "checksums": True, "rtt_us": 10, "reason": ""}


class FakeCluster:
    """A daemon's registry, calls and events: two nodes whose ends do as `run` and `watch` say."""

    def __init__(self) -> None:
        self.context = SimpleNamespace(number=1, name="a", events=self)
        self.registry = self.calls = self
        nodes = [NodeRecord(number=n, name=name, incarnation=n) for n, name in ((1, "a"), (2, "b"))]
        self.view = View(nodes=tuple(nodes))
        self.links: list[dict[str, Any]] = [UP]
        self.log: list[tuple[int, str, str]] = []
        self.released: list[str] = []
        self.hold = asyncio.Event()
        self.lost = asyncio.Event()

    async def declare(self, record: ChannelRecord) -> ChannelRecord:
        assert record.is_transient
        made = msgspec.structs.replace(record, number=len(self.view.channels) + 1)
        self.view = msgspec.structs.replace(self.view, channels=(*self.view.channels, made))
        return made

    async def release(self, names: Any) -> None:
        gone = list(names)
        self.released += gone
        left = tuple(c for c in self.view.channels if c.name not in gone)
        self.view = msgspec.structs.replace(self.view, channels=left)

    async def call(
        self, node: int, op: str, fields: dict[str, Any], timeout_s: float = 1.0
    ) -> dict[str, Any]:
        self.log.append((node, op, fields.get("name", "")))
        if op == "summary":
            return {"links": self.links, "flows": []}
        if op == "probe_watch":
            await self.lost.wait()
            raise errors.PeerLostError("the far end ended")
        if op == "probe_run":
            await self.hold.wait()
            rows = [{"name": step.name} for step in plan(BUDGET)]
            return {"steps": rows, "load": {"near": {}, "far": {}}, "used": {"seconds": 1.0}}
        return {}

    def add(self, event: str, **_: Any) -> None:
        raise AssertionError(event)

    def stopped(self) -> list[tuple[int, str]]:
        return [(node, name) for node, op, name in self.log if op == "probe_stop"]

    def state_of(self, name: str, **changed: Any) -> None:
        nodes = [
            msgspec.structs.replace(n, **changed) if n.name == name else n for n in self.view.nodes
        ]
        self.view = msgspec.structs.replace(self.view, nodes=tuple(nodes))


def run(body: Any) -> None:
    async def all_of_it() -> None:
        cluster = FakeCluster()
        async with asyncio.timeout(10.0):
            await body(cluster, EdgeBench(cluster))  # type: ignore[arg-type]

    asyncio.run(all_of_it())


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def is_running(cluster: FakeCluster) -> bool:
    return any(op == "probe_run" for _, op, _ in cluster.log)


def test_both_ends_and_all_channels_are_taken_away_before_the_figures_are_given():
    async def body(cluster, bench):
        cluster.hold.set()
        report = await bench.run("a", "b", BUDGET)
        assert {row["group"] for row in report["steps"]} == {"tcp"}
        assert cluster.stopped() == [(1, "bench.1.0.near"), (2, "bench.1.0.far")]
        assert cluster.released == [f"fabric.bench.1.0.{way}" for way in ("out", "back", "bulk")]

    run(body)


@pytest.mark.promise("P9")
def test_call_that_is_cancelled_takes_everything_away_all_the_same():
    async def body(cluster, bench):
        asked = asyncio.create_task(bench.run("a", "b", BUDGET))
        await until(lambda: is_running(cluster))
        asked.cancel()
        await until(lambda: cluster.released)
        assert len(cluster.stopped()) == 2

    run(body)


@pytest.mark.promise("P3")
@pytest.mark.parametrize(
    ("lose", "said"),
    [
        (lambda cluster: cluster.lost.set(), "the far end ended"),
        (lambda cluster: cluster.state_of("b", state="dead"), "node 'b' was lost"),
        (lambda cluster: cluster.state_of("b", incarnation=9), "node 'b' was lost"),
    ],
    ids=["end", "node", "restarted-node"],
)
def test_loss_of_the_far_side_ends_the_measurement_by_name(lose, said):
    async def body(cluster, bench):
        asked = asyncio.create_task(bench.run("a", "b", BUDGET))
        await until(lambda: is_running(cluster))
        lose(cluster)
        with pytest.raises(errors.PeerLostError, match=said):
            await asked
        assert len(cluster.stopped()) == 2 and cluster.released

    run(body)


def test_silent_node_is_waited_for_while_its_lease_lasts():
    async def body(cluster, bench):
        asked = asyncio.create_task(bench.run("a", "b", BUDGET))
        await until(lambda: is_running(cluster))
        cluster.state_of("b", state="silent")
        await asyncio.sleep(0.3)
        cluster.hold.set()
        assert (await asked)["target"] == "b"

    run(body)


def test_two_at_once_have_names_of_their_own_and_names_are_used_again():
    async def body(cluster, bench):
        both = [asyncio.create_task(bench.run("a", "b", BUDGET)) for _ in range(2)]
        await until(lambda: sum(op == "probe_run" for _, op, _ in cluster.log) == 2)
        assert {name for _, op, name in cluster.log if op == "probe_run"} == {
            "bench.1.0.near",
            "bench.1.1.near",
        }
        cluster.hold.set()
        await asyncio.gather(*both)
        await bench.run("a", "b", BUDGET)
        assert cluster.log[-2][2] == "bench.1.0.near"

    run(body)


def test_channel_that_somebody_else_declared_under_the_name_is_left_alone():
    async def body(cluster, bench):
        other = ChannelRecord(number=7, name="fabric.bench.1.0.out", type_name="t")
        cluster.view = msgspec.structs.replace(cluster.view, channels=(other,))
        cluster.hold.set()
        await bench.run("a", "b", BUDGET)
        assert other in cluster.view.channels and other.name not in cluster.released

    run(body)


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("links", "why"),
    [
        ([], "they are not connected"),
        ([{**UP, "state": "down", "reason": "no link in common"}], "no link in common"),
    ],
)
def test_edge_without_a_path_is_refused_with_the_reason_and_starts_nothing(links, why):
    async def body(cluster, bench):
        cluster.links = links
        with pytest.raises(
            errors.PathBrokenError, match=f"no path from node 'a' to node 'b': {why}"
        ):
            await bench.run("a", "b", BUDGET)
        assert not cluster.view.channels
        assert not [row for row in cluster.log if row[1] == "probe_start"]

    run(body)


def test_nodes_that_cannot_be_measured_and_budgets_without_room_are_refused_by_name():
    async def body(cluster, bench):
        with pytest.raises(errors.ConfigError, match="there is no node 'c'; known: a, b"):
            await bench.run("a", "c", BUDGET)
        with pytest.raises(errors.ConfigError, match="--seconds is 0 s"):
            await bench.run("a", "b", Budget(0.0, 64 << 20, 64 << 20))
        for state, word in (("silent", "suspect"), ("dead", "dead")):
            cluster.state_of("b", state=state)
            with pytest.raises(errors.PathBrokenError, match=f"node 'b' is {word}"):
                await bench.run("a", "b", BUDGET)
        assert cluster.log == []

    run(body)
