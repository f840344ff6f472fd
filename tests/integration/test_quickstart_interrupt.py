"""Ctrl-C in the quickstart ends everything it started, without a traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.integration.kill_nodes import wait_for

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.py"


@pytest.mark.promise("P9")
@pytest.mark.parametrize("when", ["consumer: 'line", "== a producer"])
def test_interrupt_leaves_neither_traceback_nor_process(when):
    process = subprocess.Popen(
        [sys.executable, str(QUICKSTART)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if line.startswith(when):
                break
        started = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait(5)
    assert "Traceback" not in told, told
    assert process.returncode == 128 + signal.SIGINT
    wait_for("every process ended", lambda: not any(p.is_running() for p in started))
