"""Network namespaces joined by rails, for measurements that need more than loopback: veth pairs shaped by `tbf`.

Everything of a run has its process id in its name. `Bed.close` removes it; what a killed run has left, processes in its
namespaces included, goes with the `sweep` at the start of a later one. Needs root, `ip` and `tc`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

PREFIX = "fab-paths-"
BURST, LATENCY = "256kb", "20ms"
COMMAND_S = 10.0
GONE_S = 5.0
NOWHERE = (
    "02:00:00:00:00:99"  # a station that nobody is: what is sent there is lost without a link event
)


class NetworkUnavailable(RuntimeError):
    """There can be no namespaces here, and why."""


def reason_against() -> str:
    """Return why there can be no namespaces here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{missing[0]} is not installed (Debian: iproute2)"
    try:
        with Bed() as bed:
            bed.namespace("a")
            bed.namespace("b")
            Rail(bed, 0, "a", "b", 1000)
    except NetworkUnavailable as error:
        return str(error)
    return ""


def run(*command: str) -> str:
    """Run a tool; returns what it says.

    Raises
    ------
    NetworkUnavailable
        It fails, or takes longer than `COMMAND_S`.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkUnavailable(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        raise NetworkUnavailable(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Bed:
    """The namespaces of one measurement; a context manager."""

    def __init__(self) -> None:
        sweep()
        self._names: list[str] = []

    def __enter__(self) -> Bed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def full(self, name: str) -> str:
        """Return what the system calls a namespace."""
        return f"{PREFIX}{os.getpid()}-{name}"

    def namespace(self, name: str) -> str:
        """Make one, with loopback; returns its full name."""
        full = self.full(name)
        self._names.append(full)
        run("ip", "netns", "add", full)
        run("ip", "-n", full, "link", "set", "lo", "up")
        return full

    def inside(self, name: str) -> list[str]:
        """Return what to put before a command to run it in a namespace."""
        return ["ip", "netns", "exec", self.full(name)]

    def close(self) -> None:
        """Kill what still runs in them, and remove them with their links. Safe to repeat."""
        for full in self._names:
            remove(full)
        self._names.clear()


class Rail:
    """One veth pair between two namespaces, an address on each end, both ends shaped to `mbit` (0: not at all).

    The ends are called ``r{number}``; addresses are ``10.77.{number}.1`` and ``.2``.
    """

    def __init__(self, bed: Bed, number: int, near: str, far: str, mbit: int) -> None:
        self.number, self.mbit = number, mbit
        self.device = f"r{number}"
        self.near_address, self.far_address = f"10.77.{number}.1", f"10.77.{number}.2"
        self._ends = (bed.full(near), bed.full(far))
        first, second = self._ends
        pair = ("type", "veth", "peer", "name", self.device, "netns", second)
        run("ip", "-n", first, "link", "add", self.device, *pair)
        for full, address in zip(self._ends, (self.near_address, self.far_address), strict=True):
            run("ip", "-n", full, "address", "add", f"{address}/24", "dev", self.device)
            run("ip", "-n", full, "link", "set", self.device, "up")
        self.shape(mbit)

    def shape(self, mbit: int) -> None:
        """Set the rate of both ends."""
        self.mbit = mbit
        for full in self._ends if mbit else ():
            shape(full, self.device, mbit)

    def down(self) -> None:
        """Take the near end down: both ends lose the carrier, and are told."""
        run("ip", "-n", self._ends[0], "link", "set", self.device, "down")

    def up(self) -> None:
        """Bring it back."""
        run("ip", "-n", self._ends[0], "link", "set", self.device, "up")

    def swallow(self) -> None:
        """Lose every frame of both directions, without a link event."""
        for full, address in zip(self._ends, (self.far_address, self.near_address), strict=True):
            neighbour = ("replace", address, "lladdr", NOWHERE, "nud", "permanent")
            run("ip", "-n", full, "neighbour", *neighbour, "dev", self.device)

    def heal(self) -> None:
        """Carry frames again."""
        for full, address in zip(self._ends, (self.far_address, self.near_address), strict=True):
            run("ip", "-n", full, "neighbour", "del", address, "dev", self.device)


def shape(full: str, device: str, mbit: int) -> None:
    """Shape what leaves a device of a namespace."""
    bucket = ("tbf", "rate", f"{mbit}mbit", "burst", BURST, "latency", LATENCY)
    run("tc", "-n", full, "qdisc", "replace", "dev", device, "root", *bucket)


# ------------------------------------------------------------------ what is left
def sweep() -> None:
    """Remove the namespaces of runs that are no more."""
    with contextlib.suppress(NetworkUnavailable):
        for line in run("ip", "netns", "list").splitlines():
            owner = re.match(rf"{PREFIX}(\d+)-", line)
            if owner and not is_bench(int(owner[1])):
                remove(line.split()[0])


def is_bench(pid: int) -> bool:
    """Whether a run with that process id is still there."""
    try:
        return b"python" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def remove(full: str) -> None:
    """Kill the processes of a namespace and remove it: its devices stay as long as one of them runs."""
    until = time.monotonic() + GONE_S
    with contextlib.suppress(NetworkUnavailable):
        while pids := run("ip", "netns", "pids", full).split():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        run("ip", "netns", "del", full)
