"""Watch and end processes without a race: by pidfd, so that a number used again is never mistaken."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from typing import Any

from fabric import limits

NAME_CHARACTERS = 80  # of a command line, when a process is named


class Deadline:
    """A point in monotonic time."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left_s(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self._at - time.monotonic())

    def has_passed(self) -> bool:
        """Tell whether no time is left."""
        return self.left_s() == 0.0


class Watched:
    """Processes that are expected to end; those gone already do not count."""

    def __init__(self, pids: Iterable[Any] = ()) -> None:
        self._pidfds: dict[int, int] = {}
        self.add(pids)

    def __len__(self) -> int:
        return len(self._pidfds)

    def add(self, pids: Iterable[Any]) -> None:
        """Watch these too."""
        for pid in pids:
            if not isinstance(pid, int) or pid <= 0 or pid in self._pidfds:
                continue
            try:
                self._pidfds[pid] = os.pidfd_open(pid)
            except OSError:  # ended before it could be watched
                continue

    def wait(self, seconds: float) -> list[tuple[int, str]]:
        """Wait until all have ended; return the (pid, name) of those that have not by then."""
        deadline = Deadline(seconds)
        with selectors.DefaultSelector() as selector:
            for pid, pidfd in self._pidfds.items():
                selector.register(pidfd, selectors.EVENT_READ, pid)
            while selector.get_map() and not deadline.has_passed():
                for key, _ in selector.select(deadline.left_s()):
                    selector.unregister(key.fileobj)
            left = [(key.data, _name(key.data)) for key in selector.get_map().values()]
        for pidfd in self._pidfds.values():
            os.close(pidfd)
        self._pidfds.clear()
        return left


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().decode(errors="replace").strip("\0").split("\0")
    except OSError:
        return "unknown"
    # Program and script by their last part: a long install path must not push out what tells them apart.
    words[:2] = [os.path.basename(word) or word for word in words[:2]]
    return " ".join(words)[:NAME_CHARACTERS] or "unknown"


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ask a process of ours to stop; kill its session when it does not within `seconds`."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(limits.CLOSE_S)


def accepts(path: str) -> bool:
    """Tell whether a process listens on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(limits.CLOSE_S)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
