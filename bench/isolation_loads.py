"""What disturbs, and what uses as much of the machine without touching the fabric.

Each disturbance has `on`, `off`, `between` (called between round trips while it is on) and a `control` that runs while
it is off: on few CPUs another busy process costs round trips something by itself, which is not the fabric's doing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import fabric
from bench.isolation_rig import ROOT, START_S, Ping, RoundTrips, declare
from fabric import errors
from fabric.controlplane.api.client import ControlClient
from fabric.limits import CREDIT_MESSAGES

SLOW_S = 0.001  # what the slow consumer takes for a message
OFFERED = 16  # messages offered at once to the stopped module
CRASH_EVERY_S = 0.05  # a message that ends its stage host is offered this often
PLUGIN = """
import os
import fabric

@fabric.message("isolation.ping", version=1)
class Ping:
    step: int
    data: fabric.Tensor["n", "f32"]

@fabric.transform("crash", accepts=Ping, produces=Ping, on_error="fail", max_expansion=1.0)
class Crash:
    def apply(self, batch, ctx):
        os._exit(1)
"""
MODULE = """
import fabric

@fabric.message("isolation.ping", version=1)
class Ping:
    step: int
    data: fabric.Tensor["n", "f32"]

class Sink(fabric.Module):
    inn: fabric.In[Ping]

    def on_inn(self, message):
        pass
"""
YAML = """
version: 1
plugins: [{folder}/crash.py]
channels:
  crash: {{type: isolation.ping, pattern: stream, transforms: [crash]}}
  still: {{type: isolation.ping, pattern: stream}}
modules:
  sink: {{class: "{folder}/sink.py:Sink", node: bench, channels: {{inn: still}}}}
"""


class Idle:
    """No load."""

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""


class Load:
    """A process of this file that runs while it is wanted: ``python -m bench.isolation_loads ROLE ARGUMENT``."""

    def __init__(self, role: str, argument: str = "-") -> None:
        self._command = [sys.executable, "-m", "bench.isolation_loads", role, argument]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and give it the time to get going."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, cwd=ROOT)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def stop(self) -> None:
        """End it with everything that it started."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(START_S)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


class Unread:
    """One channel of a hundred is full, and nobody reads it."""

    name = "1 of 100 channels unread"
    control: Any = Idle()

    def __init__(self, trips: RoundTrips) -> None:
        self._trips = trips

    def on(self) -> None:
        """Fill it."""
        self._trips.fill_unread()

    def between(self) -> None:
        """Try again: it stays full."""
        self._trips.fill_unread()

    def off(self) -> None:
        """Read it empty."""
        self._trips.drain_unread()

    def facts(self) -> str:
        """It was full in every block, or `on` had failed."""
        return "full throughout"


