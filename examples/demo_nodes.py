"""Start and stop the demo's two nodes, and look for anything they left behind."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERB_TIMEOUT_S = 90.0
STRAGGLER_S = 3.0
NETNS_PREFIX = "fabdemo"


@dataclass(frozen=True, slots=True)
class Node:
    """One fabricd of the demo."""

    name: str
    socket: Path
    state: Path
    listen: str
    join: str | None = None
    namespace: str | None = None

    @property
    def log(self) -> Path:
        """Where the daemon logs."""
        return self.state / "logs" / "fabricd.log"


@dataclass(slots=True)
class Cluster:
    """Two nodes in a private folder, on two loopback addresses or in two network namespaces."""

    use_namespaces: bool = False
    folder: Path = field(
        default_factory=lambda: Path(tempfile.mkdtemp(prefix="fabdemo-", dir=_runtime_folder()))
    )
    nodes: list[Node] = field(default_factory=list)
    namespaces: list[str] = field(default_factory=list)
    before: set[str] = field(default_factory=lambda: set(_global_things()))

    def start(self, fault: str = "") -> None:
        """Bring both nodes up; `fault` is injected into node b's engine (needs FABRIC_FAULTS=1)."""
        addresses = self._make_network() if self.use_namespaces else ("127.0.0.1", "127.0.0.2")
        secret = self.folder / "secret"
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_hex(32))
        first = f"{addresses[0]}:{_free_port(addresses[0], self.use_namespaces)}"
        second = f"{addresses[1]}:{_free_port(addresses[1], self.use_namespaces)}"
        spaces = (f"{NETNS_PREFIX}-a", f"{NETNS_PREFIX}-b") if self.use_namespaces else (None, None)
        for name, listen, join, space in (
            ("a", first, None, spaces[0]),
            ("b", second, first, spaces[1]),
        ):
            node = Node(name, self.folder / f"{name}.sock", self.folder / name, listen, join, space)
            self.nodes.append(node)
            options = [
                "--name",
                name,
                "--socket",
                str(node.socket),
                "--state",
                str(node.state),
                "--listen",
                listen,
            ]
            options += ["--secret-file", str(secret)] + (["--join", join] if join else [])
            self.verb(node, "up", *options, fault=fault if name == "b" else "", own_socket=False)

    def verb(
        self, node: Node, *words: str, fault: str = "", own_socket: bool = True, check: bool = True
    ) -> str:
        """Run `fabricctl` against a node and return what it printed.

        Raises
        ------
        RuntimeError
            It failed (with `check`), or took longer than `VERB_TIMEOUT_S`.
        """
        command = (
            ["ip", "netns", "exec", node.namespace] if node.namespace and words[0] == "up" else []
        )
        command += [sys.executable, "-m", "fabric.cli.main", *words]
        command += ["--socket", str(node.socket)] if own_socket else []
        environment = dict(os.environ)
        environment.pop("FABRIC_ENGINE_FAULT", None)
        if fault:
            environment["FABRIC_ENGINE_FAULT"] = fault
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=VERB_TIMEOUT_S,
            env=environment,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(
                f"fabricctl {' '.join(words)} failed ({done.returncode}): {done.stderr or done.stdout}"
            )
        return done.stdout

    def ask(self, node: Node, *words: str, check: bool = True) -> Any:
        """Run `fabricctl … -o json` and return the answer."""
        return json.loads(self.verb(node, *words, "-o", "json", check=check) or "null")

    def stop(self) -> list[str]:
        """Stop both nodes; returns what could not be stopped, in words."""
        problems = []
        for node in reversed(self.nodes):
            if not node.socket.exists():
                continue
            try:
                self.verb(node, "down")
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                problems.append(f"node {node.name} did not stop: {str(error).strip()[:300]}")
        for name in self.namespaces:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        return problems

    def end_stragglers(self) -> None:
        """After an interrupted or failed start: end the processes that no `down` reaches, by their ids."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            pids = [pid for pid, _ in _processes_naming(str(self.folder))]
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + STRAGGLER_S
            while time.monotonic() < deadline and _processes_naming(str(self.folder)):
                time.sleep(0.1)

    def leftovers(self) -> list[str]:
        """List what is still there after `stop`: processes, sockets, shared memory, memfds, namespaces."""
        found = [f"process {pid}: {words}" for pid, words in _processes_naming(str(self.folder))]
        found += [f"socket {path}" for path in sorted(self.folder.glob("*.sock*"))]
        found += sorted(set(_global_things()) - self.before)
        with open("/proc/net/unix", encoding="utf-8") as table:
            found += [
                f"bound socket {line.split()[-1]}" for line in table if str(self.folder) in line
            ]
        return found

    def remove_folder(self, keep_logs_in: Path | None = None) -> None:
        """Delete the private folder; with `keep_logs_in`, logs are copied there first."""
        if keep_logs_in is not None:
            for log in self.folder.glob("*/logs/*"):
                keep_logs_in.mkdir(parents=True, exist_ok=True)
                shutil.copy(log, keep_logs_in / f"{log.parent.parent.name}-{log.name}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_network(self) -> tuple[str, str]:
        if os.geteuid() != 0:
            raise RuntimeError(
                "NETNS=1 needs root: it makes two network namespaces; run make demo without it"
            )
        a, b = f"{NETNS_PREFIX}-a", f"{NETNS_PREFIX}-b"
        for words in (
            f"netns add {a}",
            f"netns add {b}",
            f"link add fabdemo0 netns {a} type veth peer name fabdemo1 netns {b}",
            f"-n {a} addr add 10.77.31.1/24 dev fabdemo0",
            f"-n {b} addr add 10.77.31.2/24 dev fabdemo1",
            f"-n {a} link set fabdemo0 up",
            f"-n {b} link set fabdemo1 up",
            f"-n {a} link set lo up",
            f"-n {b} link set lo up",
        ):
            done = subprocess.run(
                ["ip", *words.split()], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise RuntimeError(f"ip {words}: {done.stderr.strip()}")
            if words.startswith("netns add"):
                self.namespaces.append(words.split()[-1])
        return "10.77.31.1", "10.77.31.2"


def wait_until(what: str, deadline_s: float, ready: Any, report: Any) -> None:
    """Ask `ready()` (a text that says how far it is, or None when done) until it is done.

    Raises
    ------
    RuntimeError
        It was not done within `deadline_s`; says how far it was.
    """
    deadline = time.monotonic() + deadline_s
    said = ""
    while (state := ready()) is not None:
        if state != said:
            report(f"{what}: {state}")
            said = state
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} took longer than {deadline_s:.0f} s; last: {state}")
        time.sleep(0.25)


def _runtime_folder() -> str:
    base = os.environ.get("XDG_RUNTIME_DIR")
    return base if base and len(base) < 60 and os.access(base, os.W_OK) else "/tmp"


def _free_port(address: str, in_namespace: bool) -> int:
    if in_namespace:
        return 7411
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _processes_naming(text: str) -> list[tuple[int, str]]:
    """Processes, this one aside, whose command line or environment names `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in words:
            command = (
                (entry / "cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode(errors="replace")
                .strip()
            )
            found.append((int(entry.name), command[:120] or "(exiting)"))
    return found


def _global_things() -> list[str]:
    """What outlives a process or hides in one: shared-memory files, namespaces, fabric memfds."""
    things = (
        [f"/dev/shm/{entry.name}" for entry in Path("/dev/shm").iterdir()]
        if Path("/dev/shm").is_dir()
        else []
    )
    spaces = Path("/run/netns")
    things += [f"namespace {entry.name}" for entry in spaces.iterdir()] if spaces.is_dir() else []
    return things + _own_memfds()


def _own_memfds() -> list[str]:
    """Fabric segments still open in this process: after its ports closed there must be none."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            name = os.readlink(entry)
        except OSError:
            continue
        if name.startswith("/memfd:") and "fab" in name:
            found.append(f"memfd {name} (fd {entry.name})")
    return found
