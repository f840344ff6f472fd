"""Two processes, one typed message with a tensor, and one transform put in between while messages flow.

`make quickstart`, or `python examples/quickstart.py`. Starts a node of its own in a temporary folder, so a node
that already runs is left alone, and stops all it started. No model, no network; under a minute.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from plugins.shout import Line

import fabric

HERE = Path(__file__).resolve().parent
CHANNEL = "lines"
END = "END"
INTERVAL_S = 0.05  # between two lines
PAUSE_S = 1.0  # lines pass this long before and after the plugin is loaded
SHOWN = 3  # lines printed before and after the transform
STEP_S = 40.0  # no step takes longer


def produce() -> None:
    """Send lines, each with an image of 4 x 6 black pixels, until standard input ends; the last one is END."""
    is_told = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), is_told.set()), daemon=True).start()
    with fabric.attach("producer") as port:
        port.declare(CHANNEL, Line, pattern="stream", delivery="at_least_once")
        out = port.sender(CHANNEL, Line)
        number = 0
        while True:
            text = END if is_told.wait(INTERVAL_S) else f"line {number} of many"
            out.send(Line(number, text, np.zeros((4, 6), np.uint8)), key=b"one", deadline=10.0)
            number += 1
            if text == END:
                break
        out.flush(timeout=STEP_S)  # raises, naming how many, if some were not acknowledged
        print(f"producer: {number} lines sent and acknowledged", flush=True)


def consume() -> None:
    """Receive in order up to END; show the first lines, and the first that were changed on their way."""
    seen = {"as sent": 0, "changed": 0}
    with fabric.attach("consumer") as port:
        port.declare(CHANNEL, Line, pattern="stream", delivery="at_least_once")
        inn = port.receiver(CHANNEL, Line)
        text = ""
        while text.upper() != END:
            line = inn.receive(timeout=STEP_S)
            if line is None or line.number != sum(seen.values()):
                raise SystemExit(f"consumer: {line} came where line {sum(seen.values())} was due")
            text = line.text
            kind = "changed" if line.pixels.max() else "as sent"
            seen[kind] += 1
            if seen[kind] <= SHOWN:
                print(
                    f"consumer: {text!r}, {line.pixels.dtype} pixels of {line.pixels.max()}",
                    flush=True,
                )
            line.ack()
            line.release()
    print(
        f"consumer: {seen['as sent']} lines as sent, then {seen['changed']} changed on their way",
        flush=True,
    )
    if not all(seen.values()):
        raise SystemExit("consumer: the transform should have come in between, while lines flowed")


class Quickstart:
    """The node and the two processes; `close` ends whatever still runs."""

    def __init__(self, folder: Path) -> None:
        self.environment = {**os.environ, "FABRIC_SOCKET": str(folder / "node.sock")}
        self.state = str(folder / "state")
        self.processes: list[subprocess.Popen[str]] = []
        self.relays: list[threading.Thread] = []
        self.flowing = threading.Event()
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
        """Start this file as `role` in a process of its own; what it prints is shown, and noticed in `flowing`."""
        command = [sys.executable, str(HERE / "quickstart.py"), role]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(command, env=self.environment, text=True, **pipes)
        self.processes.append(process)
        self.relays.append(threading.Thread(target=self.relay, args=(process,)))
        self.relays[-1].start()
        return process

    def relay(self, process: subprocess.Popen[str]) -> None:
        """Show what a process prints, line by line."""
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if line.startswith("consumer: 'line"):
                self.flowing.set()

    def run(self) -> None:
        """Do all of it; raises `subprocess.CalledProcessError` or `SystemExit` where something is wrong."""
        self.say("a node of its own")
        self.fabricctl("up", "--name", "quickstart", "--state", self.state)
        self.is_up = True
        self.say("a producer and a consumer: lines over a direct lane in shared memory")
        consumer, producer = self.start("consume"), self.start("produce")
        if not self.flowing.wait(STEP_S):
            raise SystemExit("no line came through")
        time.sleep(PAUSE_S)
        self.say("a transform between them, from one file, while lines flow")
        plugin = os.path.relpath(HERE / "plugins" / "shout.py")
        self.fabricctl("plugin", "load", plugin, "--channel", CHANNEL, "--kind", "transform")
        time.sleep(PAUSE_S)
        for process in (producer, consumer):
            if process.stdin:
                process.stdin.close()
            if process.wait(STEP_S):
                raise SystemExit(f"a process failed with exit status {process.returncode}")
        for relay in self.relays:
            relay.join(STEP_S)
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
    try:
        roles.get(sys.argv[1] if len(sys.argv) > 1 else "", main)()
    except (
        KeyboardInterrupt
    ):  # Ctrl-C reaches the producer and the consumer, too; main has ended the node
        sys.exit(128 + signal.SIGINT)
