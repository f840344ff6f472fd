"""Two interfaces behind one port: the rail that adds nothing is left out, and every listing says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from bench.paths import scenarios
from bench.paths.layouts import SharedStage
from bench.paths.stage import FABRIC
from tests.integration.kill_nodes import wait_for

pytestmark = [pytest.mark.netns, pytest.mark.promise("P5")]
MIB = 1 << 20
STREAM_S = 14.0  # the first trial comes after 2 s; a busy machine takes longer to be sure
SIZE_BYTES = 64 * MIB


def left_out(stage: SharedStage) -> list[dict[str, Any]]:
    return [row for row in scenarios.rails_of(stage, FABRIC) if row["left_out"]]


@pytest.mark.deadline(90)
def test_rail_that_only_shares_is_left_out_and_every_listing_says_so() -> None:
    with SharedStage((1000, 1000)) as stage:
        pair = stage.pair(FABRIC)
        order = {"size": MIB, "seconds": STREAM_S, "is_checked": False}
        ended: list[scenarios.Stream] = []
        bulk = threading.Thread(
            target=lambda: ended.append(scenarios.stream(stage, FABRIC, pair, order))
        )
        bulk.start()
        try:
            wait_for("a rail that is left out", lambda: len(left_out(stage)) == 1, STREAM_S)
            (row,) = left_out(stage)
            with stage.nodes().client(0) as client:
                seen = looked_at(client, row["rail"])
        finally:
            bulk.join()
        assert row["state"] == "up" and row["left_out"].startswith("adds nothing (without it ")
        assert seen["why"]["carries"] == 0 and seen["why"]["left_out"].startswith("adds nothing")
        assert any("adds nothing" in sentence for sentence in seen["words"])
        assert [change["before"] for change in seen["changes"]][:1] == ["up"]
        assert seen["downgrades"] == 0, "no rail was lost"
        assert ended[0].is_whole and ended[0].wrong() == 0


def looked_at(client: Any, rail: int) -> dict[str, Any]:
    answer = client.path_why("n0", "n1", size_bytes=SIZE_BYTES)
    changes = client.path_show("n1")["changes"]
    is_of: Callable[[Any], bool] = lambda row: row["rail"] == rail  # noqa: E731
    return {
        "why": next(filter(is_of, answer["rails"])),
        "words": answer["words"],
        "changes": [c for c in changes if is_of(c) and c["after"] == "left_out"],
        "downgrades": client.status()["downgrades"],
    }
