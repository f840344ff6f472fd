"""What a measurement of an edge does within a budget, and what it leaves out."""

import pytest

from fabric import limits
from fabric.errors import ConfigError
from fabric.worker.probe_figures import Round, figures
from fabric.worker.probe_plan import (
    BATCHED,
    LARGE,
    LOANED,
    MIB,
    ONE_WAY,
    TRIPS,
    Budget,
    Step,
    memory_bytes,
    plan,
    taken,
)

DEFAULT = Budget(5.0, 1 << 30, 64 * MIB)
AMPLE = Budget(30.0, 8 << 30, 512 * MIB)
LEAST = Budget(0.5, MIB, 4 * MIB)


@pytest.mark.parametrize("budget", [DEFAULT, AMPLE, LEAST])
def test_steps_together_stay_within_the_budget(budget):
    steps = taken(plan(budget))
    assert budget.idle_s + sum(step.seconds for step in steps) <= budget.seconds + 1e-9
    assert sum(step.size_bytes for step in steps) <= budget.size_bytes
    assert memory_bytes(s for s in steps if s.run in LARGE) <= budget.memory_bytes


def test_ample_budget_leaves_nothing_out():
    steps = plan(AMPLE)
    assert taken(steps) == list(steps)
    assert [s.run for s in steps[:3]] == [TRIPS, ONE_WAY, BATCHED]
    assert {(s.size // MIB, s.window) for s in steps[3:]} == {(1, 1), (1, 8), (16, 1), (16, 8)}


def test_every_step_that_is_taken_can_send_what_its_figure_needs():
    for budget in (DEFAULT, AMPLE, LEAST):
        for step in taken(plan(budget)):
            assert step.size_bytes >= step.least * step.payload


def test_default_budget_leaves_out_only_the_wide_window_of_the_largest_and_says_what_it_needs():
    left_out = {step.name: step.left_out for step in plan(DEFAULT) if step.left_out}
    assert left_out == {
        "16 MiB loaned, window 8": "needs 176.0 MiB of --memory",
        "16 MiB send(array), window 8": "needs 192.0 MiB of --memory",
    }


def test_what_a_step_says_that_it_needs_is_enough():
    assert len(taken(plan(Budget(5.0, 4 << 30, 192 * MIB)))) == len(plan(DEFAULT))


def test_payload_that_is_short_leaves_the_largest_out_and_gives_their_share_to_the_rest():
    steps = plan(Budget(5.0, 64 * MIB, 512 * MIB))
    small = [s for s in steps if s.run in LARGE and not s.left_out]
    assert {s.size for s in small} == {MIB}
    assert all("of --bytes" in s.left_out for s in steps if s.size == 16 * MIB)
    assert sum(s.size_bytes for s in small) > 50 * MIB


def test_least_budget_has_room_for_rates_alone_and_says_what_the_others_need():
    steps = plan(LEAST)
    assert [s.run for s in taken(steps)] == [ONE_WAY, BATCHED]
    assert steps[0].left_out == "needs 1.6 MiB of --bytes"


@pytest.mark.promise("P8")
@pytest.mark.parametrize(
    ("budget", "option"),
    [
        (Budget(limits.BENCH_SECONDS[0] / 2, 1 << 30, 64 * MIB), "--seconds"),
        (Budget(limits.BENCH_SECONDS[1] + 1, 1 << 30, 64 * MIB), "--seconds"),
        (Budget(float("nan"), 1 << 30, 64 * MIB), "--seconds"),
        (Budget(5.0, limits.BENCH_BYTES[0] - 1, 64 * MIB), "--bytes"),
        (Budget(5.0, limits.BENCH_BYTES[1] + 1, 64 * MIB), "--bytes"),
        (Budget(5.0, 1 << 30, limits.BENCH_MEMORY_BYTES[0] - 1), "--memory"),
        (Budget(5.0, 1 << 30, limits.BENCH_MEMORY_BYTES[1] + 1), "--memory"),
    ],
)
def test_budget_outside_its_bounds_is_refused_naming_them(budget, option):
    with pytest.raises(ConfigError, match=f"{option} is .*: give .* to ") as caught:
        budget.check()
    assert caught.value.context["key"] == option


def test_budget_at_its_bounds_is_taken():
    for bound in (0, 1):
        parts = (limits.BENCH_SECONDS, limits.BENCH_BYTES, limits.BENCH_MEMORY_BYTES)
        assert taken(plan(Budget(*(part[bound] for part in parts)).check()))


def test_cpu_of_a_figure_is_that_of_the_ends_and_of_the_daemons_over_all_rounds():
    rounds = [Round(100, 50_000, 150_000, 50_000), Round(300, 150_000, 450_000, 150_000)]
    row = figures(Step("s", ONE_WAY, 64), rounds)
    assert row == {"k_per_s": 2000.0, "messages": 400, "cpu_us": 2.0, "daemons_cpu_us": 0.5}


def test_round_trip_is_two_messages_and_its_percentiles_are_over_all_rounds():
    rounds = [Round(2, 0, 400, 0, [3000, 1000]), Round(2, 0, 400, 0, [2000, 9000])]
    row = figures(Step("s", TRIPS, 64), rounds)
    assert (row["p50_us"], row["p99_us"], row["messages"], row["cpu_us"]) == (3.0, 9.0, 8, 0.1)


def test_throughput_counts_bytes_of_the_timed_messages():
    row = figures(Step("s", LOANED, MIB), [Round(10, MIB, 5 * MIB, 5 * MIB)])
    assert (row["gb_per_s"], row["cpu_s_per_gb"], row["daemons_cpu_s_per_gb"]) == (10.0, 1.0, 0.5)
