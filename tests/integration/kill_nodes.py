"""Real nodes and processes for the kill tests: start, kill -9, watch, and count what is left.

Everything lives in one short folder per test and ends with it. Waits have a deadline and say what they wait for.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fabric.controlplane.api.client import ControlClient

ROLES = Path(__file__).with_name("kill_roles.py")
USE_ROLES = Path(__file__).with_name("use_roles.py")
START_S = 20.0
STOP_S = 15.0
PROMPT_S = 1.0  #: within this, what was not touched goes on and what was is redone or ends typed


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Return the first true value of `condition`; fail naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.01)


@dataclass(frozen=True)
class Footprint:
    """What a node holds: descriptors by process, shared memory that backs them, processes under the keeper."""

    keeper_fds: int
    daemon_fds: int
    shared_bytes: int
    processes: int

    def within(self, before: Footprint) -> bool:
        """Nothing more than before."""
        return all(getattr(self, f) <= getattr(before, f) for f in self.__dataclass_fields__)


class Node:
    """A keeper and a daemon, `python -m fabric.controlplane.main`."""

    def __init__(
        self, folder: Path, name: str, join: str | None = None, options: tuple[str, ...] = ()
    ) -> None:
        self.name = name
        self._options = options
        self.address = "127.0.0.1:0"  #: to listen on; a test that restarts the node fixes the port
        self.inside: list[str] = []  #: what runs its command elsewhere, as in a network namespace
        self.folder = folder / name
        self.folder.mkdir()
        self.socket = str(self.folder / "s")
        self._secret = folder / "secret"
        if not self._secret.exists():
            self._secret.write_text("the shared secret of the kill tests")
            self._secret.chmod(0o600)
        self._join = join
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Node:
        """Start it and wait until it serves."""
        command = [*self.inside, sys.executable, "-m", "fabric.controlplane.main"]
        command += ["--name", self.name]
        command += ["--socket", self.socket, "--state", str(self.folder / "state")]
        command += ["--listen", self.address, "--secret-file", str(self._secret)]
        command += ["--join", self._join] if self._join else []
        command += self._options
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(f"node {self.name} serving ({self.folder}/log)", self._is_serving, START_S)
        return self

    def _is_serving(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-4000:]
        with self.control() as control:
            return control.is_serving()

    def control(self) -> ControlClient:
        return ControlClient(self.socket + ".ctl", deadline_s=10.0)

    @property
    def keeper_pid(self) -> int:
        """Of the process that was started, also while its daemon does not answer."""
        assert self._process is not None
        return self._process.pid

    def is_running(self) -> bool:
        """Tell whether its keeper lives."""
        return self._process is not None and self._process.poll() is None

    def call(self, verb: str, *arguments: Any, **options: Any) -> Any:
        """Call one control verb on a fresh connection."""
        with self.control() as control:
            return getattr(control, verb)(*arguments, **options)

    @property
    def listen(self) -> str:
        return str(self.call("status")["listen"])

    @property
    def keeper(self) -> psutil.Process:
        return psutil.Process(int(self.call("status")["keeper_pid"]))

    @property
    def daemon_pid(self) -> int:
        return int(self.call("status")["pid"])

    def kill_daemon(self) -> int:
        """kill -9 the daemon, wait until the keeper's new one serves; returns its pid."""
        old = self.daemon_pid
        with contextlib.suppress(ProcessLookupError):  # its keeper may be replacing it already
            os.kill(old, signal.SIGKILL)

        def is_new() -> bool:
            try:
                return self._is_serving() and self.daemon_pid != old
            except Exception:
                return False

        wait_for("a new daemon from the keeper", is_new, START_S)
        return old

    def audit(self) -> dict[str, Any]:
        return dict(self.call("audit"))

    def footprint(self) -> Footprint:
        """Count what the keeper and the daemon hold now."""
        keeper, daemon = self.keeper, psutil.Process(self.daemon_pid)
        return Footprint(
            keeper.num_fds(),
            daemon.num_fds(),
            shared_bytes(keeper.pid, daemon.pid),
            len(keeper.children(recursive=True)),
        )

    def wait_ended(self) -> None:
        """Collect a keeper that was killed."""
        assert self._process is not None
        self._process.wait(STOP_S)

    def stop(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_S)


def shared_bytes(*pids: int) -> int:
    """Size of the memfds that these processes hold, each counted once.

    Size, not touched pages: a ring that is in use goes on touching its own.
    """
    found: dict[int, int] = {}
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if "memfd:" in os.readlink(link):
                    status = link.stat()
                    found[status.st_ino] = status.st_size
            except FileNotFoundError:
                continue  # closed while we looked
    return sum(found.values())


