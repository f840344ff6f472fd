"""A process is killed at every named step of every protocol, and what was promised holds each time."""

import os
import tempfile
from pathlib import Path

import pytest

from tests.integration.step_sweep import Sweep, known_steps

pytestmark = [pytest.mark.sweep, pytest.mark.promise("P1", "P3", "P9")]


class Rigs:
    """One rig for all steps; after a failure the next step gets a fresh one."""

    def __init__(self):
        self._rig = self._folder = None
        self.reach = {}

    def get(self):
        if self._rig is None:
            self._folder = tempfile.TemporaryDirectory(prefix="fab-", dir="/tmp")
            self._rig = Sweep(Path(self._folder.name))
            if not self.reach:
                self._rig.record()
                self.reach = self._rig.reach
            self._rig.reach = self.reach
        return self._rig

    def drop(self):
        if self._rig is not None:
            rig, self._rig = self._rig, None
            rig.close()
            self._folder.cleanup()


@pytest.fixture(scope="module")
def rigs():
    found = Rigs()
    yield found
    found.drop()


@pytest.mark.deadline(180)
@pytest.mark.parametrize("step", known_steps())
def test_process_killed_at_a_step_loses_nothing_and_leaves_nothing(rigs, step):
    try:
        sweep = rigs.get()
        assert step in sweep.reach, f"no act reaches {step}: dead code, or the sweep lacks an act"
        hit = sweep.hit(step, "kill")
        assert hit, f"{step} was reached in the recording and not when armed"
        sweep.heal()
        sweep.check(hit)
        assert not os.path.exists(f"/proc/{hit}")
    except BaseException:
        rigs.drop()
        raise
