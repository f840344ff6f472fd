"""`fabricctl simulate`: schedules drawn from seeds, one schedule, a trace over many nodes. No node is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fabric.paths import simulation
from fabric.paths.simulation import Failure

EIGHT = str(Path(__file__).parent.parent / "paths/fixtures/nccl_eight_gpus.xml")
PLAN = (
    "run seed=1\nrail rate=125000000\nrail rate=125000000\n"
    "rate rail=1 at_us=500000 rate=12500000\ntransfer bytes=16777216 count=20\n"
)


@pytest.fixture
def trace(tmp_path):
    file = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 10 * i, "input_length": 1000 + 37 * (i % 101)} for i in range(100)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def test_seeds_that_hold_are_counted(fabricctl):
    done = fabricctl("simulate", "seeds", "--count", "300", "--first", "5000")
    assert done.status == 0 and done.out == "300 schedules from seed 5000 on, 0 failed\n"


def test_a_seed_that_does_not_hold_is_named_with_what_to_do(fabricctl, monkeypatch):
    broken = [(400, [Failure(17, 1.25, "bytes were lost")])]
    monkeypatch.setattr(simulation, "run_seeds", lambda first, count: iter(broken))
    done = fabricctl("simulate", "seeds", "--count", "400")
    assert done.status == 1 and "seed 17: at 1.250000 s: bytes were lost" in done.out
    assert "--show --first SEED" in done.err


def test_the_schedule_of_a_seed_is_shown_and_runs(fabricctl, tmp_path):
    shown = fabricctl("simulate", "seeds", "--show", "--first", "42")
    assert shown.status == 0 and shown.out.startswith("run seed=42 ")
    file = tmp_path / "kept.plan"
    file.write_text(shown.out)
    assert fabricctl("simulate", "plan", str(file)).status == 0


def test_a_schedule_is_told_as_goodput_over_time(fabricctl, tmp_path):
    file = tmp_path / "throttle.plan"
    file.write_text(PLAN)
    done = fabricctl("simulate", "plan", str(file), "-o", "json")
    told = json.loads(done.out)
    assert done.status == 0 and told["violation"] == "" and told["delivered_bytes"] == 20 << 24
    assert told["mb_per_s"][0] > 245 and 128 < told["mb_per_s"][2] < 140
    assert "MB/S" in fabricctl("simulate", "plan", str(file)).out


def test_a_schedule_that_does_not_hold_fails(fabricctl, tmp_path, monkeypatch):
    file = tmp_path / "x.plan"
    file.write_text(PLAN)
    real = simulation._native.simulate_plan
    monkeypatch.setattr(
        simulation._native, "simulate_plan", lambda *a: {**real(*a), "violation": "bytes were lost"}
    )
    done = fabricctl("simulate", "plan", str(file))
    assert done.status == 1 and "bytes were lost" in done.err


@pytest.mark.parametrize(
    ("text", "said"), [("rail speed=5\n", "line 1: unknown key speed"), ("rail\n", "no transfer")]
)
def test_what_is_no_schedule_is_refused(fabricctl, tmp_path, text, said):
    file = tmp_path / "x.plan"
    file.write_text(text)
    done = fabricctl("simulate", "plan", str(file))
    assert done.status == 1 and said in done.err
    assert fabricctl("simulate", "plan", str(tmp_path / "absent")).status == 1


def test_a_trace_is_replayed_with_every_policy(fabricctl, trace):
    done = fabricctl(
        "simulate", "trace", trace, "--nodes", "40", "--slow-one-in", "20", "-o", "json"
    )
    told = json.loads(done.out)
    assert done.status == 0 and told["transfers"] == 100 and told["slow_rails"] == 16
    assert [row["policy"] for row in told["policies"]] == ["adaptive", "hashed", "striped"]
    assert told["p99_of_hashed"] < 0.7 and told["p99_of_striped"] < 0.7
    assert (
        json.loads(
            fabricctl(
                "simulate", "trace", trace, "--nodes", "40", "--slow-one-in", "20", "-o", "json"
            ).out
        )
        == told
    )
    assert "P99 MS" in fabricctl("simulate", "trace", trace, "--nodes", "4").out


def test_a_topology_gives_the_rails(fabricctl, trace):
    done = fabricctl("simulate", "trace", trace, "--nodes", "4", "--topology", EIGHT, "-o", "json")
    assert json.loads(done.out)["rails_gbit_per_s"] == [200.0] * 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--slow-factor", "0"], "--slow-factor"),
        (["--load", "2"], "--load"),
        (["--bytes-per-token", "many"], "--bytes-per-token"),
        (["--topology", "/nowhere.xml"], "/nowhere.xml"),
    ],
)
def test_what_cannot_be_replayed_is_said(fabricctl, trace, arguments, said):
    done = fabricctl("simulate", "trace", trace, *arguments)
    assert done.status == 1 and said in done.err and "do:" in done.err


def test_a_file_that_is_no_trace_names_its_line(fabricctl, tmp_path):
    file = tmp_path / "x"
    file.write_text("hello\n")
    done = fabricctl("simulate", "trace", str(file))
    assert done.status == 1 and "line 1" in done.err
