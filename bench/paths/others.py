"""Scenarios beyond a stream over rails: incast, a pinned rail, corrupted chunks, and programs of their own."""

from __future__ import annotations

import importlib
import json
import subprocess
import threading
from typing import Any

from bench.paths import scenarios, timeline
from bench.paths.choice import choice
from bench.paths.layouts import PORT_MBIT, SENDERS, IncastStage
from bench.paths.nodes import Nodes
from bench.paths.scenarios import Figures, Order, stream, trips, warm
from bench.paths.stage import Stage
from bench.sides import FLOOR, ROOT, SubjectFailed

COST = FLOOR.with_name("scheduler_cost")
COST_S = 60.0
CRC_ERRORS = 'event="crc_errors"'


def incast(stage: Stage, who: str, order: Order) -> Figures:
    """Four senders at once, and round trips of the first one beside them."""
    assert isinstance(stage, IncastStage)
    pairs = [stage.sender(number, "bulk") for number in range(SENDERS)]
    pinger = stage.sender(0, "ping")
    for pair in pairs:
        warm(stage, who, pair, order)
    pings = {"run": "pings", "size": order["size"], "seconds": 1.5}
    idle = trips(stage, who, pinger, pings)
    found: list[Any] = [None] * SENDERS

    def send(number: int) -> None:
        found[number] = stream(stage, who, pairs[number], {**order, "give_up_s": 30.0})

    threads = [threading.Thread(target=send, args=(n,), daemon=True) for n in range(SENDERS)]
    for thread in threads:
        thread.start()
    busy = trips(stage, who, pinger, pings)
    for thread in threads:
        thread.join()
    if not all(each is not None and each.is_whole for each in found):
        raise SubjectFailed(f"{who}: " + "; ".join(each.why for each in found if each is not None))
    return {**of_incast(found), "added_ms": max(0.0, timeline.p99(busy) - timeline.p99(idle)) / 1e6}


def of_incast(found: list[scenarios.Stream]) -> Figures:
    """Return what four streams to one port come to; fairness until the first of them is through."""
    start, end = min(each.start for each in found), max(each.arrivals.end for each in found)
    first = min(each.arrivals.end for each in found)
    total = sum(each.arrivals.bytes for each in found)
    possible = PORT_MBIT * 1e6 / 8 * scenarios.PAYLOAD
    latest_start = max(each.start for each in found)
    shares = [each.arrivals.between(latest_start, first) for each in found]
    return {
        "share": total / ((end - start) / 1e9) / possible,
        "jain": timeline.jain(shares),
        "gb_per_s": total / (end - start),
        "wrong": float(sum(each.wrong() for each in found)),
    }


def pinned(stage: Stage, who: str, order: Order) -> Figures:
    """As steady, with the sending node's rails pinned to the first one."""
    scenarios.pin(stage, 0)
    try:
        return scenarios.steady(stage, who, order)
    finally:
        scenarios.pin(stage)


def corrupted(stage: Stage, who: str, order: Order) -> Figures:
    """A stream whose sending node has one bit flipped in one of `every` frames."""
    fault = f"link_corrupt:{order['every']}"
    nodes = stage.nodes(fault=fault)
    pair = stage.pair(who, part="corrupt", fault=fault)
    found = stream(stage, who, pair, {**order, "give_up_s": order["seconds"] + 20.0})
    counted = sum(crc_errors(nodes, number) for number in (0, 1))
    return {
        "gb_per_s": found.arrivals.rate() / 1e9,
        "wrong": float(found.wrong()),
        "uncounted": 0.0 if counted else 1.0,
    }


def crc_errors(nodes: Nodes, number: int) -> float:
    """Return what a node counted as arrived with a wrong checksum."""
    with nodes.client(number) as client:
        lines = [line for line in client.metrics().splitlines() if CRC_ERRORS in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def cost(stage: Stage | None, who: str, order: Order) -> Figures:
    """Run the program that measures the scheduler by itself."""
    if not COST.exists():
        raise SubjectFailed(f"{COST.relative_to(ROOT)} is not there; `make bench-floor` makes it")
    try:
        said = subprocess.run([str(COST)], capture_output=True, timeout=COST_S, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise SubjectFailed(f"{COST.name}: {error}") from error
    return {name: float(value) for name, value in json.loads(said).items()}


def simulated(stage: Stage | None, who: str, order: Order) -> Figures:
    """Replay a trace with one policy."""
    return program("bench.paths.simulated", who)


def program(module: str, who: str) -> Figures:
    """Return the figures of a module that measures by itself.

    Raises
    ------
    SubjectFailed
        It is not there, or fails.
    """
    try:
        found = importlib.import_module(module).figures(who)
    except Exception as error:
        raise SubjectFailed(f"{module}: {type(error).__name__}: {error}") from error
    return {name: float(value) for name, value in found.items()}


OTHERS: dict[str, scenarios.Scenario] = {
    "incast": incast,
    "pinned": pinned,
    "corrupted": corrupted,
    "cost": cost,  # type: ignore[dict-item]
    "simulated": simulated,  # type: ignore[dict-item]
    "choice": choice,  # type: ignore[dict-item]
}
