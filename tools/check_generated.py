"""Check that generated files in the tree are what their sources give now; changes nothing.

Run from the root: ``python tools/check_generated.py``. Exit status 1 names each stale file.
"""

from __future__ import annotations

import difflib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / "fabric/_native.pyi"


def api_is_current() -> bool:
    """The gRPC code matches its proto."""
    command = [sys.executable, "-m", "fabric.controlplane.api.generate", "--check"]
    return subprocess.run(command, cwd=ROOT, check=False, timeout=120).returncode == 0


def generated_stub() -> str:
    """Return the stub that nanobind makes from the built extension."""
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "fabric._native", "-o", "-"]
    made = subprocess.run(
        command, cwd=ROOT, check=True, timeout=120, capture_output=True, text=True
    )
    return made.stdout


def main() -> int:
    """Run every check; 1 when a file is stale."""
    fine = api_is_current()
    found, expected = STUB.read_text(), generated_stub()
    if found != expected:
        sys.stderr.writelines(
            difflib.unified_diff(
                found.splitlines(True), expected.splitlines(True), str(STUB), "generated", n=1
            )
        )
        sys.stderr.write(f"{STUB} is stale: .venv/bin/python tools/write_stub.py\n")
        fine = False
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