@dataclass
class Worker:
    """One process of `kill_roles.py` and the reports that it has written."""

    process: subprocess.Popen[bytes]
    output: Path
    name: str
    killed: bool = False
    _read: list[dict[str, Any]] = field(default_factory=list)

    def reports(self, key: str | None = None) -> list[dict[str, Any]]:
        """All whole lines so far, or those with `key`."""
        lines = self.output.read_text().splitlines(keepends=True)
        self._read = [json.loads(line) for line in lines if line.endswith("\n")]
        return [r for r in self._read if key is None or key in r]

    def values(self, key: str) -> list[Any]:
        return [r[key] for r in self.reports(key)]

    def wait_for(self, key: str, count: int = 1, seconds: float = 20.0) -> list[dict[str, Any]]:
        def enough() -> list[dict[str, Any]] | None:
            assert self.killed or self.process.poll() in (None, 0), self.trouble()
            found = self.reports(key)
            return found if len(found) >= count else None

        found: list[dict[str, Any]] = wait_for(f"{count} x {key!r} of {self.name}", enough, seconds)
        return found

    def trouble(self) -> str:
        return f"{self.name} ended: {self.output.with_suffix('.err').read_text()[-3000:]}"

    def kill(self) -> float:
        """kill -9; returns when (monotonic seconds)."""
        self.killed = True
        self.process.kill()
        self.process.wait(5)
        return time.monotonic()

    def finish(self, seconds: float = 25.0) -> None:
        """Wait until it ends by itself, with success."""
        assert self.process.wait(seconds) == 0, self.trouble()


class Cluster:
    """Nodes and workers of one test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.nodes: list[Node] = []
        self.workers: list[Worker] = []

    def node(self, name: str = "a", join: Node | None = None, *options: str) -> Node:
        node = Node(self._folder, name, join.listen if join else None, options)
        self.nodes.append(node)
        return node.start()

    def worker(self, node: Node, role: str, name: str, **job: Any) -> Worker:
        output = self._folder / f"{name}.{len(self.workers)}.out"
        roles = USE_ROLES if "uses" in job else ROLES
        command = [sys.executable, str(roles), role, json.dumps({"name": name, **job})]
        with output.open("wb") as out, output.with_suffix(".err").open("wb") as err:
            environment = {**os.environ, "FABRIC_SOCKET": node.socket}
            process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        self.workers.append(Worker(process, output, name))
        return self.workers[-1]

    def close(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
        for node in reversed(self.nodes):
            node.stop()


def balanced(node: Node, seconds: float = 20.0) -> dict[str, Any]:
    """Return the first balanced audit; fails with its differences after `seconds`.

    A verdict that was never balanced cannot pass: an unbalanced one is final.
    """
    last: dict[str, Any] = {}

    def is_balanced() -> bool:
        last.clear()
        last.update(node.audit())
        assert last["verdict"] != "unbalanced", last["differences"][:8]
        return bool(last["verdict"] == "balanced")

    try:
        wait_for("a verdict of the audit", is_balanced, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}: {last.get('verdict')}, {last.get('reason')}") from None
    return last


def settled(node: Node, channel: str, seconds: float = 20.0) -> dict[str, Any]:
    """Wait until nothing of `channel` is in flight, and return its row of a balanced audit."""

    def row() -> dict[str, Any] | None:
        found = [r for r in balanced(node)["channels"] if r["name"] == channel]
        return found[0] if found and not found[0]["in_flight"] else None

    result: dict[str, Any] = wait_for(f"every message of {channel} ended", row, seconds)
    ends = result["delivered"] + result["dropped"] + result["failed"]
    assert result["accepted"] == ends
    return result


def returned(node: Node, before: Footprint, seconds: float = 20.0) -> None:
    """Wait until the node holds no more than before."""
    last: list[Footprint] = []

    def is_back() -> bool:
        last[:] = [node.footprint()]
        return last[0].within(before)

    try:
        wait_for("the footprint's return", is_back, seconds)
    except AssertionError:
        raise AssertionError(f"left behind: {last[0]}, before {before}") from None


def clusters(short_dir: Path) -> Iterator[Cluster]:
    """Body of the fixture: a cluster that is closed whatever happens."""
    cluster = Cluster(short_dir)
    try:
        yield cluster
    finally:
        cluster.close()
