"""Schedules that once went wrong, or that show what must not: each is run to its end and everything must hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.paths import simulation
from fabric.testing import network

PLANS = sorted((Path(__file__).parent / "plans").glob("*.plan"))


def plan(name: str) -> str:
    return (Path(__file__).parent / "plans" / f"{name}.plan").read_text()


def test_the_regression_plans_are_there() -> None:
    assert len(PLANS) >= 8


@pytest.mark.parametrize("path", PLANS, ids=[path.stem for path in PLANS])
def test_every_byte_of_the_plan_is_handed_over_once(path: Path) -> None:
    outcome = network.must_hold(path.read_text())
    assert outcome.delivered > 0 and outcome.posted >= outcome.delivered


def test_a_plan_gives_the_same_run_every_time() -> None:
    runs = {network.must_hold(plan("flapping_rail_untold")).digest for _ in range(3)}
    assert len(runs) == 1


def test_pieces_that_come_late_are_thrown_away() -> None:
    assert network.must_hold(plan("late_piece_after_reuse")).scratch > 0


def test_a_token_bucket_does_not_make_a_new_rail_look_fast() -> None:
    outcome = network.must_hold(plan("new_rail_with_a_token_bucket"), 0.5)
    assert outcome.rates[0] > 0.98 * 250e6 and outcome.resent == 0


def test_a_rail_that_is_black_is_felt_by_nobody_else() -> None:
    outcome = network.must_hold(plan("flapping_rail_untold"))
    assert outcome.gap_s < 0.05


def test_transfers_go_on_soon_after_a_rail_returns() -> None:
    outcome = network.must_hold(plan("both_rails_go_and_one_returns"))
    assert 3.0 <= outcome.gap_s <= 3.25


def test_own_silence_blames_no_rail() -> None:
    outcome = network.must_hold(plan("sender_stands_still"))
    assert outcome.resent == 0 and all(rail["failures"] == 0 for rail in outcome.rails)


def test_a_thousand_schedules_hold() -> None:
    failed = [failure for _, broken in simulation.run_seeds(1, 1000) for failure in broken]
    assert not failed, "\n".join(
        f"fabricctl simulate seeds --show --first {failure.seed}: {failure}" for failure in failed
    )
