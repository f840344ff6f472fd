"""Say what channel fields module classes have, as JSON, without attaching or starting anything.

`python -m fabric.worker.host --describe CLASS …` imports each class (which runs its file's top level) in a process of
its own, which `run` bounds in time. The answer is a marked line of JSON on stdout: class path → description.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fabric import limits
from fabric.errors import FabricError
from fabric.messages import message_type
from fabric.worker.host import load_module_class
from fabric.worker.module import fields_of

_ERROR_CHARACTERS = 500
_MARK = "fabric-describe: "
_PR_SET_PDEATHSIG = 1
_OUTPUT_BYTES_MAX = 16 << 20


def describe(class_path: str) -> dict[str, Any]:
    """Return `{ends: [{name, kind, types}], file, digest}` of a class, or `{error, is_refused}`."""
    try:
        cls = load_module_class(class_path)
        ends = [
            {
                "name": field.name,
                "kind": field.kind.__name__.lower(),
                "types": [message_type(one).schema.name for one in field.types],
            }
            for field in fields_of(cls)
        ]
        file = inspect.getsourcefile(cls) or ""
    except (
        Exception,
        SystemExit,
    ) as error:  # whatever a foreign file raises while it is imported is the answer
        text = str(error) if isinstance(error, FabricError) else f"{type(error).__name__}: {error}"
        return {"error": text[:_ERROR_CHARACTERS] or "it raised", "is_refused": True}
    return {"ends": ends, "file": file, "digest": digest_of(file)}


def digest_of(file: str) -> str:
    """Return the SHA-256 of a file; empty when it cannot be read."""
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return ""


def main(class_paths: Sequence[str]) -> int:
    """Print the descriptions; what the classes print themselves goes to stderr."""
    _end_with_parent()
    resource.setrlimit(resource.RLIMIT_FSIZE, (_OUTPUT_BYTES_MAX, _OUTPUT_BYTES_MAX))
    real, sys.stdout = sys.stdout, sys.stderr
    found = {path: describe(path) for path in class_paths}
    real.write(f"\n{_MARK}{json.dumps(found)}\n")
    real.flush()
    os._exit(
        0
    )  # nothing that an import left behind (threads, exit handlers) may hold the answer up


def run(class_paths: Sequence[str], deadline_s: float = limits.DESCRIBE_S) -> dict[str, Any]:
    """Describe classes in a process of its own; blocks for at most `deadline_s`, never raises for what a class does.

    Returns
    -------
    dict
        Class path → description; all of them `{error}` when the process did not answer.
    """
    if not class_paths:
        return {}
    command = [sys.executable, "-m", "fabric.worker.host", "--describe", *class_paths]
    # A file, not a pipe: what an import leaves running could hold a pipe open for ever.
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            return _all_unknown(class_paths, f"no process to look at it: {error.strerror}")
        has_ended = _wait_and_end(process, deadline_s)
        output.seek(0)
        printed = output.read(_OUTPUT_BYTES_MAX)
    if not has_ended:
        return _all_unknown(class_paths, f"importing it took longer than {deadline_s:g} s")
    for line in reversed(printed.decode(errors="replace").splitlines()):
        if line.startswith(_MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return found
    return _all_unknown(
        class_paths, f"the process that imported it ended with {process.returncode}"
    )


def _wait_and_end(process: subprocess.Popen[bytes], deadline_s: float) -> bool:
    """Wait for a process, then end it and all that it started; False when it had not ended by itself."""
    ended = os.pidfd_open(process.pid)
    try:
        poller = select.poll()  # a daemon has more descriptors than select() knows
        poller.register(ended, select.POLLIN)
        has_ended = bool(poller.poll(deadline_s * 1000))
        os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the number is still its group's
    finally:
        os.close(ended)
        process.wait(limits.CLOSE_S)
    return has_ended


def _all_unknown(class_paths: Sequence[str], why: str) -> dict[str, Any]:
    return {path: {"error": why} for path in class_paths}


def _end_with_parent() -> None:
    """Ask the kernel to end this process with the one that started it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
