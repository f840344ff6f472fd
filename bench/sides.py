"""The driver's handle on a subject: its two halves, each a process in a session of its own that takes orders.

Nothing here waits without a deadline. A half that ends, says nonsense or stays silent past its deadline ends its pair:
both sessions are killed, and `SubjectFailed` says what happened and how the half's own log ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers.rendezvous import sweep

ROOT = Path(__file__).resolve().parent.parent
PEERS_PYTHON = ROOT / "build" / "bench-venv" / "bin" / "python"
FLOOR = ROOT / "build" / "bench" / "floor" / "floor"
ROLES = ("near", "far")
START_S = 90.0  # ours brings nodes up, torch takes seconds to import
STOP_S = 15.0
KILL_S = 5.0
LOG_TAIL = 1500
READ_BYTES = 1 << 16
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


class SubjectFailed(RuntimeError):
    """A subject is not there, ended, gave no answer in time, or said that something went wrong."""


@dataclass(frozen=True)
class Placement:
    """CPUs of the two halves; empty means wherever the kernel likes."""

    name: str
    near: tuple[int, ...] = ()
    far: tuple[int, ...] = ()

    def cpus(self, role: str) -> str:
        """Return the CPUs of one half, as `bench.side` takes them."""
        return ",".join(map(str, self.near if role == "near" else self.far))


FREE = Placement("free")


def placements() -> list[Placement]:
    """Pinned apart where there are two CPUs, and free."""
    cpus = sorted(os.sched_getaffinity(0))
    return [Placement("apart", (cpus[0],), (cpus[1],)), FREE] if len(cpus) > 1 else [FREE]


@dataclass(frozen=True)
class Subject:
    """One way of doing the work.

    Attributes
    ----------
    name : str
        As tables and the report call it.
    module : str
        Of `bench.side`; for a floor, the name that its executable takes.
    options : Mapping
        For the subject's ``connect``.
    interpreter : str
        ``own`` (of this process), ``peers`` (`PEERS_PYTHON`) or ``floor`` (the executable `FLOOR`).
    """

    name: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    interpreter: str = "own"

    def command(self, role: str, folder: Path, cpus: str) -> list[str]:
        """Return what starts one half.

        Raises
        ------
        SubjectFailed
            Its interpreter or executable is not there.
        """
        arguments = [self.module, role, str(folder), json.dumps(dict(self.options)), cpus]
        if self.interpreter == "own":
            return [sys.executable, "-m", "bench.side", *arguments]
        program, make = (
            (FLOOR, "make bench-floor")
            if self.interpreter == "floor"
            else (PEERS_PYTHON, "make bench-peers")
        )
        if not program.exists():
            raise SubjectFailed(f"{self.name}: {program} is not there; `{make}` makes it")
        return [str(program), *([] if program == FLOOR else ["-m", "bench.side"]), *arguments]


class Pair:
    """Both halves of a subject, connected."""

    def __init__(self, subject: Subject, placement: Placement) -> None:
        self.subject = subject
        self.folder = Path(tempfile.mkdtemp(prefix="fab-b-", dir="/tmp"))
        self._halves: dict[str, _Half] = {}
        try:
            for role in ROLES:
                command = subject.command(role, self.folder, placement.cpus(role))
                self._halves[role] = _Half(command, self.folder / f"{role}.log")
            hello = self._gather(time.monotonic() + START_S, "connect", lambda a: "connected" in a)
        except BaseException:
            self.kill()
            raise
        self.can = frozenset(hello["near"].get("can", ()))

    def order(self, order: Mapping[str, Any], deadline_s: float) -> tuple[Any, Any]:
        """Run one workload and return the answers of near and far.

        Raises
        ------
        SubjectFailed
            As the class says; the pair is dead afterwards.
        """
        until = time.monotonic() + deadline_s
        what = f"order {order['run']}"
        try:
            self._halves["far"].say(order)
            self._gather(until, what, lambda a: "armed" in a, roles=("far",))
            self._halves["near"].say(order)
            answers = self._gather(until, what, lambda a: "cpu_ns" in a)
        except BaseException:
            self.kill()
            raise
        return answers["near"], answers["far"]

    def _gather(
        self,
        until: float,
        what: str,
        is_wanted: Callable[[Any], bool],
        roles: tuple[str, ...] = ROLES,
    ) -> dict[str, Any]:
        """Wait for one answer of each of `roles`, watching all of them at once."""
        found: dict[str, Any] = {}
        with selectors.DefaultSelector() as selector:
            for role in roles:
                selector.register(self._halves[role].answers, selectors.EVENT_READ, role)
            while len(found) < len(roles):
                for role in [role for role in roles if role not in found]:
                    line = self._halves[role].line()
                    if line is not None:
                        found[role] = self._parse(role, line, what, is_wanted)
                        selector.unregister(self._halves[role].answers)
                if len(found) < len(roles):
                    ready = selector.select(max(0.0, until - time.monotonic()))
                    self._read(ready, next(role for role in roles if role not in found), what)
        return found

    def _read(self, ready: list[tuple[selectors.SelectorKey, int]], slow: str, what: str) -> None:
        if not ready:
            raise self._failed(slow, f"gave no answer to {what} in time")
        for key, _ in ready:
            self._halves[key.data].read()

    def _parse(self, role: str, line: bytes, what: str, is_wanted: Callable[[Any], bool]) -> Any:
        if not line:
            raise self._failed(role, f"ended instead of answering to {what}")
        try:
            answer = json.loads(line)
        except ValueError:
            raise self._failed(role, f"answered {line[:64]!r} to {what}") from None
        if "error" in answer:
            raise self._failed(role, f"{what}: {answer['error']}")
        if not is_wanted(answer):
            raise self._failed(role, f"answered {line[:64]!r} to {what}")
        return answer

    def _failed(self, role: str, what: str) -> SubjectFailed:
        log = self._halves[role].log.read_text(errors="replace")[-LOG_TAIL:].strip()
        tail = f"\n{log}" if log else ""
        return SubjectFailed(f"{self.subject.name}: the {role} half {what.rstrip()}{tail}")

    def stop(self) -> None:
        """Close both halves' stdin and wait; what still runs after `STOP_S` is killed. Safe to repeat."""
        for half in self._halves.values():
            half.close()
        until = time.monotonic() + STOP_S
        for half in self._halves.values():
            half.wait(until)
        self.kill()

    def kill(self) -> None:
        """Kill both halves and whatever they started that still runs in their sessions. Safe to repeat."""
        for half in self._halves.values():
            half.kill()
        sweep(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)


class _Half:
    """One process, and the unread rest of what it said."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                cwd=ROOT,
                env={**os.environ, **ENVIRONMENT},
                start_new_session=True,
                bufsize=0,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self.answers = self._process.stdin, self._process.stdout
        self._rest = b""
        self._has_ended = False

    def say(self, order: Mapping[str, Any]) -> None:
        with contextlib.suppress(
            BrokenPipeError
        ):  # reading the answer says that it has ended, and why
            self._orders.write(json.dumps(dict(order)).encode() + b"\n")

    def read(self) -> None:
        """Take what is there to read."""
        chunk = os.read(self.answers.fileno(), READ_BYTES)
        self._rest += chunk
        self._has_ended = not chunk

    def line(self) -> bytes | None:
        """Return a line, None while it is not complete, nothing at the end of what is said."""
        line, found, rest = self._rest.partition(b"\n")
        if found:
            self._rest = rest
            return line
        return b"" if self._has_ended else None

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._orders.close()

    def wait(self, until: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, until - time.monotonic()))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(KILL_S)
        self.close()
        self.answers.close()
