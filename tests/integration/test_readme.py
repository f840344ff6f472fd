"""The first example of the README is what it says: it runs as it stands, and it is short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.node import BenchNode

ROOT = Path(__file__).parent.parent.parent
LINES_MAX = 30


def first_example() -> str:
    found = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert found, "README.md has no Python example"
    return found.group(1)


def test_first_example_is_under_thirty_lines() -> None:
    assert len(first_example().splitlines()) < LINES_MAX


@pytest.mark.slow
def test_first_example_sends_and_receives_a_tensor(short_dir: Path) -> None:
    script = short_dir / "first.py"
    script.write_text(first_example())
    node = BenchNode(short_dir)
    node.start()
    try:
        ran = subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, "FABRIC_SOCKET": str(node.socket)},
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
    finally:
        node.stop()
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "step 1 sum 192.0\n"
