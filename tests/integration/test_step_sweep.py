"""A process is killed at every numbered step of every protocol, and what was promised holds each time."""

import os
import tempfile
from pathlib import Path

import pytest

from tests.integration.step_sweep import Sweep, known_steps

pytestmark = [pytest.mark.slow, pytest.mark.promise("P1", "P3", "P9")]


@pytest.fixture(scope="module")
def sweep():
    with tempfile.TemporaryDirectory(prefix="fab-", dir="/tmp") as folder:
        rig = Sweep(Path(folder))
        try:
            rig.record()
            yield rig
        finally:
            rig.close()


@pytest.mark.deadline(120)
@pytest.mark.parametrize("step", known_steps())
def test_process_killed_at_a_step_loses_nothing_and_leaves_nothing(sweep, step):
    assert step in sweep.reach, f"no act reaches {step}: it is dead code, or the sweep lacks an act"
    hit = sweep.hit(step, "kill")
    assert hit, f"{step} was reached in the recording and not when armed"
    sweep.heal()
    sweep.check(hit)
    assert not os.path.exists(f"/proc/{hit}")
