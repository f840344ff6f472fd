"""What one row is played on: a bed with rails, and whoever takes part on them, started when first asked for."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.namespaces import Bed, NetworkUnavailable, Rail, is_bench, run
from bench.paths.nodes import Nodes
from bench.sides import FREE, Pair, Subject, SubjectFailed

FABRIC, UCX, NIXL, MPTCP, TCP = "fabric", "ucx", "nixl", "mptcp", "tcp"
ZMQ, GRPC = "zmq", "grpc"
NEAR, FAR = "a", "b"
FOLDER = "fab-p-"
PORT = 7700  # of the first nodes; others beside them have the next ones
Key = tuple[str, tuple[int, ...], str]


@dataclass(frozen=True)
class Inside(Subject):
    """A subject whose halves run in namespaces: `near` and `far` are what goes before their commands."""

    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()

    def command(self, role: str, folder: Path, cpus: str) -> list[str]:
        """Return what starts one half there."""
        return [*(self.near if role == "near" else self.far), *super().command(role, folder, cpus)]


class Stage:
    """Two namespaces and the rails between them; `rates` in Mbit/s, 0: not shaped. A context manager."""

    def __init__(self, rates: Sequence[int]) -> None:
        sweep_folders()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-", dir="/tmp"))
        self.bed = Bed()
        self.rails: list[Rail] = []
        self._pairs: dict[Key, Pair] = {}
        self._nodes: dict[tuple[Any, ...], Nodes] = {}
        try:
            for name in (NEAR, FAR):
                self.bed.namespace(name)
            self._lay(rates)
        except BaseException:
            self.close()
            raise

    def _lay(self, rates: Sequence[int]) -> None:
        for number, mbit in enumerate(rates):
            self.rails.append(Rail(self.bed, number, NEAR, FAR, mbit))
        self._tell_mptcp()

    def _tell_mptcp(self) -> None:
        """Announce the far addresses beside the first, and let the near kernel join them."""
        with contextlib.suppress(NetworkUnavailable):  # then MPTCP has one subflow, or none
            for name in (NEAR, FAR):
                counts = ("subflows", "8", "add_addr_accepted", "8")
                run("ip", "-n", self.bed.full(name), "mptcp", "limits", "set", *counts)
            for rail in self.rails[1:]:
                announce = (rail.far_address, "dev", rail.device, "signal")
                run("ip", "-n", self.bed.full(FAR), "mptcp", "endpoint", "add", *announce)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def offloads(self) -> str:
        """Return what the kernel takes off the processor on the first rail, in words."""
        ask = (sys.executable, "-m", "bench.paths.offloads", self.rails[0].device)
        return run(*self.bed.inside(NEAR), *ask).strip()

    # ---------------------------------------------------------------- who takes part
    def pair(self, who: str, rails: Sequence[int] = (), part: str = "", fault: str = "") -> Pair:
        """Return both halves of a contender, connected over some rails (none named: all).

        Raises
        ------
        SubjectFailed
            It does not start.
        """
        chosen = tuple(rails) or tuple(range(len(self.rails)))
        key = (who, chosen, part)
        if key not in self._pairs:
            self._pairs[key] = Pair(self._subject(who, chosen, part, fault), FREE)
        return self._pairs[key]

    def drop(self, who: str) -> None:
        """Kill every pair of a contender, and its nodes: what failed is not used again."""
        for key in [key for key in self._pairs if key[0] == who]:
            self._pairs.pop(key).kill()
        if who == FABRIC:
            for nodes in self._nodes.values():
                nodes.stop()
            self._nodes.clear()

    def nodes(self, rails: Sequence[int] = (), fault: str = "") -> Nodes:
        """Return the two nodes of the fabric over some rails.

        Raises
        ------
        SubjectFailed
            They do not start.
        """
        chosen = tuple(rails) or tuple(range(len(self.rails)))
        key = (chosen, fault)
        if key not in self._nodes:
            used = [self.rails[number] for number in chosen]
            places = [(NEAR, [r.near_address for r in used]), (FAR, [r.far_address for r in used])]
            folder = Path(tempfile.mkdtemp(prefix="n", dir=self.folder))
            try:
                self._nodes[key] = Nodes(self.bed, folder, places, fault, PORT + len(self._nodes))
            except (RuntimeError, OSError) as error:
                raise SubjectFailed(f"{FABRIC}: {error}") from error
        return self._nodes[key]

    def _subject(self, who: str, rails: tuple[int, ...], part: str, fault: str) -> Subject:
        if who == FABRIC:
            nodes = self.nodes(rails, fault)
            sockets = {"near": nodes.socket(0), "far": nodes.socket(1)}
            return Subject(who, "bench.ours.rails", {**sockets, "channel": part or "bulk"})
        module, options, interpreter = self._peer(who, rails)
        prefixes = {"near": tuple(self.bed.inside(NEAR)), "far": tuple(self.bed.inside(FAR))}
        return Inside(who, f"bench.peers.{module}", options, interpreter, **prefixes)

    def _peer(self, who: str, rails: tuple[int, ...]) -> tuple[str, Mapping[str, Any], str]:
        used = [self.rails[number] for number in rails]
        devices = {"devices": [rail.device for rail in used]}
        address = {"address": used[0].far_address}
        return {
            UCX: ("ucxx_rails", devices, "peers"),
            NIXL: ("nixl_rails", devices, "peers"),
            MPTCP: ("rail_socket", {**address, "mptcp": True}, "own"),
            TCP: ("rail_socket", {**address, "mptcp": False}, "own"),
            ZMQ: ("zmq_beside", address, "peers"),
            GRPC: ("grpc_beside", address, "peers"),
        }[who]

    def close(self) -> None:
        """End everyone, remove everything. Safe to repeat."""
        for key in list(self._pairs):
            pair = self._pairs.pop(key)
            pair.stop() if key[0] == FABRIC else pair.kill()
        for nodes in self._nodes.values():
            nodes.stop()
        self._nodes.clear()
        self.bed.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def sweep_folders() -> None:
    """Remove the folders of runs that are no more."""
    for folder in Path("/tmp").glob(f"{FOLDER}*-*"):
        owner = folder.name.removeprefix(FOLDER).split("-")[0]
        if owner.isdecimal() and not is_bench(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


class Schedule:
    """Changes of the network while an order runs: (seconds, act), each with the times before and after it.

    A context manager; leaving it does at once what is still to come, so that the network is whole again.
    """

    def __init__(self, *steps: tuple[float, Callable[[], object]]) -> None:
        self._steps = steps
        self.done: list[tuple[int, int]] = []
        self.error: Exception | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._play, name="schedule", daemon=True)

    def __enter__(self) -> Schedule:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _play(self) -> None:
        for at, act in self._steps:
            self._is_over.wait(max(0.0, self._start + at - time.monotonic()))
            before = time.monotonic_ns()
            try:
                act()
            except Exception as error:
                self.error = error
            self.done.append((before, time.monotonic_ns()))
