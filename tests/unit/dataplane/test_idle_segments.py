"""Which empty segments are given back, and which wait for the next message."""

from __future__ import annotations

import pytest

from fabric import limits
from fabric.dataplane import idle_segments
from fabric.dataplane.idle_segments import IdleSegments

MIB = 1 << 20
LATE = limits.SEGMENT_IDLE_S
OLD = limits.SEGMENT_KEPT_S


def arena(keep_bytes: int, has_spare: bool = True) -> IdleSegments:
    made = IdleSegments(lambda: has_spare)
    made.keep_bytes = keep_bytes
    return made


def test_segment_without_leave_to_stay_is_given_back_after_its_time():
    idle = arena(0)
    assert idle.due({1: MIB}, 0.0) == []
    assert idle.due({1: MIB}, LATE - 0.1) == []
    assert idle.due({1: MIB}, LATE) == [1]


def test_segment_that_may_stay_is_given_back_later():
    idle = arena(MIB)
    idle.due({1: MIB}, 0.0)
    assert idle.due({1: MIB}, OLD - 0.1) == []
    assert idle.due({1: MIB}, OLD) == [1]


@pytest.mark.promise("P8")
def test_only_so_many_bytes_stay_and_those_used_last():
    idle = arena(3 * MIB)
    idle.due({1: 2 * MIB}, 0.0)
    idle.due({1: 2 * MIB, 2: 2 * MIB}, 1.0)
    assert idle.due({1: 2 * MIB, 2: 2 * MIB}, 1.0 + LATE) == [1]


@pytest.mark.promise("P4")
def test_nothing_stays_while_memory_is_short():
    idle = arena(MIB, has_spare=False)
    idle.due({1: MIB}, 0.0)
    assert idle.due({1: MIB}, LATE) == [1]


def test_segment_that_was_used_meanwhile_begins_anew():
    idle = arena(0)
    idle.due({1: MIB}, 0.0)
    idle.due({}, 5.0)
    assert idle.due({1: MIB}, LATE) == []
    assert idle.due({1: MIB}, 2 * LATE) == [1]


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Files as /proc and /sys have them: half of the machine's memory available, no control group's limit."""
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 500 kB\n")
    (tmp_path / "cgroup").write_text("0::/group\n")
    (tmp_path / "group").mkdir()
    monkeypatch.setattr(idle_segments, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(idle_segments, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(idle_segments, "_CGROUPS", tmp_path)
    return tmp_path


def limit(group, allowed, current):
    (group / "group/memory.max").write_text(f"{allowed}\n")
    (group / "group/memory.current").write_text(f"{current}\n")
    (group / "group/memory.stat").write_text("anon 1\nfile 300\nshmem 100\n")


def test_memory_is_spare_while_the_machine_has_some(system):
    assert idle_segments.has_spare()
    (system / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 200 kB\n")
    assert not idle_segments.has_spare()


def test_limit_of_the_control_group_counts_without_what_the_kernel_could_drop(system):
    limit(system, "max", 900)
    assert idle_segments.has_spare()
    limit(system, 1000, 900)  # of which 200 are cached files
    assert idle_segments.has_spare()
    limit(system, 1000, 960)
    assert not idle_segments.has_spare()


def test_system_that_tells_nothing_has_no_memory_to_spare(system):
    (system / "meminfo").unlink()
    assert not idle_segments.has_spare()
