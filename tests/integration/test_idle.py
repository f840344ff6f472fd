"""A node with nothing to do costs next to nothing."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.node import BenchNode
from fabric import limits

IDLE_S = 8.0
SETTLE_S = 2.0
CPU_OF_ONE_CORE_MAX = 0.01
#: Where a process that sleeps wakes with cold caches, waking costs milliseconds, whoever wakes: the floor shows it.
FLOORS_MAX = 4.0
WAKES_PER_S_MAX = 25.0  #: 15 are the daemon's looks, beats and gRPC's timers
ANONYMOUS_BYTES_MAX = 64 << 20

FLOOR = """
import asyncio
async def wake():
    while True:
        await asyncio.sleep({interval_s})
asyncio.run(wake())
"""


def processes(node: BenchNode) -> list[psutil.Process]:
    keeper = psutil.Process(node.pid)
    return [keeper, *keeper.children(recursive=True)]


def cpu_s(found: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in found)


def wakes(found: list[psutil.Process]) -> int:
    """How often the threads of these processes went to sleep so far."""
    tasks = [task for p in found for task in Path(f"/proc/{p.pid}/task").iterdir()]
    return sum(value_of(task / "status", "voluntary_ctxt_switches:") for task in tasks)


def anonymous_bytes(process: psutil.Process) -> int:
    return value_of(Path(f"/proc/{process.pid}/status"), "RssAnon:") << 10


def value_of(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise AssertionError(f"no {name} in {path}")


@contextlib.contextmanager
def bare_loop() -> Iterator[psutil.Process]:
    """A Python process that does nothing but wake as often as the daemon looks at its ports."""
    source = FLOOR.format(interval_s=limits.LIVENESS_MS / 1000)
    with subprocess.Popen([sys.executable, "-c", source]) as floor:
        try:
            yield psutil.Process(floor.pid)
        finally:
            floor.kill()


@pytest.mark.slow
@pytest.mark.deadline(90)
def test_idle_node_sleeps_and_stays_small(short_dir: Path) -> None:
    """Daemon and keeper: few wakes, 1 % of a core or four bare event loops, and at most 64 MiB of anonymous memory."""
    node = BenchNode(short_dir)
    node.start()
    try:
        with bare_loop() as floor:
            time.sleep(SETTLE_S)  # start-up work is not idleness
            found = processes(node)
            assert len(found) >= 2, "keeper and daemon are two processes"
            before, floor_before, woken = cpu_s(found), cpu_s([floor]), wakes(found)
            time.sleep(IDLE_S)
            used, floor_used = cpu_s(found) - before, cpu_s([floor]) - floor_before
            woken = wakes(found) - woken
            memory = sum(anonymous_bytes(process) for process in found)
    finally:
        node.stop()
    assert woken / IDLE_S <= WAKES_PER_S_MAX
    assert used <= max(CPU_OF_ONE_CORE_MAX * IDLE_S, FLOORS_MAX * floor_used), (used, floor_used)
    assert memory <= ANONYMOUS_BYTES_MAX, f"{memory / 2**20:.1f} MiB anonymous"
