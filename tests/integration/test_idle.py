"""A node with nothing to do costs next to nothing."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from bench.node import BenchNode

IDLE_S = 30.0
SETTLE_S = 2.0
CPU_S_MAX = 0.3
ANONYMOUS_BYTES_MAX = 64 << 20


def processes(node: BenchNode) -> list[psutil.Process]:
    keeper = psutil.Process(node.pid)
    return [keeper, *keeper.children(recursive=True)]


def cpu_s(found: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in found)


def anonymous_bytes(process: psutil.Process) -> int:
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon in /proc")


@pytest.mark.slow
@pytest.mark.deadline(90)
def test_idle_node_sleeps_and_stays_small(short_dir: Path) -> None:
    """Daemon and keeper together: at most 0.3 s of CPU in 30 s, at most 64 MiB of anonymous memory."""
    node = BenchNode(short_dir)
    node.start()
    try:
        time.sleep(SETTLE_S)  # start-up work is not idleness
        found = processes(node)
        assert len(found) >= 2, "keeper and daemon are two processes"
        before = cpu_s(found)
        time.sleep(IDLE_S)
        used = cpu_s(found) - before
        memory = sum(anonymous_bytes(process) for process in found)
    finally:
        node.stop()
    assert used <= CPU_S_MAX, f"{used:.2f} s of CPU in {IDLE_S:.0f} s"
    assert memory <= ANONYMOUS_BYTES_MAX, f"{memory / 2**20:.1f} MiB anonymous"
