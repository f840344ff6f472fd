"""A trace over many nodes, some of their rails slow: completion beside the fixed ways to spread a transfer."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.paths import replay, trace
from fabric.paths.trace import Request

CONVERSATIONS = Path(__file__).resolve().parents[3] / "shared/data/traces/conversation_trace.jsonl"
LOAD = replay.Load()


def runs(
    requests: list[Request], cluster: replay.Cluster, seed: int = 1
) -> dict[str, replay.Replayed]:
    return {
        policy: replay.replay(requests, cluster, LOAD, seed, policy) for policy in replay.POLICIES
    }


@pytest.fixture(scope="module")
def small() -> dict[str, replay.Replayed]:
    requests = [Request(i * 0.01, tokens=1000 + 37 * (i * i % 101)) for i in range(300)]
    return runs(requests, replay.Cluster(nodes=100))


def test_slow_rails_cost_the_adaptive_policy_least(small: dict[str, replay.Replayed]) -> None:
    p99 = {policy: run.percentile(0.99) for policy, run in small.items()}
    assert p99["adaptive"] <= 0.5 * p99["hashed"]
    assert p99["adaptive"] <= 0.7 * p99["striped"]


def test_every_policy_moves_the_same_bytes(small: dict[str, replay.Replayed]) -> None:
    assert len({run.bytes for run in small.values()}) == 1
    assert all(len(run.took_s) == 300 and run.took_s[0] > 0 for run in small.values())
    assert all(run.resent == 0 for run in small.values() if run.policy != "adaptive")
    assert small["adaptive"].resent <= 0.02 * small["adaptive"].bytes


def test_a_seed_decides_everything(small: dict[str, replay.Replayed]) -> None:
    requests = [Request(i * 0.01, tokens=1000 + 37 * (i * i % 101)) for i in range(300)]
    again = runs(requests, replay.Cluster(nodes=100))
    assert again == small
    other = runs(requests, replay.Cluster(nodes=100), seed=2)
    assert all(other[policy].digest != small[policy].digest for policy in replay.POLICIES)


def test_nothing_slow_leaves_striping_and_ours_alike() -> None:
    requests = [Request(float(i), tokens=5000) for i in range(50)]
    found = runs(requests, replay.Cluster(nodes=100, slow_one_in=0))
    ours, striped = found["adaptive"].percentile(0.5), found["striped"].percentile(0.5)
    assert ours <= 1.15 * striped


@pytest.mark.skipif(
    not CONVERSATIONS.is_file(), reason="the Mooncake trace is not beside the project"
)
def test_conversations_over_a_thousand_nodes_hold_the_bar() -> None:
    requests = trace.read(CONVERSATIONS, 400)
    p99 = {
        policy: run.percentile(0.99)
        for policy, run in runs(requests, replay.Cluster(nodes=1000)).items()
    }
    assert p99["adaptive"] <= 0.5 * p99["hashed"] and p99["adaptive"] <= 0.7 * p99["striped"]
