"""Fault steps: who reaches the armed one gets the signal, once; nobody else notices."""

import os
import signal
import subprocess
import sys

from fabric import steps

TWICE = "from fabric import steps\nfor _ in range(2):\n    steps.at('one.step')\nprint('passed')\n"


def run(source, **variables):
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=20
    )


def test_process_that_reaches_the_armed_step_is_killed_there():
    done = run(TWICE, FABRIC_FAULTS="1", FABRIC_STEP="one.step:kill")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_step_is_armed_for_its_nth_pass():
    assert (
        run(TWICE, FABRIC_FAULTS="1", FABRIC_STEP="one.step:term:2").returncode == -signal.SIGTERM
    )
    assert run(TWICE, FABRIC_FAULTS="1", FABRIC_STEP="one.step:term:3").stdout == "passed\n"


def test_step_happens_once_in_all_processes_that_share_the_mark(tmp_path):
    variables = {
        "FABRIC_FAULTS": "1",
        "FABRIC_STEP": "one.step:kill",
        "FABRIC_STEP_MARK": str(tmp_path / "mark"),
    }
    assert run(TWICE, **variables).returncode == -signal.SIGKILL
    assert run(TWICE, **variables).stdout == "passed\n"
    assert (tmp_path / "mark").read_text().isdigit()


def test_nothing_happens_without_faults_allowed_or_at_other_steps():
    assert run(TWICE, FABRIC_STEP="one.step:kill", FABRIC_FAULTS="").stdout == "passed\n"
    assert run(TWICE, FABRIC_FAULTS="1", FABRIC_STEP="other.step:kill").stdout == "passed\n"


def test_text_that_names_no_action_arms_nothing():
    assert steps.parse("") is None
    assert steps.parse("one") is None
    assert steps.parse("one:explode") is None
    assert steps.parse("one:kill:x") is None
    assert steps.parse("one:stop:3").left == 3
