"""Two nodes with real processes, and what must hold of them after every step of the soak."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from fabric import errors
from tests.integration.kill_nodes import Footprint, Node, wait_for

ROLES = Path(__file__).with_name("actors.py")
HERE = ROLES.parent
ROOT = HERE.parent.parent

# Budgets: with all actors at work. What is left when they have gone is compared with the beginning.
ACTORS_MIN, ACTORS_MAX = 4, 10
DAEMON_FDS_MAX = 800
DAEMON_THREADS_MAX = 64
DAEMON_PRIVATE_BYTES_MAX = 400 << 20
DAEMON_GROWTH_BYTES_MAX = 64 << 20  # private memory, from the first quiet point to any later one
SHARED_BYTES_MAX = 6 << 30  # all segments of a node
PROCESSES_MAX = 16  # under one keeper: daemon, modules, stage hosts
VERDICT_S = 20.0  # an audit must be balanced within this after a step
READY_S = 20.0
LEAVE_S = 30.0  # an actor that was told to leave flushes, closes and is gone
SENTINEL_S_MAX = 3.0  # the longest pause of round trips that nothing touches
SETTLED_S = 1.5
# The gateway grows its arena with what arrives, one segment for each class of slots, and keeps it.
GATEWAY_SEGMENTS_MAX, GATEWAY_BYTES_MAX = 40, 1 << 30
QUIET_S = 25.0  # after the last actor left, the node holds no more than before


class Violation(AssertionError):
    """Something promised does not hold."""


@dataclass(frozen=True)
class Channel:
    """A channel of the soak and how it is declared."""

    name: str
    declare: dict[str, Any]
    roles: tuple[str, str] = ("source", "sink")
    keyed: bool = False  # whether the order of each key is promised


ONCE, LEAST = "at_most_once", "at_least_once"
CHANNELS = (
    Channel("s1", {"pattern": "stream", "delivery": LEAST, "klass": "token"}, keyed=True),
    Channel("s0", {"pattern": "stream", "delivery": ONCE, "klass": "embedding"}, keyed=True),
    Channel("q1", {"pattern": "queue", "delivery": LEAST, "klass": "bulk"}),
    Channel("q0", {"pattern": "queue", "delivery": ONCE, "klass": "token"}),
    Channel("turned", {}, keyed=True),  # these three are declared by the plan
    Channel("into", {}, ("source", "")),
    Channel("outof", {}, ("", "sink")),
    Channel("r", {"pattern": "request"}, ("asker", "answerer")),
)
# Offered by later versions than the oldest that this runs against: taken in when the node accepts the declaration.
TRIED = (
    Channel("b", {"pattern": "broadcast", "delivery": ONCE, "klass": "token"}),
    Channel(
        "old", {"pattern": "queue", "delivery": ONCE, "overflow": "drop_oldest", "klass": "token"}
    ),
    Channel(
        "new", {"pattern": "stream", "delivery": ONCE, "overflow": "drop_newest", "klass": "token"}
    ),
    Channel("no", {"pattern": "queue", "delivery": LEAST, "overflow": "reject", "klass": "token"}),
)
SENTINEL = Channel("sentinel", {"pattern": "request", "klass": "control"}, ("asker", "answerer"))


@dataclass
class Actor:
    """One process and the reports that it wrote."""

    name: str
    role: str
    node: str
    channel: Channel
    popen: subprocess.Popen[bytes]
    output: Path
    stops: list[tuple[float, float]] = field(default_factory=list)
    beats: list[float] = field(default_factory=list)
    work: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    is_ready: bool = False
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
            self.is_ready = self.is_ready or "ready" in row
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


class Rig:
    """The nodes, the actors and the checks. `history` is what is printed when something does not hold."""

    def __init__(self, folder: Path, seed: int, fault: str = "") -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.actors: list[Actor] = []
        self.gone: list[Actor] = []
        self.history: list[str] = []
        self.nodes: dict[str, Node] = {}
        self.channels = list(CHANNELS)
        self.work: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self.audits = 0
        self.sentinel: list[Actor] = []
        self._fault = fault
        self._number = 0
        self._before: dict[str, Footprint] = {}
        self._private: dict[str, int] = {}

    # ---- life
    def start(self) -> None:
        """Bring up both nodes, find out which channels they offer, start the sentinel."""
        self.nodes["a"] = Node(self.folder, "a").start()
        with environment(self._fault):
            self.nodes["b"] = Node(self.folder, "b", self.nodes["a"].listen).start()
        self._try_channels()
        for role in ("answerer", "asker"):
            self.sentinel.append(self._spawn(role, "a", SENTINEL, is_sentinel=True, pause_s=0.02))
            self.wait_ready(self.sentinel[-1])

    def _try_channels(self) -> None:
        """Ask for each channel that may not be offered; say what is left out."""
        import fabric
        from tests.soak.actors import declare

        with fabric.attach("probe", socket=self.nodes["a"].socket) as port:
            for channel in (*CHANNELS, *TRIED):
                try:
                    declare(port, {"channel": channel.name, "declare": channel.declare})
                except (errors.ConfigError, TypeError) as error:
                    if channel in CHANNELS:
                        raise
                    self.note(f"not offered: {channel.name} {channel.declare} ({error})")
                else:
                    self.channels += [channel] if channel in TRIED else []

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for actor in [*self.actors, *self.sentinel]:
            actor.popen.kill()
            actor.popen.wait(5.0)
        for node in reversed(self.nodes.values()):
            node.stop()

    def note(self, what: str) -> None:
        self.history.append(f"{time.monotonic():.2f} {what}")

    # ---- actors
    def add(self, role: str, node: str, channel: Channel, **more: Any) -> Actor:
        """Start a process and wait until it is attached."""
        actor = self._spawn(role, node, channel, **more)
        self.actors.append(actor)
        self.wait_ready(actor)
        return actor

    def _spawn(self, role: str, node: str, channel: Channel, **more: Any) -> Actor:
        self._number += 1
        name = f"{role}{self._number}"
        job = {
            "name": name, "seed": self._number, "channel": channel.name, "declare": channel.declare,
            "acks": channel.declare.get("delivery") != ONCE, "keyed": channel.keyed,
            "pause_s": 0.005, "hold_s": 0.05, "held_max": 16, **more,
        }  # fmt: skip
        output = self.folder / f"{name}.out"
        variables = {**os.environ, "FABRIC_SOCKET": self.nodes[node].socket, "PYTHONPATH": path()}
        with output.open("wb") as out, output.with_suffix(".err").open("wb") as err:
            popen = subprocess.Popen(
                [sys.executable, str(ROLES), role, json.dumps(job)], stdout=out, stderr=err, env=variables
            )  # fmt: skip
        return Actor(name, role, node, channel, popen, output)

    def wait_ready(self, actor: Actor) -> None:
        def is_ready() -> bool:
            self._take(actor)
            if actor.popen.poll() is not None:
                raise Violation(f"{actor.name} ended: {actor.log()}")
            return actor.is_ready

        wait_for(f"{actor.name} attached", is_ready, READY_S)

    def take_away(self, actor: Actor, how: signal.Signals) -> None:
        """Send a signal that ends an actor, and wait for its end."""
        actor.popen.send_signal(how)
        try:
            code = actor.popen.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            raise Violation(f"{actor.name} was told to leave and did not: {actor.log()}") from None
        self._take(actor)
        self.actors.remove(actor)
        self.gone.append(actor)
        self.work[actor.channel.name] = self.work.get(actor.channel.name, 0) + actor.work
        for name, count in actor.errors.items():
            self.errors[name] = self.errors.get(name, 0) + count
        if how == signal.SIGTERM and code != 0:
            raise Violation(f"{actor.name} ended with {code}: {actor.log()}")

    # ---- what must hold
    def check(self) -> None:
        """After every step: no process reports a violation, the audit balances, nothing is over its budget."""
        for actor in [*self.actors, *self.sentinel]:
            self._take(actor)
            if actor.popen.poll() is not None:
                raise Violation(f"{actor.name} ended by itself: {actor.log()}")
        self._check_sentinel()
        self._check_audit()
        for node in self.nodes.values():
            self._check_budget(node)

    def _take(self, actor: Actor) -> None:
        for row in actor.reports():
            if "violation" in row:
                raise Violation(row["violation"])
            if "overran" in row and not actor.forgives(row):
                seconds = row["until"] - row["since"]
                raise Violation(f"{row['overran']} took {seconds:.1f} s, allowed {row['allowed_s']:.1f} s")  # fmt: skip

    def _check_sentinel(self) -> None:
        asker = self.sentinel[-1]
        times = [*asker.beats, time.monotonic()]
        gap = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
        del asker.beats[:-1]
        if gap > SENTINEL_S_MAX:
            raise Violation(f"round trips that nothing touches paused for {gap:.1f} s")

    def _check_audit(self) -> None:
        last: dict[str, Any] = {}

        def is_balanced() -> bool:
            try:
                last.update(self.nodes["a"].audit())
            except errors.FabricError as error:
                last.update(verdict="none", reason=str(error))
            if last["verdict"] == "unbalanced":
                raise Violation(f"audit: {last['differences'][:6]}")
            return bool(last["verdict"] == "balanced")

        try:
            wait_for("a balanced audit", is_balanced, VERDICT_S)
        except Violation:
            raise
        except AssertionError:
            raise Violation(f"no verdict within {VERDICT_S:g} s: {last.get('reason')}") from None
        self.audits += 1

    def _check_budget(self, node: Node) -> None:
        daemon, held = psutil.Process(node.daemon_pid), node.footprint()
        private = private_bytes(daemon)
        for what, found, most in (
            ("descriptors of its daemon", held.daemon_fds, DAEMON_FDS_MAX),
            ("threads of its daemon", daemon.num_threads(), DAEMON_THREADS_MAX),
            ("private bytes of its daemon", private, DAEMON_PRIVATE_BYTES_MAX),
            ("bytes of segments", held.shared_bytes, SHARED_BYTES_MAX),
            ("processes", held.processes, PROCESSES_MAX),
        ):
            if found > most:
                raise Violation(f"node {node.name}: {found} {what}, the budget is {most}")

    def quiet(self) -> None:
        """Send everybody away; then each node holds no more than at the first such moment."""
        for role in ("source", "asker", "sink", "answerer"):
            for actor in [a for a in self.actors if a.role == role]:
                self.take_away(actor, signal.SIGTERM)
        for name, node in self.nodes.items():
            if name not in self._before:
                self._before[name] = settle_footprint(node)
                self._private[name] = private_bytes(psutil.Process(node.daemon_pid))
            self._wait_back(node, self._before[name])
            grown = private_bytes(psutil.Process(node.daemon_pid)) - self._private[name]
            if grown > DAEMON_GROWTH_BYTES_MAX:
                raise Violation(f"node {name}: its daemon grew by {grown >> 20} MiB")

    def _wait_back(self, node: Node, before: Footprint) -> None:
        deadline = time.monotonic() + QUIET_S
        most = replace(
            before,
            keeper_fds=before.keeper_fds + GATEWAY_SEGMENTS_MAX,
            daemon_fds=before.daemon_fds + GATEWAY_SEGMENTS_MAX,
            shared_bytes=before.shared_bytes + GATEWAY_BYTES_MAX,
        )
        while not (now := node.footprint()).within(most):
            if time.monotonic() > deadline:
                held = holdings(node)
                raise Violation(f"node {node.name} is left with {now}, before {before}: {held}")
            time.sleep(0.2)


def settle_footprint(node: Node) -> Footprint:
    """Return the most that the node holds over `SETTLED_S`, once what just happened is settled.

    One descriptor more or less is the connection of the call that asks.
    """
    time.sleep(SETTLED_S)
    deadline, seen = time.monotonic() + SETTLED_S, [node.footprint()]
    while time.monotonic() < deadline:
        time.sleep(0.05)
        seen.append(node.footprint())
    return Footprint(*(max(values) for values in zip(*map(astuple, seen), strict=True)))


def holdings(node: Node) -> dict[str, int]:
    """Count what the keeper and the daemon hold open, by name."""
    names: Counter[str] = Counter()
    for who, pid in (("keeper", node.keeper.pid), ("daemon", node.daemon_pid)):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                names[
                    f"{who} {os.readlink(link).split(' ')[0].split('[')[0].rstrip('0123456789:')}"
                ] += 1
    return dict(names)


def private_bytes(process: psutil.Process) -> int:
    """Anonymous memory in use: segments are files, and counted elsewhere."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) << 10


def path() -> str:
    """PYTHONPATH of actors and nodes: this tree, and whatever was there."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


class environment:
    """Variables of an engine fault while a node starts."""

    def __init__(self, fault: str) -> None:
        self._fault = fault

    def __enter__(self) -> None:
        if self._fault:
            os.environ.update(FABRIC_FAULTS="1", FABRIC_ENGINE_FAULT=self._fault)

    def __exit__(self, *_: object) -> None:
        if self._fault:
            del os.environ["FABRIC_FAULTS"], os.environ["FABRIC_ENGINE_FAULT"]
