"""A signal that asks a worker to stop, whatever its main thread is doing."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Between the two, the main thread is inside the event's lock: a handler that sets the event would wait for itself.
INSIDE_THE_LOCK = """
import os, signal, threading
from fabric.worker.stop_signals import on_stop_signals
ended = threading.Event()
on_stop_signals(ended.set)
with ended._cond:
    os.kill(os.getpid(), getattr(signal, "{name}"))
    for _ in range(1000):
        pass
ended.wait()
print("ended")
"""


@pytest.mark.promise("P3")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_inside_the_lock_of_an_event_stops_the_worker(name: str) -> None:
    code = INSIDE_THE_LOCK.format(name=name)
    found = subprocess.run(
        [sys.executable, "-c", code], timeout=20, capture_output=True, text=True, check=False
    )
    assert found.stdout == "ended\n", found.stderr
