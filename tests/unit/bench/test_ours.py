"""The fabric as a subject: it delivers what was sent by each way, counts its daemons, and leaves no process behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench import subjects
from bench.sides import FREE, Pair, Subject

ORDER_S = 60.0
SMALL, LARGE = 64, (1 << 20) + 4096
COUNT = 21


@contextmanager
def running(subject: Subject) -> Iterator[Pair]:
    pair = Pair(subject, FREE)
    folder = str(pair.folder)
    try:
        yield pair
    finally:
        pair.stop()
    assert not [command for command in commands() if folder in command]


def commands() -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                found.append(file.read().decode(errors="replace"))
        except OSError:
            continue  # it ended while we looked
    return found


def ask(pair: Pair, run: str, **more: Any) -> tuple[Any, Any]:
    return pair.order({"run": run, **more}, ORDER_S)


@pytest.mark.parametrize(
    "subject",
    [subjects.DEFAULT, subjects.POLL, subjects.SLEEP, subjects.NODES, subjects.NODES_PLAIN],
    ids=lambda subject: subject.name,
)
def test_what_was_sent_arrives_by_each_way_that_ours_offers(subject: Subject) -> None:
    with running(subject) as pair:
        for more in ({"size": SMALL}, {"size": LARGE, "as_array": True}):
            near, far = ask(pair, "verify", count=3, seed=7, **more)
            assert near["crc"] == far["crc"] and len(set(near["crc"])) == 3
        ask(pair, "typed", count=COUNT)  # the far half looks at every field
        for run in ("bulk", "loaned"):
            _, far = ask(pair, run, size=LARGE, count=COUNT, window=8, read=True)
            assert far["sum"] > 0
        near, _ = ask(pair, "round_trips", size=SMALL, count=COUNT)
        assert len(near["ns"]) == COUNT
        near, _ = ask(pair, "one_way", size=SMALL, count=64 * COUNT, batch=64)
        assert near["ns"] > 0


def test_messages_between_nodes_cost_their_daemons_time_and_messages_on_one_node_do_not() -> None:
    used = {}
    for subject in (subjects.DEFAULT, subjects.NODES):
        with running(subject) as pair:
            ask(pair, "round_trips", size=SMALL, count=COUNT)  # flows are made with the first
            near, far = ask(pair, "round_trips", size=SMALL, count=2000)
            assert far["daemons_cpu_ns"] == 0
            used[subject.name] = near["daemons_cpu_ns"] / 2000
    assert used[subjects.NODES.name] > 2000 > used[subjects.DEFAULT.name]


def test_broadcast_and_its_allowance_are_figures_of_their_own() -> None:
    with running(subjects.BROADCAST) as pair:
        for run in ("broadcast", "broadcast_allowance"):
            near, _ = ask(pair, run, size=LARGE, receivers=8, count=3)
            assert 0 < near["figures"]["ms"] < 1000


@pytest.mark.parametrize(
    "subject", [subjects.with_channels(30), subjects.with_ports(6)], ids=lambda each: each.name
)
def test_round_trips_attaches_and_opens_are_timed_beside_what_else_is_open(
    subject: Subject,
) -> None:
    with running(subject) as pair:
        near, _ = ask(pair, "round_trips", size=SMALL, count=COUNT)
        assert len(near["ns"]) == COUNT
        for run in ("attach", "open", "connect"):
            near, _ = ask(pair, run, count=4)
            assert near["figures"]["p50_us"] > 0
