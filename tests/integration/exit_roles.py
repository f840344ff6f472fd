"""Processes that leave in every way but the tidy one: `python exit_roles.py HOW`; they consume and hold what they got.

Each receives three messages, keeps arrays over them, says so, and waits for a line on stdin. Then it does as HOW says.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time

import fabric
from tests.integration.kill_roles import Part, report

KEPT = 3


def take() -> tuple[object, list[object], list[object]]:
    """Attach, receive, keep views and arrays; nothing is acknowledged or released."""
    port = fabric.attach("leaver")
    port.declare("work", Part, pattern="queue", delivery="at_least_once")
    inn = port.receiver("work", Part)
    report(ready=True)
    views = [inn.receive(timeout=20.0) for _ in range(KEPT)]
    arrays = [view.data for view in views]
    report(holding=[view.number for view in views])
    sys.stdin.readline()
    return port, views, arrays


def return_from_main(held: object) -> None:
    """The interpreter ends with everything alive."""
    globals()["kept_for_ever"] = held


def in_a_cycle(held: object) -> None:
    """Views in a cycle, collected while the interpreter goes down."""
    gc.disable()
    cycle: list[object] = [held]
    cycle.append(cycle)


def by_exception(held: object) -> None:
    """An error nobody catches."""
    raise RuntimeError("leaving by an error, as the test asks")


def at_once(held: object) -> None:
    """No interpreter shutdown at all."""
    os._exit(0)


def by_exec(held: object) -> None:
    """The same process becomes another program, which lives on."""
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"])


def after_fork(held: object) -> None:
    """A child is forked and lives on; the parent goes."""
    child = os.fork()
    if child == 0:
        time.sleep(60.0)
        os._exit(0)
    report(child=child)
    os._exit(0)


def list_descriptors(held: object) -> None:
    """What a program started from here inherits."""
    code = "import os, json; print(json.dumps([os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}') or os.path.islink(f'/proc/self/fd/{n}')]))"  # noqa: E501
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    report(inherited=json.loads(out.stdout))


if __name__ == "__main__":
    globals()[sys.argv[1]](take())
