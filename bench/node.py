"""One node of its own for a measurement, in a directory that goes away with it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

START_S = 20.0
STOP_S = 10.0
POLL_S = 0.005


class BenchNode:
    """A keeper and a daemon in the foreground, below `folder`.

    Parameters
    ----------
    folder : Path
        Of the run; sockets, state and logs of several nodes lie beside each other.
    name : str
    join : str, optional
        ``HOST:PORT`` of the first node.
    more : str
        Further arguments of ``fabricd``.
    listen : sequence of str
        ``HOST:PORT`` of each rail; none: a free port of loopback.
    inside : sequence of str
        What goes before the command, to run it in a namespace.
    environment : Mapping
        Beside this process's own.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "a",
        *more: str,
        join: str | None = None,
        listen: Sequence[str] = (),
        inside: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.socket = folder / f"{name}.sock"
        addresses = listen or (f"127.0.0.1:{_free_port()}",)
        self.listen = addresses[0]
        self._folder, self._name, self._inside = folder, name, inside
        self._environment = {**os.environ, **(environment or {})}
        self._arguments = [*more, *(("--join", join) if join else ())]
        for address in addresses:
            self._arguments += ["--listen", address]
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
        log = self._folder / f"{self._name}.log"
        command = [*self._inside, sys.executable, "-m", "fabric.controlplane.main"]
        command += ["--name", self._name]
        command += [
            "--socket",
            str(self.socket),
            "--state",
            str(self._folder / f"{self._name}.state"),
        ]
        command += self._arguments
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env=self._environment
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the node did not come up:\n{log.read_text()[-4000:]}")
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def pids(self) -> list[int]:
        """Return the processes of the node: keeper, daemon and what it started."""
        found, waiting = [], [self.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            with contextlib.suppress(OSError):  # it ended meanwhile
                text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                waiting += [int(child) for child in text.split()]
        return found

    def cpu_ns(self) -> int:
        """Return what they have used so far, the threads that still run."""
        used = 0
        for pid in self.pids():
            for times in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    used += int(times.read_text().split()[0])
        return used

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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
