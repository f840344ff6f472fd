"""Run the far half of a subject in a process of its own: ``python -m bench.echo SUBJECT ADDRESS [CPU,…]``.

The subject's module has `echo(address)`, which serves until its peer says stop.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

from bench.harness import Placement

START_S = 30.0
STOP_S = 5.0


class EchoProcess:
    """The far process of one subject; ends when told to, killed when it does not listen."""

    def __init__(self, module: str, address: str, placement: Placement) -> None:
        cpus = ",".join(map(str, placement.far)) or "-"
        command = [sys.executable, "-m", "bench.echo", module, address, cpus]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)

    def stop(self) -> None:
        """Wait for the end that the peer asked for; then insist."""
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S)


def main(arguments: list[str]) -> None:
    """Serve one subject."""
    module, address, cpus = arguments
    if cpus != "-":
        os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})
    importlib.import_module(module).echo(address)


if __name__ == "__main__":
    main(sys.argv[1:])
