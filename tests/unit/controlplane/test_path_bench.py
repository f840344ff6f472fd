"""What `bench path` makes of its figures: shares of the sum, a bottleneck that is shared, what was left out and why."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from fabric import errors
from fabric.controlplane.path_bench import PathBench, with_share, words
from fabric.worker.probe_plan import Budget

pytestmark = pytest.mark.promise("P5")
MIB = 1 << 20
GBIT = 125_000_000
BUDGET = Budget(2.0, 256 * MIB, 64 * MIB)
STEPS = [
    {"name": "64 B round trip", "p50_us": 30.0},
    {"name": "1 MiB loaned, window 8", "gb_per_s": 0.2},
    {"name": "16 MiB loaned, window 8", "left_out": "needs 176.0 MiB of --memory"},
]


class Fake:
    """Rails of given rates, alone and together, and an edge whose messages move them."""

    def __init__(self, alone: dict[int, float], at_once: dict[int, float]) -> None:
        self.alone, self.at_once = alone, at_once
        self.delivered = dict.fromkeys(alone, 0)
        self.wishes: list[Any] = []
        self.steps: list[dict[str, Any]] = STEPS
        self.edge_error: Exception | None = None
        self.probes = self
        self.bench = PathBench(SimpleNamespace(context=SimpleNamespace(name="a")), self, self)  # type: ignore[arg-type]

    def up(self, peer: str) -> tuple[str, list[dict[str, Any]]]:
        return peer, self.rows_to(peer)

    def rows_to(self, node: str) -> list[dict[str, Any]]:
        return [{"rail": n, "delivered": self.delivered[n]} for n in self.alone]

    async def one(self, node: str, row: dict[str, Any], wish: Any) -> dict[str, Any]:
        self.wishes.append(wish)
        rate = self.alone[row["rail"]]
        if not rate:
            return {**row, "failed": "no answer"}
        return {**row, "rate": rate, "bytes": wish.size_bytes, "rtt_us_p50": 100.0}

    async def together(self, node: str, rows: Any, wish: Any) -> list[dict[str, Any]]:
        self.wishes += [wish] * len(rows)
        return [{**r, "rate": self.at_once[r["rail"]], "bytes": wish.size_bytes} for r in rows]

    async def run(self, source: str, target: str, budget: Budget) -> dict[str, Any]:
        if self.edge_error is not None:
            raise self.edge_error
        self.edge_budget = budget
        for rail in self.delivered:
            self.delivered[rail] += (rail + 1) * MIB
        return {"steps": self.steps, "used": {"bytes": 3 * MIB}}

    def report(self) -> dict[str, Any]:
        return asyncio.run(self.bench.run("b", BUDGET))


def test_rails_of_their_own_are_said_to_be_so_and_the_fabric_is_compared_with_their_sum():
    report = Fake({0: GBIT, 1: GBIT}, {0: GBIT, 1: GBIT}).report()
    probes, fabric = report["together"]
    assert probes["of_sum"] == pytest.approx(1.0)
    assert (fabric["name"], fabric["of_sum"]) == ("fabric, 1 MiB loaned, window 8", 0.8)
    assert [part["rate"] for part in fabric["by_rail"]] == pytest.approx([0.2e9 / 3, 0.4e9 / 3])
    assert report["words"] == [
        "At once the rails reach 100 % of their sum: they share no bottleneck.",
        "The fabric moves 200.0 MB/s, 80 % of the sum of the rails alone (1 MiB loaned, window 8).",
    ]


def test_rails_that_share_a_bottleneck_are_said_to():
    report = Fake({0: GBIT, 1: GBIT}, {0: GBIT / 2, 1: GBIT / 2}).report()
    assert report["words"][0].startswith(
        "At once the rails reach 125.0 MB/s of 250.0 MB/s, the best alone 125.0 MB/s: they share"
    )


def test_budget_is_kept_by_the_parts_together():
    fake = Fake({0: GBIT, 1: GBIT}, {0: GBIT, 1: GBIT})
    report = fake.report()
    assert sum(w.size_bytes for w in fake.wishes) + fake.edge_budget.size_bytes <= BUDGET.size_bytes
    assert sum(w.seconds for w in fake.wishes[:3]) + fake.edge_budget.seconds <= BUDGET.seconds
    assert report["bytes"] == sum(w.size_bytes for w in fake.wishes) + 3 * MIB


def test_rail_that_cannot_be_measured_is_named_and_left_out_of_the_rest():
    report = Fake({0: GBIT, 1: 0.0}, {0: GBIT}).report()
    assert report["words"][0] == "Rail 1 was not measured: no answer."
    assert report["together"][0]["by_rail"] == [{"rail": 0, "rate": GBIT}]


def test_edge_that_fails_leaves_the_rails_measured():
    fake = Fake({0: GBIT}, {0: GBIT})
    fake.edge_error = errors.PeerLostError("the far end ended")
    report = fake.report()
    assert report["rails"][0]["rate"] == GBIT
    assert report["words"] == ["The fabric was not measured: the far end ended."]


def test_budget_without_room_for_large_messages_says_what_it_needs():
    fake = Fake({0: GBIT}, {0: GBIT})
    fake.steps = STEPS[:1] + STEPS[2:]
    (said,) = fake.report()["words"]
    assert "give more --bytes or --seconds" in said


def test_impossible_budget_is_refused_before_anything_is_sent():
    fake = Fake({0: GBIT}, {0: GBIT})
    with pytest.raises(errors.ConfigError, match="--seconds"):
        asyncio.run(fake.bench.run("b", Budget(0.001, MIB, 64 * MIB)))
    assert fake.wishes == []


def test_share_without_a_sum_is_none():
    assert with_share({"rate": 5}, 0)["of_sum"] == 0.0
    assert words([], {"of_sum": 0.0, "rate": 0}, {"left_out": "no rail"}) == [
        "The fabric was not measured: no rail."
    ]
