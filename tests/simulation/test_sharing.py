"""Rails that share a bottleneck: one that adds nothing is left out, one of its own never is, and trials cost little."""

from __future__ import annotations

import pytest

from fabric.testing.network import Network, Outcome

MIB = 1 << 20
GBIT = 125e6


def sharing(*, switch_s: float = 0.0, alone_at_s: float = 0.0) -> Network:
    net = Network(slots=8)
    net.rail(GBIT, queue_bytes=4 * MIB, switch_s=switch_s)
    net.rail(GBIT, queue_bytes=4 * MIB, shares=0, switch_s=switch_s, alone_at_s=alone_at_s)
    net.transfer(16 * MIB, count=1000)
    return net


def goodput(outcome: Outcome, from_s: float, to_s: float) -> float:
    found = outcome.rates[round(from_s / outcome.bucket_s) : round(to_s / outcome.bucket_s)]
    return sum(found) / len(found)


def left_out(outcome: Outcome) -> list[str]:
    return [rail["left_out"] for rail in outcome.rails if rail["left_out"]]


def test_a_rail_whose_use_costs_the_other_is_left_out() -> None:
    outcome = sharing(switch_s=300e-6).run(stop_s=10, bucket_s=0.5)
    assert goodput(outcome, 0.5, 2) < 0.9 * GBIT, "sharing costs, or nothing is shown"
    assert goodput(outcome, 5, 10) >= 0.98 * GBIT
    (reason,) = left_out(outcome)
    assert reason.startswith("adds nothing (without it 12")


def test_a_rail_that_shares_without_a_cost_takes_nothing_away() -> None:
    outcome = sharing().run(stop_s=10, bucket_s=0.5)
    assert min(outcome.rates[1:]) >= 0.98 * GBIT
    assert len(left_out(outcome)) == 1


def test_a_bottleneck_that_goes_away_is_noticed() -> None:
    outcome = sharing(switch_s=300e-6, alone_at_s=10).run(stop_s=22, bucket_s=0.5)
    assert goodput(outcome, 5, 10) >= 0.98 * GBIT
    assert goodput(outcome, 20, 22) >= 0.98 * 2 * GBIT and not left_out(outcome)


@pytest.mark.parametrize("second", [GBIT, 0.4 * GBIT, 0.1 * GBIT])
def test_rails_of_their_own_keep_their_sum(second: float) -> None:
    net = Network(slots=8)
    net.rail(GBIT, queue_bytes=4 * MIB)
    net.rail(second, queue_bytes=4 * MIB)
    net.transfer(16 * MIB, count=2000)
    outcome = net.run(stop_s=60, bucket_s=0.5)
    assert goodput(outcome, 0.5, 60) >= 0.99 * (GBIT + second)
    assert min(outcome.rates[1:]) >= 0.96 * (GBIT + second), "a trial is felt in no half second"
    assert not left_out(outcome)


def test_trials_with_faults_around_them_lose_nothing() -> None:
    for seed in range(1, 6):
        net = Network(seed, slots=8)
        net.rail(GBIT, switch_s=200e-6, loss=0.001)
        net.rail(GBIT, shares=0, switch_s=200e-6, corrupt=0.01)
        net.rail(GBIT / 2, late_acks=0.01)
        net.outage(1, 4, 6, told=bool(seed % 2))
        net.outage(2, 8, 9)
        net.transfer(8 * MIB, count=200)
        outcome = net.run()
        assert outcome.delivered == 200 * 8 * MIB
