"""A client of the soak that keeps more than it began with is found; one that only grew for a moment is not."""

import subprocess
import sys
import time

import psutil
import pytest

from tests.soak import processes
from tests.soak.channels import CHANNELS
from tests.soak.processes import Actor, Violation, held

GROWS = """
import sys, time
print("born", flush=True)
sys.stdin.readline()
kept = {what}
print("grown", flush=True)
if {passes}:
    time.sleep(0.5)
    kept = None
sys.stdin.read()
"""
FILES = '[open("/dev/null") for _ in range(60)]'
MEMORY = "bytearray(b'x' * (60 << 20))"


@pytest.fixture
def grown(tmp_path):
    """Make an old client whose first quiet moment was an empty interpreter's."""
    children = []

    def make(what, passes=False):
        script = GROWS.format(what=what, passes=passes)
        child = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        children.append(child)
        assert child.stdout.readline() == b"born\n"
        first = held(psutil.Process(child.pid))
        child.stdin.write(b"grow\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"grown\n"
        actor = Actor("sink1", "sink", "a", CHANNELS[0], child, tmp_path / "out", is_ready=True)
        actor.born, actor.first = time.monotonic() - 100, first
        return actor

    yield make
    for child in children:
        child.kill()
        child.wait(5)
        child.stdin.close()
        child.stdout.close()


@pytest.mark.parametrize(("what", "named"), [(FILES, "descriptors"), (MEMORY, "private bytes")])
def test_client_that_keeps_more_is_found(grown, monkeypatch, what, named):
    monkeypatch.setattr(processes, "PASSES_S", 0.2)
    with pytest.raises(Violation, match=named):
        grown(what).check_budget()


def test_growth_of_a_moment_is_none_and_is_remembered(grown):
    actor = grown(FILES, passes=True)
    actor.check_budget()
    assert actor.growth().fds >= 60


def test_young_client_has_no_first_moment_yet(grown):
    actor = grown(FILES)
    actor.born, actor.first = time.monotonic(), None
    actor.check_budget()
    assert actor.first is None
