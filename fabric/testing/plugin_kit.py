"""The conformance kit of plugins: `python -m fabric.testing.plugin_kit TARGET`, or `fabricctl plugin test TARGET`.

Everything of the plugin runs in child processes, which may raise, hang, allocate, exit or crash; what they found up to
then counts. A row for each check: held, broken (with what was found), or left out (with why).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

CHECK_S: Final = 20.0  # for all checks of one child
HELD, BROKEN, LEFT_OUT = "held", "broken", "left out"
Row = dict[str, str]


def check(target: str, seed: int = 1) -> list[Row]:
    """Check a plugin file, module or installed plugin.

    Returns
    -------
    list of dict
        ``subject`` (what of the plugin), ``check``, ``verdict`` (held, broken, left out) and ``detail``.
    """
    rows, first = _child(target, seed)
    if any(row["verdict"] == BROKEN for row in rows):
        return rows
    _, again = _child(target, seed, kill_after="decided")
    _, after = _child(target, seed)
    for subject, digests in first.items():
        same = after.get(subject) == digests
        detail = "" if same else "a new process decides otherwise: what it had seen before matters"
        if again or not first:
            detail = detail or "a killed process leaves nothing that the next one needs"
        rows.append(row(subject, "kill -9 and again", HELD if same else BROKEN, detail))
    return rows


def row(subject: str, name: str, verdict: str, detail: str = "") -> Row:
    """Return one line of the report."""
    return {"subject": subject, "check": name, "verdict": verdict, "detail": detail}


def _child(target: str, seed: int, kill_after: str = "") -> tuple[list[Row], dict[str, str]]:
    """Run the checks in a child; with `kill_after`, kill it once it has said that."""
    argv = [sys.executable, "-m", "fabric.testing.plugin_kit", "--child", str(seed), target]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    rows: list[Row] = []
    digests: dict[str, str] = {}
    under_way = "loading"
    try:
        for line in _lines(process):
            if "under_way" in line:
                under_way = line["under_way"]
            elif "digest" in line:
                digests[line["subject"]] = line["digest"]
                if kill_after:
                    return rows, digests
            else:
                rows.append(line)
        status = process.wait(1.0)
    except subprocess.TimeoutExpired:
        status = -signal.SIGKILL
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    if status:
        rows.append(row(under_way, "stays alive", BROKEN, _how(status)))
    return rows, digests


def _how(status: int) -> str:
    if status == -signal.SIGALRM:
        return f"did not end within {CHECK_S:g} s"
    if status < 0:
        return f"its process ended by {signal.Signals(-status).name}"
    return f"its process ended with exit status {status}"


def _lines(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for text in process.stdout:
        if text.startswith("\x1e"):
            yield json.loads(text[1:])


def report(rows: Sequence[Row]) -> str:
    """Return the rows as people read them, the broken ones with what was found."""
    width = max((len(f"{r['subject']}: {r['check']}") for r in rows), default=0)
    lines = []
    for each in rows:
        name = f"{each['subject']}: {each['check']}"
        lines.append(f"{each['verdict']:>8}  {name:<{width}}  {each['detail']}".rstrip())
    broken = sum(r["verdict"] == BROKEN for r in rows)
    lines.append(f"{len(rows)} checks, {broken} broken")
    return "\n".join(lines)


def _run_child(target: str, seed: int) -> int:
    """Load and check in this process; rows go out one by one, so that a crash loses none."""
    from fabric.testing import plugin_checks

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the plugin prints

    def say(value: dict[str, Any]) -> None:
        out.write("\x1e" + json.dumps(value) + "\n")
        out.flush()

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(int(CHECK_S))
    plugin_checks.run(target, seed, say)
    return 0


def main(arguments: Sequence[str]) -> int:
    """Check what the arguments name; exit status 1 when something is broken."""
    if arguments[:1] == ["--child"]:
        return _run_child(arguments[2], int(arguments[1]))
    names = [a for a in arguments if not a.startswith("-")]
    if len(names) != 1:
        sys.stderr.write("usage: python -m fabric.testing.plugin_kit [--json] FILE|MODULE|NAME\n")
        return 2
    began_s = time.monotonic()
    rows = check(names[0])
    if "--json" in arguments:
        sys.stdout.write(json.dumps(rows) + "\n")
    else:
        sys.stdout.write(f"{report(rows)} in {time.monotonic() - began_s:.1f} s\n")
    return 1 if any(each["verdict"] == BROKEN for each in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
