"""One process of the soak, seen from outside: its reports, and what it holds."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fabric import limits
from tests.soak.channels import Channel

# A client's first quiet moment is this long after it was ready; from AGED_S on it may hold only so much more.
WARM_S, AGED_S = 10.0, 30.0
PASSES_S = 3.0  # what a call under way holds is given back within this
CLIENT_FDS_MORE = 40  # lanes to peers that came later
CLIENT_THREADS_MORE = 3
CLIENT_PRIVATE_BYTES_MORE = 40 << 20


class Violation(AssertionError):
    """Something promised does not hold."""


@dataclass(frozen=True)
class Held:
    """What a process holds."""

    fds: int
    threads: int
    private_bytes: int

    def or_more(self, other: Held) -> Held:
        """Return the larger of each."""
        return Held(*map(max, zip(astuple(self), astuple(other), strict=True)))

    def over(self, first: Held) -> Held:
        """Return how much more this is than what was held first."""
        return Held(*(a - b for a, b in zip(astuple(self), astuple(first), strict=True)))


@dataclass
class Actor:
    """One process and the reports that it wrote."""

    name: str
    role: str
    node: str
    channel: Channel
    popen: subprocess.Popen[bytes]
    output: Path
    born: float = field(default_factory=time.monotonic)
    stops: list[tuple[float, float]] = field(default_factory=list)
    beats: list[float] = field(default_factory=list)
    work: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    is_ready: bool = False
    ready_at: float = 0.0  # when it last said so: it says so again after it attached anew
    first: Held | None = None
    most: Held | None = None
    _read: int = 0

    def reports(self) -> list[dict[str, Any]]:
        """Take in the whole lines that are new."""
        with self.output.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        found = [json.loads(line) for line in data.splitlines()]
        for row in found:
            if "ready" in row:
                self.is_ready, self.ready_at = True, row["at"]
            if "beat" in row:
                self.beats.append(row["at"])
                self.work, self.errors = row["beat"], row["errors"]
        return found

    def log(self) -> str:
        return self.output.with_suffix(".err").read_text()[-3000:]

    def forgives(self, row: dict[str, Any]) -> bool:
        """Whether a call that overran did so because its process was stopped by the soak itself."""
        stopped = sum(
            max(0.0, min(end, row["until"]) - max(start, row["since"])) for start, end in self.stops
        )
        return bool(row["until"] - row["since"] - stopped <= row["allowed_s"] + 3.0)

    def growth(self) -> Held:
        """Return the most that it held over its first quiet moment."""
        return self.most.over(self.first) if self.most and self.first else Held(0, 0, 0)

    def check_budget(self) -> None:
        """Hold what it has against what it had at its first quiet moment; what it is at work with may pass."""
        if not self.is_ready or (age := time.monotonic() - self.born) < WARM_S:
            return
        now = held(psutil.Process(self.popen.pid))
        if self.first is None:
            self.first = self.most = now
            return
        self.most = (self.most or now).or_more(now)
        deadline = time.monotonic() + PASSES_S
        while age > AGED_S and (wrong := self._over_budget(now, self.first)):
            if time.monotonic() > deadline:
                raise Violation(
                    f"{self.name} after {age:.0f} s holds {now}, first {self.first}: {wrong}"
                )
            time.sleep(0.05)
            now = held(psutil.Process(self.popen.pid))

    def _over_budget(self, now: Held, first: Held) -> str:
        """Return what there is too much of, or nothing."""
        mapped = limits.LEASES_MAPPED_MAX if self.role == "getter" else 0
        more = now.over(first)
        for what, found, most in (
            ("descriptors", more.fds, CLIENT_FDS_MORE + mapped),
            ("threads", more.threads, CLIENT_THREADS_MORE),
            ("private bytes", more.private_bytes, CLIENT_PRIVATE_BYTES_MORE),
        ):
            if found > most:
                return f"{found} {what} more, the budget is {most}"
        return ""


def held(process: psutil.Process) -> Held:
    """Count what a process holds now."""
    return Held(process.num_fds(), process.num_threads(), private_bytes(process))


def private_bytes(process: psutil.Process) -> int:
    """Anonymous memory in use: segments are files, and counted elsewhere."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) << 10
