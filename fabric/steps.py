"""Named steps of the protocols, at which a test can kill, stop or end the process that reaches them.

Nothing happens unless ``FABRIC_FAULTS=1`` and ``FABRIC_STEP=NAME:ACTION[:NTH]``: the first process that reaches
step NAME for the NTH time gets the signal of ACTION (kill, stop, term). ``FABRIC_STEP_MARK=FILE`` makes it happen once in
all processes together: who creates FILE does it, and leaves its pid there. The native core has the same steps in
`core/steps.hpp`; names are unique over both, and a test finds all of them in the source.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}


@dataclass(slots=True)
class Armed:
    """The one step that is waited for, and how often it is still to be passed."""

    name: str
    action: signal.Signals
    left: int
    mark: str

    def reach(self) -> None:
        """Count one pass; the last one signals the own process, if no other process did before."""
        self.left -= 1
        if self.left == 0 and self._is_first():
            os.kill(os.getpid(), self.action)

    def _is_first(self) -> bool:
        if not self.mark:
            return True
        try:
            fd = os.open(self.mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        os.write(fd, str(os.getpid()).encode())
        os.close(fd)
        return True


def parse(text: str, mark: str = "") -> Armed | None:
    """Return what ``FABRIC_STEP`` asks for; None for text that names no known action."""
    name, _, rest = text.partition(":")
    action, _, count = rest.partition(":")
    if not name or action not in ACTIONS or not (count or "1").isdigit():
        return None
    return Armed(name, ACTIONS[action], max(1, int(count or "1")), mark)


def _from_environment() -> Armed | None:
    if os.environ.get("FABRIC_FAULTS") != "1":
        return None
    return parse(os.environ.get("FABRIC_STEP", ""), os.environ.get("FABRIC_STEP_MARK", ""))


_armed = _from_environment()


def at(name: str) -> None:
    """Say that the step `name` is reached: the effects before it are done, those behind it are not."""
    if _armed is not None and _armed.name == name:
        _armed.reach()
