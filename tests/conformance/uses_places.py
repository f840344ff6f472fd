"""Where the use seam is tried: two ports on a direct lane, and two nodes whose daemons talk over tcp."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from fabric import _native, errors
from fabric.controlplane.audit import compare
from fabric.testing.local import LocalFabric
from tests.conformance.uses import MIXED_USES, USES, In, Out, Seat, seat
from tests.conformance.uses_content import CONTENTS
from tests.integration.kill_nodes import Cluster, Node, balanced

ENDS: Final = ("delivered", "dropped", "failed")
_numbers = itertools.count(1)


def until(what: str, condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait for a condition, bounded."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.002)


class Place:
    """Two sides with a socket each; `left` sends by habit."""

    sockets: dict[str, str]

    def seat(self, side: str, use: str, name: str) -> Seat:
        """Return a seat for one test."""
        return seat(use, name, self.sockets[side])

    def leave(self, seats: list[Seat]) -> None:
        """End what a test has opened."""
        for each in reversed(seats):
            each.close()

    def close(self) -> None:
        """End everything."""

    def audit(self) -> dict[str, Any]:
        """Return a balanced audit."""
        raise NotImplementedError

    def row(self, channel: str) -> dict[str, Any]:
        """Return what a balanced audit says of one channel, with the sums of what ended otherwise than delivered."""
        raise NotImplementedError


class Direct(Place):
    """Ports of one process on a direct lane; the reference control plane between them."""

    def __init__(self, node: LocalFabric) -> None:
        self.node = node
        self.sockets = {"left": node.path, "right": node.path}

    def audit(self) -> dict[str, Any]:
        ports = [port for port in list(self.node.ports.values()) if port.is_alive]
        soon = time.monotonic_ns() + 500_000_000
        try:
            assert all(_native.freeze(port.fds[0], soon) for port in ports)
            lanes = [
                {
                    "lane": number,
                    "ports": [low, high],
                    "directions": [_native.inspect_lane(fd, side) for side in (0, 1)],
                }
                for (low, high, _), (number, fd) in list(self.node.lanes.items())
            ]
            states = [_native.inspect_state(port.fds[0]) for port in ports]
        finally:
            for port in ports:
                _native.thaw(port.fds[0])
        report = compare([{"node": "local", "ports": states, "lanes": lanes}])
        assert report["differences"] == []
        return dict(report)

    def row(self, channel: str) -> dict[str, Any]:
        found = self.audit()["channels"][f"#{self.node.channels[channel].number}"]
        sums = {end: sum(found.get(end, {}).values()) for end in ("dropped", "failed")}
        return {"delivered": 0, **found, **sums}


class Tcp(Place):
    """A port on each of two nodes."""

    def __init__(self, a: Node, b: Node) -> None:
        self.nodes = (a, b)
        self.sockets = {"left": a.socket, "right": b.socket}
        self._kept: dict[tuple[str, str], Seat] = {}

    def seat(self, side: str, use: str, name: str) -> Seat:
        """Return a seat that stays for the tests to come: an end that is closed leaves as much as a port does."""
        if (side, use) not in self._kept:
            self._kept[side, use] = seat(use, f"{side} {use}", self.sockets[side])
        return self._kept[side, use]

    def leave(self, seats: list[Seat]) -> None:
        for each in seats:
            each.leave()

    def close(self) -> None:
        for each in self._kept.values():
            each.close()

    def audit(self) -> dict[str, Any]:
        return balanced(self.nodes[0])

    def row(self, channel: str) -> dict[str, Any]:
        return next(dict(row) for row in self.audit()["channels"] if row["name"] == channel)


@contextmanager
def direct_place() -> Iterator[Place]:
    with LocalFabric() as node:
        yield Direct(node)


@contextmanager
def tcp_place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="fab-", dir="/tmp"))
    cluster = Cluster(folder)
    try:
        a = cluster.node("a")
        place = Tcp(a, cluster.node("b", join=a))
        try:
            yield place
        finally:
            place.close()
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


class Trial:
    """One test's seats at a place: all of one use, gone at its end with nothing of them left."""

    def __init__(self, place: Place, use: str, content: Any) -> None:
        self.place = place
        self.use = use
        self.content = content
        self.number = next(_numbers)
        self.channel = f"uses{self.number}"
        self.seats: list[Seat] = []

    def seat(self, side: str, use: str | None = None) -> Seat:
        name = f"{side}-{self.number}-{len(self.seats)}"
        self.seats.append(self.place.seat(side, use or self.use, name))
        return self.seats[-1]

    def pair(self, receiving: dict[str, Any] | None = None, **options: Any) -> tuple[Out, In]:
        """Open a channel from left to right, connected."""
        left, right = self.seat("left"), self.seat("right")
        left.declare(self.channel, self.content, **options)
        inn = right.receiver(self.channel, self.content, **(receiving or {}))
        out = left.sender(self.channel, self.content)
        until("the flow", lambda: out.flow_count() == 1)
        return out, inn

    def settled(self, out: Out, **ends: int) -> None:
        """Expect that all has ended so, by the sender's count and by the audit, and that no memory is held for it.

        Ends are given as words of letters: ``dropped_expired=1`` for ``dropped(expired)``.
        """
        out.flush()
        names = {name: name.replace("_", "(", 1) + ")" if "_" in name else name for name in ends}
        assert out.ends() == {names[name]: count for name, count in ends.items() if count}
        row = self.place.row(self.channel)
        sums = {end: sum(n for name, n in ends.items() if name.startswith(end)) for end in ENDS}
        assert {end: row[end] for end in ENDS} == sums
        assert row["accepted"] == sum(sums.values()) and row["in_flight"] == 0
        until("the return of every slot", self._is_empty)

    def _is_empty(self) -> bool:
        found = [each.port.native.stats() for each in self.seats if not each.port.is_closed]
        return all(stats["held"] == stats["slots_taken"] == 0 for stats in found)


def cases(
    *places: str, uses: Sequence[str] = (*USES, *MIXED_USES), is_short: bool = False
) -> list[Any]:
    """Return what a test of the seam runs over: (place, use, content).

    Every use with each content on a direct lane, and with one of them between nodes, the combinations on a direct lane
    with one; `is_short`: one content everywhere. FABRIC_SWEEP=1 runs all there is.
    """
    sweep = os.environ.get("FABRIC_SWEEP") == "1"
    found = []
    for place in places:
        for number, use in enumerate(uses):
            for turn, content in enumerate(CONTENTS):
                is_basic = use in USES
                is_turn = turn == number % 2
                if place == "direct":
                    is_chosen = is_turn or (is_basic and not is_short)
                else:
                    is_chosen = is_basic and is_turn != is_short
                if sweep or is_chosen:
                    found.append(pytest.param((place, use, content), id=f"{place}-{use}-{content}"))
    return found


def tcp_places() -> Iterator[Place]:
    """Body of a fixture of a module: two nodes for all of its tests."""
    with tcp_place() as place:
        yield place


def trials(request: Any) -> Iterator[Trial]:
    """Body of the fixture that gives each test its case's trial."""
    where, use, content = request.param
    if where == "tcp":
        yield from _trial(request.getfixturevalue("tcp"), use, content)
    else:
        with direct_place() as place:
            yield from _trial(place, use, content)


def _trial(place: Place, use: str, content: str) -> Iterator[Trial]:
    made = Trial(place, use, CONTENTS[content])
    try:
        yield made
    finally:
        place.leave(made.seats)


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


def in_a_thread(work: Any) -> tuple[threading.Thread, list[Any]]:
    """Begin `work`; what it returns or raises is put into the list."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except errors.FabricError as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results
