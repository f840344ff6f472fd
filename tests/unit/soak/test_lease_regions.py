"""What the soak's getter accepts: whole bytes of the region it asked for, of a lease that has not ended."""

import os
import subprocess

import numpy as np
import pytest

import fabric
from tests.soak.leases import HEAD, Region, born, build, judge, load, save, state_of
from tests.soak.processes import Held

BODY = np.arange(100, dtype=np.uint8)
LEASE = fabric.Lease(1, 2, 3, 4, 5, 6, HEAD.size + 100, "|u1", (HEAD.size + 100,), True)


def test_whole_region_of_its_own_is_accepted():
    assert judge(build(7, 1, 2, BODY), 7) is None


@pytest.mark.parametrize("at", [0, 8, 16, HEAD.size, HEAD.size + 99])
def test_one_changed_byte_is_found(at):
    data = build(7, 1, 2, BODY)
    data[at] ^= 1
    assert "torn" in judge(data, 7)


def test_half_of_another_version_and_another_region_are_found():
    old, new = build(7, 1, 2, BODY), build(7, 2, 2, BODY[::-1])
    assert "torn" in judge(np.concatenate([new[:80], old[80:]]), 7)
    assert "asked for 8" in judge(old, 8)


def test_state_follows_the_file_and_the_process(tmp_path):
    path = tmp_path / "exposer1-000001"
    child = subprocess.Popen(["sleep", "60"])
    try:
        region = Region(7, child.pid, born(child.pid), LEASE)
        save(path, region)
        assert load(path.with_suffix(".live")) == region
        seen = [state_of(path, region)]
        for before, after in (("live", "going"), ("going", "gone")):
            path.with_suffix(f".{before}").rename(path.with_suffix(f".{after}"))
            seen.append(state_of(path, region))
        assert seen == ["live", "going", "gone"]
        save(path, region)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet collected
        assert state_of(path, region) == "gone"
    finally:
        child.kill()
        child.wait(5)


def test_file_that_was_renamed_meanwhile_is_no_reference(tmp_path):
    assert load(tmp_path / "exposer1-000001.live") is None


def test_growth_is_the_most_of_each():
    most = Held(5, 9, 100).or_more(Held(7, 2, 50))
    assert most == Held(7, 9, 100)
    assert most.over(Held(5, 9, 10)) == Held(2, 0, 90)
