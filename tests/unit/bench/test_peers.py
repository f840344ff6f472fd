"""Every peer delivers what was sent, by each way that it offers, and nothing of it stays when it ends.

A peer whose library is not in ``build/bench-venv`` is skipped: only the bench itself needs them all.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import loops, subjects
from bench.rounds import fit
from bench.sides import FREE, PEERS_PYTHON, ROOT, STOP_S, Pair, Subject

IMPORT_S = 60.0
ORDER_S = 60.0
SHARED = Path("/dev/shm")
pytestmark = pytest.mark.machine
SMALL, LARGE = 64, (1 << 20) + 4096
WINDOW, COUNT = 8, 21
PEERS = [
    each
    for each in vars(subjects).values()
    if isinstance(each, Subject) and each.module.startswith("bench.peers.")
]


def libraries(peer: Subject) -> set[str]:
    """Return what the file of a peer imports beside the standard library and the bench."""
    found: set[str] = set()
    source = ROOT / (peer.module.replace(".", "/") + ".py")
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"bench"}


@functools.cache
def missing(names: frozenset[str]) -> str:
    """Return why the interpreter of the peers cannot import libraries; nothing where it can."""
    if not PEERS_PYTHON.exists():
        return f"{PEERS_PYTHON.relative_to(ROOT)} is not there"
    command = [str(PEERS_PYTHON), "-c", f"import {', '.join(sorted(names))}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_S, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def left_behind(before: set[Path]) -> set[Path]:
    """Return what is new in shared memory and mapped by nobody."""
    mapped = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mapped.append((process / "maps").read_text())
        except OSError:  # it ended meanwhile
            continue
    everything = "".join(mapped)
    return {each for each in set(SHARED.iterdir()) - before if str(each) not in everything}


@pytest.fixture(
    params=PEERS,
    ids=lambda peer: peer.name.replace(" ", "-"),
)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    peer: Subject = request.param
    reason = "" if peer.interpreter == "own" else missing(frozenset(libraries(peer)))
    if reason:
        pytest.skip(reason)
    before = set(SHARED.iterdir())
    pair = Pair(peer, FREE)
    yield pair
    start = time.monotonic()
    pair.stop()
    assert time.monotonic() - start < STOP_S, "it had to be killed"
    assert not pair.folder.exists()
    left, until = left_behind(before), time.monotonic() + STOP_S
    while left and time.monotonic() < until:  # whoever is at work beside this test clears away
        time.sleep(0.05)
        left &= left_behind(before)
    assert not left


def verify(pair: Pair, run: str, **order: object) -> None:
    """Compare checksums of random contents, where the peer offers a workload as it is asked for."""
    fitted = fit(pair.can, {"run": run})
    if fitted is not None and fitted["run"] == run:
        near, far = pair.order({"run": "verify", "seed": 11, "count": 3, **order}, ORDER_S)
        assert len(near["crc"]) == 3 and near["crc"] == far["crc"], run


def measure(pair: Pair, **order: object) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Run a workload as the peer does it; None where it offers nothing for it."""
    fitted = fit(pair.can, order)
    return None if fitted is None else pair.order(fitted, ORDER_S)


def sum_of_all(count: int) -> int:
    """Return what the far half sums up when it reads `count` arrays: the sources in turn."""
    sums = [
        int(np.add.reduce(loops.payload({"size": LARGE, "seed": seed}).view(np.uint64)))
        for seed in range(loops.SOURCES)
    ]
    return sum(sums[number % loops.SOURCES] for number in range(count)) % (1 << 64)


def test_peer_delivers_what_was_sent_by_each_way_it_offers(pair: Pair) -> None:
    verify(pair, "one_way", size=SMALL)
    verify(pair, "bulk", size=LARGE, as_array=True)
    verify(pair, "loaned", size=LARGE, as_array=True, loaned=True)
    trips = measure(pair, run="round_trips", size=SMALL, count=20)
    typed = measure(pair, run="typed", count=20)  # the far half looks at every field
    window = measure(pair, run="bulk", size=LARGE, count=COUNT, window=WINDOW, read=True)
    assert trips or typed or window, "it offers nothing"
    assert trips is None or (len(trips[0]["ns"]) == 20 and min(trips[0]["ns"]) > 0)
    assert typed is None or typed[0]["ns"] > 0
    assert window is None or (window[0]["ns"] > 0 and window[1]["sum"] == sum_of_all(COUNT))
