"""The simulated network of the test tools: what it is told is what is run, and what does not hold is printed."""

from __future__ import annotations

import pytest

from fabric import errors
from fabric.paths import simulation
from fabric.testing.network import BrokenRun, Network, must_hold_seed

MIB = 1 << 20


def two_rails(**options: float) -> Network:
    network = Network()
    network.rail(125e6, **options)
    network.rail(125e6)
    return network


def test_two_rails_carry_their_sum() -> None:
    network = two_rails()
    network.transfer(16 * MIB, count=16)
    outcome = network.run(bucket_s=0.5)
    assert outcome.delivered == 256 * MIB
    assert outcome.rates[0] > 0.98 * 250e6
    assert len(outcome.took_s) == 16 and min(outcome.took_s) > 0


def test_a_throttled_rail_leaves_what_remains() -> None:
    network = two_rails()
    network.rate_at(1, 1.0, 12.5e6)
    network.transfer(16 * MIB, count=400)
    outcome = network.run(stop_s=3.0, bucket_s=0.5)
    assert all(rate > 0.93 * 137.5e6 for rate in outcome.rates[2:6])


@pytest.mark.parametrize("told", [True, False])
def test_a_rail_that_goes_is_missed_by_nobody(told: bool) -> None:
    network = two_rails()
    network.outage(1, 1.0, 4.0, told=told)
    network.transfer(16 * MIB, count=400)
    outcome = network.run(stop_s=6.0, bucket_s=0.5)
    assert outcome.gap_s < 0.05
    assert all(rate > 0.95 * 125e6 for rate in outcome.rates)
    assert outcome.rates[-1] > 0.98 * 250e6  # it is used again


def test_corrupt_chunks_go_again_until_all_is_intact() -> None:
    network = two_rails(corrupt=0.05, late_acks=0.01, repeated_acks=0.05)
    network.transfer(64 * MIB)
    outcome = network.run()
    assert outcome.corrupt > 0 and outcome.delivered == 64 * MIB < outcome.posted


def test_lost_segments_cost_time_and_nothing_else() -> None:
    network = two_rails(loss=0.005)
    network.transfer(4 * MIB, count=8, klass=2)
    assert network.run().delivered == 32 * MIB


def test_rails_that_share_a_bottleneck_have_its_rate() -> None:
    network = Network()
    first = network.rail(125e6)
    network.rail(125e6, shares=first)
    network.transfer(16 * MIB, count=16)
    assert 0.98 * 125e6 < network.run(bucket_s=0.5).rates[1] < 1.02 * 125e6


def test_a_pause_of_the_sender_is_its_own() -> None:
    network = two_rails()
    network.pause(0.1, 0.6)
    network.transfer(64 * MIB)
    outcome = network.run()
    assert outcome.resent == 0 and outcome.at_s > 0.6


def test_the_same_calls_give_the_same_run() -> None:
    def digest(seed: int) -> int:
        network = Network(seed, slots=2, hold_s=0.01)
        network.rail(25e6, loss=0.01, queue_bytes=100_000, burst_bytes=65_536, delay_s=1e-3)
        network.rail(125e6, corrupt=0.05)
        network.transfer(2 * MIB, count=4)
        return network.run().digest

    assert digest(1) == digest(1) != digest(2)


def test_a_network_that_cannot_be_names_the_line() -> None:
    network = Network()
    network.rail()
    network.outage(3, 0.0, 1.0)
    network.transfer(1)
    with pytest.raises(errors.ConfigError, match="line 3: there is no rail 3"):
        network.run()
    with pytest.raises(errors.ConfigError, match="no transfer"):
        two_rails().run()


def test_a_run_that_does_not_hold_says_what_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    real = simulation._native.simulate_plan
    monkeypatch.setattr(
        simulation._native,
        "simulate_plan",
        lambda text, bucket: {**real(text, bucket), "violation": "bytes were lost"},
    )
    with pytest.raises(BrokenRun, match=r"seed 7 at .*bytes were lost\nkeep it(.|\n)*run seed=7 "):
        must_hold_seed(7)


def test_a_schedule_too_large_is_refused_with_its_limit() -> None:
    with pytest.raises(errors.ConfigError) as refused:
        simulation.run("#" * (5 << 20))
    assert refused.value.context["limit"] == "SIMULATION_PLAN_BYTES_MAX"
