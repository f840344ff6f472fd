"""Two processes, one typed message with a tensor, and one transform put in between while messages flow.

`make quickstart`, or `python examples/quickstart.py`. Starts a node of its own in a temporary folder, so a node
that already runs is left alone, and stops all it started. No model, no network; under a minute.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from plugins.shout import Line

import fabric

HERE = Path(__file__).resolve().parent
CHANNEL = "lines"
LINES = 60
INTERVAL_S = 0.05  # between two lines, so that there is time to load the plugin meanwhile
SHOWN = 3  # lines printed before and after the transform
STEP_S = 40.0  # no step takes longer


def produce() -> None:
    """Send `LINES` lines, each with an image of 4 x 6 black pixels, and wait until all were delivered."""
    with fabric.attach("producer") as port:
        port.declare(CHANNEL, Line, pattern="stream", delivery="at_least_once")
        out = port.sender(CHANNEL, Line)
        for number in range(LINES):
            pixels = np.zeros((4, 6), np.uint8)
            out.send(Line(number, f"line {number} of many", pixels), key=b"one", deadline=10.0)
            time.sleep(INTERVAL_S)
        out.flush(timeout=STEP_S)  # raises, naming how many, if some were not acknowledged
        print(f"producer: {LINES} lines sent and acknowledged", flush=True)


def consume() -> None:
    """Receive `LINES` lines in order; show the first ones and the first ones that were changed on their way."""
    plain = changed = 0
    with fabric.attach("consumer") as port:
        port.declare(CHANNEL, Line, pattern="stream", delivery="at_least_once")
        inn = port.receiver(CHANNEL, Line)
        print("consumer: ready", flush=True)
        for expected in range(LINES):
            line = inn.receive(timeout=STEP_S)
            if line is None or line.number != expected:
                raise SystemExit(f"consumer: {line} came where line {expected} was due")
            is_changed = line.text.isupper()
            plain, changed = plain + (not is_changed), changed + is_changed
            if (changed if is_changed else plain) <= SHOWN:
                pixels = f"{line.pixels.dtype}{list(line.pixels.shape)} of {line.pixels.max()}"
                print(f"consumer: {line.text!r} with pixels {pixels}", flush=True)
            line.ack()
            line.release()
    print(f"consumer: {plain} lines as sent, then {changed} through the transform", flush=True)
    if not plain or not changed:
        raise SystemExit("consumer: the transform should have come in between, while lines flowed")


class Quickstart:
    """The node and the two processes; `close` ends whatever still runs."""

    def __init__(self, folder: Path) -> None:
        self.environment = {**os.environ, "FABRIC_SOCKET": str(folder / "node.sock")}
        self.state = str(folder / "state")
        self.processes: list[subprocess.Popen[str]] = []
        self.is_up = False

    def say(self, text: str) -> None:
        """Print what comes next."""
        print(f"\n== {text}", flush=True)

    def fabricctl(self, *arguments: str) -> None:
        """Run one `fabricctl` command, shown as a user would type it."""
        print(f"$ fabricctl {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", "fabric.cli.main", *arguments]
        subprocess.run(command, env=self.environment, check=True, timeout=STEP_S)

    def start(self, role: str) -> subprocess.Popen[str]:
        """Start this file as `role` in a process of its own."""
        command = [sys.executable, str(HERE / "quickstart.py"), role]
        process = subprocess.Popen(command, env=self.environment, text=True)
        self.processes.append(process)
        return process

    def run(self) -> None:
        """Do all of it; raises `subprocess.CalledProcessError` or `SystemExit` where something is wrong."""
        self.say("a node of its own")
        self.fabricctl("up", "--name", "quickstart", "--state", self.state)
        self.is_up = True
        self.say(f"a producer and a consumer: {LINES} lines over a direct lane in shared memory")
        both = [self.start("consume"), self.start("produce")]
        time.sleep(LINES * INTERVAL_S / 3)  # let some lines pass as they were sent
        self.say("a transform between them, from one file, while lines flow")
        plugin = os.path.relpath(HERE / "plugins" / "shout.py")
        self.fabricctl("plugin", "load", plugin, "--channel", CHANNEL, "--kind", "transform")
        for process in both:
            if process.wait(timeout=STEP_S):
                raise SystemExit(f"{process.args[-1]} failed with exit status {process.returncode}")
        self.say("what the plugin printed, where messages go, and whether every one has ended")
        self.fabricctl("plugin", "logs", "shout", "--lines", "3")
        self.fabricctl("topology")
        self.fabricctl("audit")

    def close(self) -> None:
        """End the processes and the node."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait(timeout=5)
        if self.is_up:
            self.say("stop")
            self.fabricctl("down")


def main() -> None:
    """Run the quickstart in a temporary folder and remove it."""
    started = time.monotonic()
    folder = Path(
        tempfile.mkdtemp(prefix="fabq-", dir="/tmp")
    )  # short: a socket's path is at most 107 bytes
    quickstart = Quickstart(folder)
    try:
        quickstart.run()
    finally:
        quickstart.close()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\ndone in {time.monotonic() - started:.1f} s; read on: README.md")


if __name__ == "__main__":
    roles = {"produce": produce, "consume": consume}
    roles.get(sys.argv[1] if len(sys.argv) > 1 else "", main)()
