"""Namespaces of a run: what they carry, how they change, and that nothing of them stays. Needs root."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bench import namespaces
from bench.namespaces import PREFIX, Bed, NetworkUnavailable, Rail, run

REASON = namespaces.reason_against()
pytestmark = pytest.mark.machine
needs_namespaces = pytest.mark.skipif(bool(REASON), reason=REASON)
DEAD = 4_190_001  # no process has this id: it is beyond pid_max of every machine here


@pytest.fixture
def bed() -> Iterator[Bed]:
    with Bed() as made:
        made.namespace("a")
        made.namespace("b")
        yield made


def carries(bed: Bed, rail: Rail) -> bool:
    """Whether a connection over the rail is made, by what the dialling kernel says within half a second."""
    listen = "import socket; s = socket.create_server(('%s', 7)); print(flush=True); s.accept()"
    dial = "import socket; socket.create_connection(('%s', 7), 0.5)"
    server = subprocess.Popen(
        [*bed.inside("b"), sys.executable, "-c", listen % rail.far_address], stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        server.stdout.readline()
        command = [*bed.inside("a"), sys.executable, "-c", dial % rail.far_address]
        return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@needs_namespaces
def test_a_black_hole_carries_nothing_and_keeps_the_link_up(bed: Bed) -> None:
    rail = Rail(bed, 0, "a", "b", 1000)
    assert carries(bed, rail)
    rail.swallow()
    assert not carries(bed, rail)
    for name in ("a", "b"):
        shown = run("ip", "-n", bed.full(name), "-o", "link", "show", "dev", "r0")
        assert "LOWER_UP" in shown and "NO-CARRIER" not in shown
    rail.heal()
    assert carries(bed, rail)


@needs_namespaces
def test_a_rail_that_went_down_comes_back_with_its_rate_and_address(bed: Bed) -> None:
    rail = Rail(bed, 0, "a", "b", 1000)
    rail.shape(100)
    rail.down()
    assert not carries(bed, rail)
    assert "NO-CARRIER" in run("ip", "-n", bed.full("b"), "link", "show", "dev", "r0")
    rail.up()
    assert carries(bed, rail)
    assert "rate 100Mbit" in run("tc", "-n", bed.full("a"), "qdisc", "show", "dev", "r0")


@needs_namespaces
def test_the_sweep_removes_what_a_killed_run_has_left_with_its_processes() -> None:
    left = f"{PREFIX}{DEAD}-a"
    run("ip", "netns", "add", left)
    sleeper = subprocess.Popen(["ip", "netns", "exec", left, "sleep", "600"])
    try:
        until = time.monotonic() + 5.0
        while not run("ip", "netns", "pids", left) and time.monotonic() < until:
            time.sleep(0.01)
        namespaces.sweep()
        assert sleeper.wait(5.0) == -9
        assert left not in run("ip", "netns", "list")
    finally:
        sleeper.kill()
        sleeper.wait()


@needs_namespaces
def test_the_sweep_leaves_runs_that_are_alive_alone(bed: Bed) -> None:
    namespaces.sweep()
    assert bed.full("a") in run("ip", "netns", "list")


@needs_namespaces
def test_a_bed_leaves_nothing() -> None:
    with Bed() as bed:
        bed.namespace("a")
    assert bed.full("a") not in run("ip", "netns", "list")


def test_without_root_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert namespaces.reason_against() == "network namespaces need root"


def test_a_tool_that_fails_is_quoted() -> None:
    with pytest.raises(NetworkUnavailable, match="ls /nowhere"):
        run("ls", "/nowhere")
