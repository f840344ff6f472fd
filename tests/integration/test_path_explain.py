"""What is said of live rails is so: shares, reasons, losses, pins and measurements of two nodes with two interfaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.namespaces import Bed
from fabric import errors
from fabric.cli import checks
from tests.integration.kill_nodes import Node, balanced, settled, wait_for
from tests.integration.test_rails import JOB, LARGE, Ground, all_up, up

pytestmark = [pytest.mark.netns, pytest.mark.promise("P5")]
MIB = 1 << 20
MBIT = 200
RATE = MBIT * 1e6 / 8  # bytes/s, headers of the network included


@pytest.fixture
def ground(short_dir: Path) -> Iterator[Ground]:
    with Bed() as bed:
        made = Ground(bed, short_dir)
        for rail in made.rails:
            rail.shape(MBIT)
        try:
            yield made
        finally:
            made.cluster.close()


def paths(node: Node) -> dict[int, dict]:
    return {row["rail"]: row for row in node.call("path_ls")}


def events(node: Node, kind: str) -> list[dict]:
    return [
        e for e in node.call("events")["events"] if e["kind"] == kind and e["node"] == node.name
    ]


def traffic(ground: Ground, a: Node, b: Node, count: int):
    """Send large messages from a to b; returns both workers once they flow."""
    inn = ground.cluster.worker(b, "consume", "in", **LARGE)
    inn.wait_for("ready")
    out = ground.cluster.worker(a, "produce", "out", count=count, **LARGE)
    inn.wait_for("got", 20)
    return inn, out


def metric(node: Node, name: str, *labels: str) -> float:
    lines = [
        line
        for line in node.call("metrics").splitlines()
        if line.startswith(name) and all(label in line for label in labels)
    ]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def chosen(node: Node) -> set[int]:
    """Which rails the last decisions of the scheduler chose: surprises crowd the others out, so one may be missing."""
    return {row["rail"] for row in node.call("path_show", "b", size_bytes=4 * MIB)["decisions"]}


# ------------------------------------------------------------------ ls, show, why
def test_listing_has_addresses_and_interfaces_and_after_traffic_rates_and_shares(ground):
    a, b = ground.both()
    all_up(a, b)
    for number, rail in enumerate(ground.rails):
        row = paths(a)[number]
        assert (row["local"], row["remote"]) == (rail.near_address, rail.far_address)
        assert (row["interface"], row["state"], row["pinned"]) == (rail.device, "up", False)
    _, out = traffic(ground, a, b, 150)
    seen: set[int] = set()
    wait_for("a decision for each rail", lambda: seen.update(chosen(a)) or seen == {0, 1})
    out.finish(40.0)
    settled(a, "far")
    rows = paths(a)
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1.0)
    assert all(0.3 < row["share"] < 0.7 for row in rows.values()), rows
    assert all(0.5 * RATE < row["rate"] < 1.5 * RATE for row in rows.values()), rows
    assert sum(row["is_primary"] for row in rows.values()) == 1
    delivered = [metric(a, "fabric_rail_delivered_bytes_total", f'rail="{n}"') for n in (0, 1)]
    assert delivered == [rows[n]["delivered"] for n in (0, 1)]
    shown = a.call("path_show", "b", size_bytes=4 * MIB)
    assert [row["rail"] for row in shown["rails"]] == [0, 1] and shown["decisions"]
    assert chosen(a) <= {0, 1}
    assert all(len([ns for ns in row["finish_ns"] if ns]) <= 2 for row in shown["decisions"])


def test_dry_run_says_what_then_happens(ground):
    a, b = ground.both()
    all_up(a, b)
    ground.rails[1].shape(MBIT // 4)
    _, out = traffic(ground, a, b, 200)
    out.finish(50.0)
    settled(a, "far")
    said = a.call("path_why", "a", "b", size_bytes=64 * MIB, klass="bulk")
    assert (said["way"], said["by"]) == ("chunks", "scheduler")
    share = {row["rail"]: row["carries_share"] for row in said["rails"]}
    assert share[0] == pytest.approx(paths(a)[0]["share"], abs=0.15)
    assert said == a.call("path_why", "a", "b", size_bytes=64 * MIB) | {"rails": said["rails"]}
    from_b = b.call("path_why", "a", "b", size_bytes=64 * MIB)
    assert from_b["source"] == "a", "the node that sends answers"
    small = a.call("path_why", "a", "b", size_bytes=64, klass="token")
    assert small["way"] == "whole" and small["rails"][small["fastest"]]["carries"] == 64


# ------------------------------------------------------------------ losses
def test_lost_rail_is_told_once_counted_shown_with_its_reason_and_told_again_when_back(ground):
    a, b = ground.both()
    all_up(a, b)
    assert a.call("status")["downgrades"] == 0
    ground.rails[1].down()
    wait_for("the loss", lambda: paths(a)[1]["state"] == "down")
    told = events(a, "path downgraded")
    assert [(e["more"]["taken"], e["more"]["preferred"]) for e in told] == [
        ("1 of 2 rails", "2 rails")
    ]
    assert told[0]["reason"].startswith("rail 1 ")
    assert a.call("status")["downgrades"] == 1
    assert metric(a, "fabric_downgrades_total") == 1
    assert metric(a, "fabric_rail_changes_total", 'rail="1"', 'state="down"') >= 1
    assert metric(a, "fabric_rail_state", 'rail="1"', 'state="down"') == 1
    said = a.call("path_why", "a", "b", size_bytes=64 * MIB)
    assert [row["carries"] for row in said["rails"]] == [64 * MIB, 0]
    assert said["rails"][1]["left_out"].startswith("down: ")
    check = checks.paths(a.socket)
    assert (check.state, check.found) == ("warn", "1 of 2 rails do not carry: rail 1 to b")
    ground.rails[1].up()
    all_up(a, b)
    wait_for("the return told", lambda: events(a, "path restored"))
    changes = a.call("path_show", "b", rail=1)["changes"]
    assert changes[0]["before"] == "absent" and changes[-1]["after"] == "up"
    assert "down" in [change["after"] for change in changes]


# ------------------------------------------------------------------ pins
@pytest.mark.promise("P9")
def test_pin_is_in_force_again_after_its_daemon_was_killed(ground):
    a, b = ground.both()
    all_up(a, b)
    answer = a.call("path_pin", "b", [1])
    assert answer["pinned"] == [1] and not answer["warning"]
    a.kill_daemon()
    all_up(a, b)
    wait_for("the pinned one to lead", lambda: paths(a)[1]["is_primary"])
    inn, out = traffic(ground, a, b, 60)
    out.finish(40.0)
    settled(a, "far")
    assert inn.values("got") == list(range(60))
    rows = paths(a)
    assert (rows[0]["delivered"], rows[0]["pinned"]) == (0, False)
    assert (rows[1]["share"], rows[1]["pinned"]) == (1.0, True)
    assert a.call("path_pin", "b", [])["was_pinned"]
    assert not any(row["pinned"] for row in paths(a).values())


def test_pin_whose_rails_are_all_down_is_said_everywhere_and_holds_large_messages_alone(ground):
    a, b = ground.both()
    all_up(a, b)
    small = ground.cluster.worker(b, "consume", "small", **{**JOB, "channel": "near"})
    small.wait_for("ready")
    a.call("path_pin", "b", [1])
    inn, out = traffic(ground, a, b, 120)
    ground.rails[1].down()
    wait_for("the loss", lambda: paths(a)[1]["state"] == "down")
    rows = paths(a)
    assert all(row["waits"] for row in rows.values())
    assert "pinned to rail 1" in a.call("status")["waiting"][0]
    check = checks.paths(a.socket)
    assert (check.state, check.advice) == ("warn", "fabricctl path unpin b")
    assert a.call("path_why", "a", "b", size_bytes=MIB)["way"] == "nothing"
    quick = ground.cluster.worker(a, "produce", "quick", count=20, **{**JOB, "channel": "near"})
    quick.finish()
    small.wait_for("got", 20)
    assert rows[0]["delivered"] == paths(a)[0]["delivered"], "no chunk went over another rail"
    a.call("path_pin", "b", [])
    out.finish(40.0)
    assert settled(a, "far")["delivered"] == 120
    assert inn.values("got") == list(range(120))
    balanced(a)


def test_rail_that_does_not_exist_cannot_be_pinned(ground):
    a, b = ground.both()
    all_up(a, b)
    with pytest.raises(errors.ConfigError, match="there is no rail 5 to node 'b'; it has 0, 1"):
        a.call("path_pin", "b", [5])
    assert not any(row["pinned"] for row in paths(a).values())


# ------------------------------------------------------------------ measurements
@pytest.mark.parametrize("side", ["a", pytest.param("b", marks=pytest.mark.sweep)])
def test_probe_measures_each_rail_by_itself_from_either_end(ground, side):
    nodes = dict(zip("ab", ground.both(), strict=True))
    all_up(*nodes.values())
    ground.rails[1].shape(MBIT // 4)
    other = "b" if side == "a" else "a"
    found = nodes[side].call("path_probe", other, size_bytes=8 * MIB, seconds=1.0)
    rates = {row["rail"]: row["rate"] for row in found["rails"]}
    assert 0.5 * RATE < rates[0] < 1.3 * RATE and 0.5 * RATE / 4 < rates[1] < 1.3 * RATE / 4
    assert all(row["trips"] == 20 and row["rtt_us_min"] > 0 for row in found["rails"])
    assert found["bytes"] <= 16 * MIB
    ground.rails[1].down()
    (row,) = nodes[side].call("path_probe", other, rail=1)["rails"]
    assert "failed" in row and "rtt_us_min" not in row
    with pytest.raises(errors.ConfigError, match="--seconds is 99"):
        nodes[side].call("path_probe", other, seconds=99.0)


@pytest.mark.slow
def test_bench_path_tells_rails_of_their_own_and_leaves_nothing(ground):
    a, b = ground.both()
    all_up(a, b)
    command = [sys.executable, "-m", "fabric.cli.main", "bench", "path", "b", "--seconds", "4"]
    done = subprocess.run(
        [*command, "--bytes", "256MiB", "-o", "json"],
        env={**os.environ, "FABRIC_SOCKET": a.socket},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["rail"] for row in report["rails"]] == [0, 1]
    assert all(0.5 * RATE < row["rate"] < 1.3 * RATE for row in report["rails"])
    probes, fabric = report["together"]
    assert probes["of_sum"] > 0.8 and "they share no bottleneck" in " ".join(report["words"])
    assert fabric["rate"] > RATE, "more than one rail alone"
    assert {part["rail"] for part in fabric["by_rail"]} == {0, 1}
    assert not [c for c in a.call("ls", "channel") if c["name"].startswith("fabric.")]
    assert up(a) == [0, 1]