class Stopped:
    """One module is stopped (SIGSTOP) while it is sent to."""

    name = "one module stopped"
    control: Any = Idle()

    def __init__(self, trips: RoundTrips) -> None:
        self._trips = trips
        self._out = trips.port.sender("still", Ping)
        self._out.send(Ping(step=0, data=trips.data))
        self._out.flush(START_S)

    def on(self) -> None:
        """Stop it and fill its channel."""
        self._pid = int(row_of(self._trips, "module", "sink")["pid"])
        os.kill(self._pid, signal.SIGSTOP)
        for _ in range(CREDIT_MESSAGES // OFFERED):
            self.between()

    def between(self) -> None:
        """Offer some more; where nothing is taken, the channel is full."""
        try:
            for _ in range(OFFERED):
                self._out.send(Ping(step=0, data=self._trips.data), deadline=0)
        except (errors.WouldBlock, errors.DeadlineExceeded):
            return

    def off(self) -> None:
        """Let it go on."""
        os.kill(self._pid, signal.SIGCONT)
        self._out.flush(START_S)

    def facts(self) -> str:
        """Whether it was stopped for so long that it was killed."""
        return f"restarted {row_of(self._trips, 'module', 'sink')['restarts']} times"


class Crashing:
    """A transform ends its stage host with every message; the node starts the host again and again."""

    name = "one plugin crashing in a loop"

    def __init__(self, trips: RoundTrips) -> None:
        self._trips = trips
        self._out = trips.port.sender("crash", Ping)
        self._inn = trips.other.receiver("crash", Ping)
        self._next = 0.0
        self.control = Load("restart")

    def on(self) -> None:
        """Offer the first message."""
        self.between()

    def between(self) -> None:
        """Offer one now and then, so that no restarted host lives long."""
        if time.monotonic() > self._next:
            self._next = time.monotonic() + CRASH_EVERY_S
            try:
                self._out.send(Ping(step=0, data=self._trips.data), deadline=0)
            except (errors.WouldBlock, errors.BrokenError, errors.DeadlineExceeded):
                return

    def off(self) -> None:
        """Offer no more."""

    def facts(self) -> str:
        """How often it ended."""
        restarts = int(row_of(self._trips, "plugin", "crash")["restarts"])
        if restarts == 0:
            raise RuntimeError("the plugin never crashed: nothing was measured")
        return f"restarted {restarts} times"


class Flooding:
    """A process floods a channel whose consumer takes a millisecond for each message."""

    name = "one process flooding a slow consumer"

    def __init__(self, trips: RoundTrips) -> None:
        self._trips = trips
        self._slow = Load("slow", trips.socket)
        self._flood = Load("flood", trips.socket)
        self.control = Load("pipe")

    def on(self) -> None:
        """Start both."""
        self._slow.start()
        self._flood.start()

    def between(self) -> None:
        """It floods by itself."""

    def off(self) -> None:
        """End both."""
        self._flood.stop()
        self._slow.stop()

    def facts(self) -> str:
        """How many messages the slow consumer took."""
        return f"{row_of(self._trips, 'channel', 'flood')['delivered']} messages consumed"


DISTURBANCES: tuple[Any, ...] = (Unread, Stopped, Crashing, Flooding)


def row_of(trips: RoundTrips, kind: str, name: str) -> dict[str, Any]:
    """Return one row of a listing of the node."""
    with ControlClient(trips.socket + ".ctl", deadline_s=START_S) as control:
        return next(row for row in control.ls(kind) if row["name"] == name)


def apply_plan(socket: str, folder: Path) -> None:
    """Give the node the crashing plugin and the module."""
    (folder / "crash.py").write_text(PLUGIN)
    (folder / "sink.py").write_text(MODULE)
    with ControlClient(socket + ".ctl", deadline_s=START_S) as control:
        control.apply(YAML.format(folder=folder))


# ------------------------------------------------------------------ processes
def flood(socket: str) -> None:
    """Send as fast as the slow consumer lets."""
    with fabric.attach("flood", socket=socket) as port:
        declare(port, "flood")
        out, data = port.sender("flood", Ping), np.zeros(4096, np.float32)
        ready()
        while True:
            out.send(Ping(step=0, data=data))


def slow(socket: str) -> None:
    """Take a message a millisecond."""
    with fabric.attach("slow", socket=socket) as port:
        declare(port, "flood")
        inn = port.receiver("flood", Ping)
        ready()
        for message in inn:
            time.sleep(SLOW_S)
            message.release()


def pipe(_: str) -> None:
    """Flood a pipe whose reader is as slow: the same processes without the fabric."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        while os.read(read, 1 << 14):
            time.sleep(SLOW_S)
        os._exit(0)
    os.close(read)
    data = bytes(1 << 14)
    ready()
    try:
        while True:
            os.write(write, data)
    finally:
        os.close(write)
        os.waitpid(child, 0)


def restart(_: str) -> None:
    """Start what a stage host is made of, again and again, with the pauses of a supervisor."""
    command = [sys.executable, "-c", "import fabric.worker.stage_host, fabric._native, numpy"]
    pause = 0.2
    ready()
    while True:
        subprocess.run(command, check=False)
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def ready() -> None:
    """Tell the bench that this process is at work."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def leave(*_: object) -> None:
    """End at SIGTERM, through every `with`."""
    raise SystemExit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    roles = {"flood": flood, "slow": slow, "pipe": pipe, "restart": restart}
    roles[sys.argv[1]](sys.argv[2])
