"""`import fabric` is cheap: a tool that only asks a question does not pay for a model."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

ADDED_MS_MAX = 150.0
ROUNDS = 9


def run(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    return (time.perf_counter() - start) * 1e3


@pytest.mark.slow
def test_import_adds_little_to_a_bare_interpreter() -> None:
    """Medians of interleaved runs, so that a busy machine slows both sides alike."""
    run("import fabric")
    pairs = [(run("pass"), run("import fabric")) for _ in range(ROUNDS)]
    added = statistics.median(b for _, b in pairs) - statistics.median(a for a, _ in pairs)
    assert added <= ADDED_MS_MAX, f"import fabric adds {added:.0f} ms"


def test_import_brings_no_heavy_package() -> None:
    heavy = "torch transformers grpc pydantic typer rich yaml zmq"
    code = f"import fabric, sys; print(*[m for m in '{heavy}'.split() if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=30, capture_output=True, text=True
    )
    assert found.stdout.split() == []
