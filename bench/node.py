"""One node of its own for a measurement, in a directory that goes away with it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

START_S = 20.0
STOP_S = 10.0


class BenchNode:
    """A keeper and a daemon in the foreground, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "a.sock"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the keeper."""
        if self._process is None:
            raise RuntimeError("the node was not started")
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until its attach socket answers.

        Raises
        ------
        RuntimeError
            It ended or did not listen within `START_S`; the message ends with its log.
        """
        log = self._folder / "node.log"
        command = [sys.executable, "-m", "fabric.controlplane.main", "--name", "bench"]
        command += ["--socket", str(self.socket), "--state", str(self._folder / "state")]
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [*command, "--listen", "127.0.0.1:0"], stdout=stream, stderr=stream
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the node did not come up:\n{log.read_text()[-4000:]}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def stop(self) -> None:
        """End it; safe to repeat."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S)
