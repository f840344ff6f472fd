"""Two nodes with real processes, and what must hold of them after every step of the soak."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import psutil

from fabric import errors
from tests.integration.kill_nodes import Footprint, Node, wait_for
from tests.soak.channels import CHANNELS, ONCE, SENTINELS, TRIED, VETERANS, Channel
from tests.soak.processes import Actor, Held, Violation, private_bytes

ROLES = Path(__file__).with_name("actors.py")
HERE = ROLES.parent
ROOT = HERE.parent.parent

# Who sends or asks leaves first, so that what is under way has somebody to end at.
LEAVING = ("source", "asker", "scatterer", "getter", "sink", "answerer", "expert", "exposer")
# Budgets: with all actors at work. What is left when they have gone is compared with the beginning.
ACTORS_MIN, ACTORS_MAX = 4, 12
DAEMON_FDS_MAX = 800
DAEMON_THREADS_MAX = 64
DAEMON_PRIVATE_BYTES_MAX = 400 << 20
DAEMON_GROWTH_BYTES_MAX = 64 << 20  # private memory, from the first quiet point to any later one
SHARED_BYTES_MAX = 6 << 30  # all segments of a node
PROCESSES_MAX = 16  # under one keeper: daemon, modules, stage hosts
VERDICT_S = 20.0  # an audit must be balanced within this after a step
READY_S = 20.0
BACK_S = 30.0  # a node that was killed whole serves, and its clients are attached again
LEAVE_S = 30.0  # an actor that was told to leave flushes, closes and is gone
SENTINEL_S_MAX = 3.0  # the longest pause of round trips that nothing touches
SETTLED_S = 1.5
# The gateway grows its arena with what arrives, one segment for each class of slots, and keeps it.
GATEWAY_SEGMENTS_MAX, GATEWAY_BYTES_MAX = 40, 1 << 30
QUIET_S = 25.0  # after the last actor left, the node holds no more than before


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
        self.growth: dict[str, Held] = {}  # of each role, over a process' first quiet moment
        self.sentinels: list[Actor] = []
        self.veterans: list[Actor] = []
        self.leases = folder / "leases"
        self._fault = fault
        self._number = 0
        self._before: dict[str, Footprint] = {}
        self._private: dict[str, int] = {}

    # ---- life
    def start(self) -> None:
        """Bring up both nodes, find out which channels they offer, start the sentinel."""
        self.leases.mkdir()
        self.nodes["a"] = Node(self.folder, "a")
        self._start(self.nodes["a"])
        self.nodes["b"] = Node(self.folder, "b", self.nodes["a"].listen)
        self._start(self.nodes["b"])
        for node in self.nodes.values():
            node.address = node.listen  # where it is looked for when it is started again
        self._try_channels()
        for name in self.nodes:
            self._post_sentinels(name)
        for role, name in (("source", "b"), ("sink", "a")):
            self.veterans.append(self._spawn(role, name, VETERANS, pause_s=0.05))
            self.wait_ready(self.veterans[-1])

    def _start(self, node: Node) -> None:
        """Start a node, also one that was killed: with its folder, and the faults of its links."""
        self.since(node.name).write_text(str(time.time_ns()))
        log = node.folder / "log"
        if log.exists():
            log.rename(node.folder / f"before{self._number}.log")
        with environment(self._fault if node.name == "b" else ""):
            node.start()

    def _post_sentinels(self, node: str) -> None:
        for role in reversed(SENTINELS[node].roles):  # who answers is there first
            actor = self._spawn(role, node, SENTINELS[node], is_sentinel=True, pause_s=0.02)
            self.sentinels.append(actor)
            self.wait_ready(actor)

    def since(self, node: str) -> Path:
        """Return the file that says when a node was started (ns, wall clock)."""
        return self.folder / f"{node}.since"

    def kill_node(self, name: str, away_s: float) -> None:
        """kill -9 of a keeper: its node is gone whole; started again, it is joined and its clients come back.

        Raises
        ------
        Violation
            Something of the node outlives its keeper, or somebody does not come back by itself.
        """
        node = self.nodes[name]
        for actor in [s for s in self.sentinels if s.node == name][::-1]:  # who asks leaves first
            self.take_away(actor, signal.SIGTERM)
        processes = [node.keeper, *node.keeper.children(recursive=True)]
        killed_at = time.monotonic()
        os.kill(node.keeper_pid, signal.SIGKILL)
        node.wait_ended()
        _, left = psutil.wait_procs(processes, VERDICT_S)
        if left:
            raise Violation(f"node {name}: its keeper was killed, and {left} live on")
        time.sleep(away_s)
        self._start(node)
        for actor in [a for a in (*self.actors, *self.veterans) if a.node == name]:
            is_back = functools.partial(self._is_back, actor, killed_at)
            wait_for(f"{actor.name} attached again", is_back, BACK_S)
        self._post_sentinels(name)

    def _is_back(self, actor: Actor, since: float) -> bool:
        self._take(actor)
        return actor.ready_at > since

    def _try_channels(self) -> None:
        """Ask for each channel that may not be offered; say what is left out."""
        import fabric
        from tests.soak.role import declare

        with fabric.attach("probe", socket=self.nodes["a"].socket) as port:
            for channel in (*CHANNELS, *TRIED):
                try:
                    declare(port, job_of(channel))
                except (errors.ConfigError, TypeError) as error:
                    if channel in CHANNELS:
                        raise
                    self.note(f"not offered: {channel.name} {channel.declare} ({error})")
                else:
                    self.channels += [channel] if channel in TRIED else []

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for actor in self.everybody():
            actor.popen.kill()
            actor.popen.wait(5.0)
        for node in reversed(self.nodes.values()):
            node.stop()

    def everybody(self) -> list[Actor]:
        """Return all processes that are at work."""
        return [*self.actors, *self.sentinels, *self.veterans]

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
            "name": name, "seed": self._number, **job_of(channel),
            "acks": channel.declare.get("delivery") != ONCE, "keyed": channel.keyed,
            "pause_s": 0.005, "hold_s": 0.05, "held_max": 16,
            "folder": str(self.leases), "since": str(self.since(node)), **more,
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
            actor.popen.send_signal(signal.SIGUSR1)
            time.sleep(1.0)  # it writes where it hangs
            raise Violation(f"{actor.name} was told to leave and did not: {actor.log()}") from None
        self._take(actor)
        (self.actors if actor in self.actors else self.sentinels).remove(actor)
        self.gone.append(actor)
        self.work[actor.channel.name] = self.work.get(actor.channel.name, 0) + actor.work
        for name, count in actor.errors.items():
            self.errors[name] = self.errors.get(name, 0) + count
        if how == signal.SIGTERM and code != 0:
            raise Violation(f"{actor.name} ended with {code}: {actor.log()}")

    # ---- what must hold
    def check(self) -> None:
        """After every step: no process reports a violation, the audit balances, nothing is over its budget."""
        for actor in self.everybody():
            self._take(actor)
            if actor.popen.poll() is not None:
                raise Violation(f"{actor.name} ended by itself: {actor.log()}")
            actor.check_budget()
            role = "veteran" if actor in self.veterans else actor.role
            self.growth[role] = self.growth.get(role, Held(0, 0, 0)).or_more(actor.growth())
        self._check_sentinels()
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

    def _check_sentinels(self) -> None:
        for asker in [s for s in self.sentinels if s.role == "asker"]:
            times = [*asker.beats, time.monotonic()]
            gap = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
            del asker.beats[:-1]
            if gap > SENTINEL_S_MAX:
                raise Violation(f"round trips on {asker.node} that nothing touches paused for {gap:.1f} s")  # fmt: skip

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
        for role in LEAVING:
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


def job_of(channel: Channel) -> dict[str, Any]:
    """Return what a process is told of its channel."""
    return {"channel": channel.name, "declare": channel.declare, "carries": channel.carries}


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
