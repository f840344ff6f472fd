"""Check that generated files in the tree are what their sources give now.

``python tools/check_generated.py [--write]``; without ``--write`` it changes nothing, and exit status 1 names each
stale file. The extension must have been built from the present sources (`make build`).
"""

from __future__ import annotations

import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / "fabric/_native.pyi"
STUB_PATTERNS = ROOT / "fabric/native/bind/stub_patterns.txt"
SCHEMA = ROOT / "docs/fabric.schema.json"


def api_is_current(write: bool) -> bool:
    """Whether the gRPC code matches its proto."""
    command = [sys.executable, "-m", "fabric.controlplane.api.generate"]
    if not write:
        command.append("--check")
    return subprocess.run(command, cwd=ROOT, check=False, timeout=120).returncode == 0


def generated_stub() -> str:
    """Return the stub that nanobind makes from the built extension."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "_native.pyi"
        command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "fabric._native"]
        command += ["-p", str(STUB_PATTERNS)]
        subprocess.run([*command, "-o", str(target)], cwd=folder, check=True, timeout=120)
        return target.read_text()


def stub_is_current(write: bool) -> bool:
    """Whether the stub in the tree is the extension's own."""
    found, expected = STUB.read_text(), generated_stub()
    if write:
        STUB.write_text(expected)
        return True
    if found == expected:
        return True
    before, after = found.splitlines(True), expected.splitlines(True)
    sys.stderr.writelines(difflib.unified_diff(before, after, str(STUB), "generated", n=1))
    sys.stderr.write(f"{STUB} is stale: make build, then python tools/check_generated.py --write\n")
    return False


def schema_is_current(write: bool) -> bool:
    """Whether the published JSON Schema is what the readers of fabric.yaml give."""
    from fabric.config import json_schema

    if write:
        SCHEMA.write_text(json_schema.text())
    if SCHEMA.is_file() and SCHEMA.read_text() == json_schema.text():
        return True
    sys.stderr.write(f"{SCHEMA} is stale: python tools/check_generated.py --write\n")
    return False


def main(arguments: list[str]) -> int:
    """Run every check; 1 when a file is stale."""
    write = arguments == ["--write"]
    return (
        0 if all([api_is_current(write), stub_is_current(write), schema_is_current(write)]) else 1
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
