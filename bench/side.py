"""One half of a subject, in a process of its own: ``python -m bench.side MODULE near|far FOLDER OPTIONS CPUS``.

Orders come as JSON lines on stdin, answers leave as JSON lines on the stdout that the process was started with;
whatever a library prints goes to stderr. An order is ``{"run": WORKLOAD, …}``; the far half answers ``{"armed":
true}`` before it waits for the near one. Every answer has `cpu_ns`, what the whole process used meanwhile, and
`daemons_cpu_ns`, what daemons that it started used (0 where the end has no such method). A half ends with its stdin.
Runs under the interpreter of the peer: nothing here needs more than numpy.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from bench import loops


def main(arguments: list[str]) -> int:
    """Connect, then serve orders."""
    module, role, folder, options, cpus = arguments
    if cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        end = importlib.import_module(module).connect(role, Path(folder), json.loads(options))
    except Exception:
        say(answers, {"error": traceback.format_exc(limit=-4)})
        return 1
    say(answers, {"connected": True, "pid": os.getpid(), **loops.describe(end)})
    try:
        for line in sys.stdin:
            serve(end, role, json.loads(line), answers)
    finally:
        end.close()
    return 0


def serve(end: Any, role: str, order: dict[str, Any], answers: TextIO) -> None:
    """Run one workload and answer with what it measured; an error is the answer, too."""
    if role == "far":
        say(answers, {"armed": True})
    others = getattr(end, "daemons_cpu_ns", lambda: 0)
    started, others_started = time.process_time_ns(), others()
    try:
        found = loops.run(end, role, order)
    except Exception:
        found = {"error": traceback.format_exc(limit=-4)}
    used = {"cpu_ns": time.process_time_ns() - started, "daemons_cpu_ns": others() - others_started}
    say(answers, {**found, **used})


def say(answers: TextIO, fields: dict[str, Any]) -> None:
    """Write one line."""
    answers.write(json.dumps(fields) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
