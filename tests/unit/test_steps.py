"""Fault steps: who reaches the armed one gets the signal, once; nobody else notices."""

import os
import signal
import subprocess
import sys

from fabric import steps

TWICE = "from fabric import steps\nfor _ in range(2):\n    steps.at('one.step')\nprint('passed')\n"
WAITS = "import sys\nfrom fabric import steps\nprint(flush=True)\nsys.stdin.readline()\nsteps.at('one.step')\n"


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


def test_page_arms_a_step_in_processes_that_run_already(tmp_path):
    page = tmp_path / "page"
    page.write_bytes(bytes(steps.PAGE_BYTES))
    environment = {**os.environ, "FABRIC_FAULTS": "1", "FABRIC_STEP_PAGE": str(page)}
    ends = []
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", WAITS],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            process.stdout.readline()
            with page.open("r+b") as file:
                file.write(b"one.step:kill\0")
            process.communicate(b"\n", timeout=20)
            ends.append(process.returncode)
    assert ends == [-signal.SIGKILL, 0]
    assert (tmp_path / "page.done").read_text().isdigit()


def test_text_that_names_no_action_arms_nothing():
    assert steps.parse("") is None
    assert steps.parse("one") is None
    assert steps.parse("one:explode") is None
    assert steps.parse("one:kill:x") is None
    assert steps.parse("one:stop:3") == ("one", signal.SIGSTOP, 3)
