"""Who is suspect, who is killed, who is left alone: heartbeats and a clock of numbers."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time

import pytest

from fabric import limits
from fabric.controlplane.liveness import Liveness, is_stopped, judge, still_maps

MS = 1_000_000
LOOK = limits.LIVENESS_MS * MS


class FakePort:
    def __init__(self, kind: str = "client", pid: int = 1, pid_fd: int = -1) -> None:
        self.port, self.name, self.kind, self.pid, self.pid_fd = 7, "p", kind, pid, pid_fd
        self.state_fd = -1
        self.is_alive, self.is_suspect, self.beat = True, False, 0

    def heartbeat_ns(self) -> int:
        return self.beat


class FakeContext:
    def __init__(self) -> None:
        self.events = self
        self.seen: list[str] = []

    def add(self, event: str, **_: object) -> None:
        self.seen.append(event)


def watching(port: FakePort, stopped: bool = False) -> tuple[Liveness, FakeContext, list[bool]]:
    context, changes = FakeContext(), []
    liveness = Liveness(context, [port], lambda pid: stopped)
    liveness.on_change = lambda changed: changes.append(changed.is_suspect)
    return liveness, context, changes


def look_until(liveness: Liveness, start_ms: int, end_ms: int) -> None:
    for now in range(start_ms * MS, end_ms * MS + 1, LOOK):
        liveness.look(now)


@pytest.mark.parametrize(
    ("beat_ms", "since_ms", "now_ms", "suspect", "expired"),
    [
        (5000, 0, 6000, False, False), (5000, 0, 6001, True, False), (5000, 0, 8000, True, False),
        (5000, 0, 8001, True, True), (0, 5000, 6001, True, False), (5000, 7000, 8000, False, False),
    ],
)  # fmt: skip
def test_silence_counts_from_the_last_beat_or_the_start_of_watching(
    beat_ms, since_ms, now_ms, suspect, expired
):
    found = judge(beat_ms * MS, since_ms * MS, now_ms * MS, False)
    assert (found.is_suspect, found.is_expired) == (suspect, expired)


@pytest.mark.promise("P3")
def test_silent_port_is_suspect_once_and_cleared_by_its_next_beat():
    port = FakePort()
    liveness, context, changes = watching(port)
    look_until(liveness, 1000, 4000)
    assert changes == [True] and context.seen == ["port suspect"]
    port.beat = 4100 * MS
    liveness.look(4250 * MS)
    assert changes == [True, False] and context.seen[-1] == "port back"


def test_stopped_process_is_suspect_before_its_second_is_over():
    port = FakePort()
    port.beat = 1000 * MS
    liveness, _, changes = watching(port, stopped=True)
    look_until(liveness, 1000, 1500)
    assert changes == [True]


@pytest.mark.promise("P3")
@pytest.mark.parametrize("kind", ["module", "stage", "client"])
def test_supervised_process_that_is_silent_for_a_lease_is_killed_and_a_client_never(kind):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    port = FakePort(kind, process.pid, os.pidfd_open(process.pid))
    try:
        liveness, context, _ = watching(port)
        look_until(liveness, 1000, 1000 + limits.LEASE_MS)
        assert process.poll() is None, "a lease is not over before its end"
        look_until(liveness, 1250 + limits.LEASE_MS, 3000 + limits.LEASE_MS)
        if kind == "client":
            assert process.poll() is None and "silent process killed" not in context.seen
        else:
            assert process.wait(5) == -signal.SIGKILL
            assert context.seen.count("silent process killed") == 1
    finally:
        process.kill()
        process.wait(5)
        os.close(port.pid_fd)


@pytest.mark.promise("P3")
def test_nobody_is_judged_by_the_pause_of_the_judge():
    port = FakePort("module")
    port.beat = 1000 * MS
    liveness, context, changes = watching(port)
    assert liveness.look(1100 * MS)
    assert not liveness.look(9000 * MS), "it says that it stood still"
    look_until(liveness, 9250, 9900)
    assert changes == [] and context.seen == ["daemon stood still"]
    look_until(liveness, 10000, 10250)
    assert changes == [True], "silence after the pause counts"


def test_proc_tells_stopped_from_running_and_gone():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert not is_stopped(process.pid)
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 5
        while not is_stopped(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait(5)
    assert not is_stopped(process.pid)


def test_client_that_lives_without_its_port_has_left_it_after_a_lease() -> None:
    port, maps = FakePort(), [True]
    context, left = FakeContext(), []
    liveness = Liveness(context, [port], lambda pid: False, lambda pid, fd: maps[0])
    liveness.on_left = left.append
    look_until(liveness, 1, 2 * limits.LEASE_MS)
    assert not left, "silent, but it may wake"
    maps[0] = False
    look_until(liveness, 2 * limits.LEASE_MS, 2 * limits.LEASE_MS + 100)
    assert left and "process became another program" in context.seen


def test_mapping_of_a_process_is_seen_and_its_absence_too() -> None:
    fd = os.memfd_create("liveness")
    os.ftruncate(fd, 4096)
    try:
        assert not still_maps(os.getpid(), fd)
        with mmap.mmap(fd, 4096):
            assert still_maps(os.getpid(), fd)
    finally:
        os.close(fd)
