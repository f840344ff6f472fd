"""A stage carries streams between its namespaces, and what a stream comes to when its rail goes. Needs root."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from bench import namespaces
from bench.namespaces import run
from bench.paths import others, scenarios
from bench.paths.stage import FOLDER, TCP, Schedule, Stage, sweep_folders
from bench.paths.timeline import Arrivals

REASON = namespaces.reason_against()
pytestmark = pytest.mark.machine
needs_namespaces = pytest.mark.skipif(bool(REASON), reason=REASON)
SIZE = 1 << 20


@needs_namespaces
def test_a_stream_over_a_shaped_rail_arrives_whole() -> None:
    with Stage((1000,)) as stage:
        pair = stage.pair(TCP)
        found = scenarios.stream(stage, TCP, pair, {"size": SIZE, "count": 5, "give_up_s": 20.0})
    assert found.is_whole and found.wrong() == 0
    assert len(found.arrivals.rows) == 5


@needs_namespaces
def test_a_stream_whose_rail_swallows_everything_says_what_came_until_then() -> None:
    with Stage((1000,)) as stage:
        order = {"size": SIZE, "seconds": 60.0, "give_up_s": 3.0}
        with Schedule((1.0, stage.rails[0].swallow)) as plan:
            found = scenarios.stream(stage, TCP, stage.pair(TCP), order)
        assert plan.error is None
    assert not found.is_whole
    # What is stuck in the sender's call is not among what was sent.
    assert 0 < len(found.arrivals.rows) <= found.sent
    assert found.torn == 0


@needs_namespaces
def test_a_stage_that_is_left_leaves_no_namespace_and_no_folder() -> None:
    with Stage((1000, 0)) as stage:
        stage.pair(TCP)
        folder = stage.folder
    assert not folder.exists()
    assert stage.bed.full("a") not in run("ip", "netns", "list")


def test_folders_of_killed_runs_are_swept_and_those_of_live_ones_stay() -> None:
    left = Path("/tmp") / f"{FOLDER}4190001-left"  # no process has this id
    mine = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-", dir="/tmp"))
    left.mkdir(exist_ok=True)
    try:
        sweep_folders()
        assert not left.exists() and mine.exists()
    finally:
        mine.rmdir()


def test_what_was_sent_again_is_a_share_of_what_was_delivered_meanwhile() -> None:
    before = [{"resent": 10, "delivered": 1000}, {"resent": 0, "delivered": 500}]
    after = [{"resent": 15, "delivered": 1600}, {"resent": 5, "delivered": 900}]
    assert scenarios.resent(before, after) == {"resent_percent": pytest.approx(1.0)}
    assert scenarios.resent([], []) == {}


def test_incast_is_unfair_when_one_sender_waits_for_the_others() -> None:
    def one(first: int, every: int) -> scenarios.Stream:
        rows = [(first + every * n, 0, n - 1) for n in range(1, 11)]
        near = {"sent": 10, "start": 0, "ended": True, "failed": ""}
        far = {"arrivals": rows, "torn": 0, "ended": True, "failed": ""}
        found = scenarios.Stream(near, far, {"size": SIZE})
        assert isinstance(found.arrivals, Arrivals)
        return found

    even = others.of_incast([one(0, 10_000_000) for _ in range(4)])
    late = others.of_incast([*(one(0, 10_000_000) for _ in range(3)), one(90_000_000, 10_000_000)])
    assert even["jain"] == pytest.approx(1.0)
    assert late["jain"] < 0.8
    assert even["wrong"] == late["wrong"] == 0
