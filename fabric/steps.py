"""Named steps of the protocols, at which a test can kill, stop or end the process that reaches them.

Nothing happens unless ``FABRIC_FAULTS=1`` and a step is armed: by ``FABRIC_STEP=NAME:ACTION[:NTH]`` for the life of
a process, or by ``FABRIC_STEP_PAGE=FILE``, a file of `PAGE_BYTES` bytes that begins with the same text and may be
written again at any time. The process that reaches step NAME for the NTH time gets the signal of ACTION (kill, stop,
term); with a page, or with ``FABRIC_STEP_MARK=FILE``, once in all processes together: who creates FILE (the page's name
and ``.done``) does it, and leaves its pid there. A page that says ``*`` has every process add the names of the steps it
reaches to the page's name and ``.seen``. `core/steps.hpp` does the same; names are unique over both.
"""

from __future__ import annotations

import mmap
import os
import signal

PAGE_BYTES = 256
ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}


def parse(text: str) -> tuple[str, signal.Signals, int] | None:
    """Return (name, signal, nth) of an armed step; None for text that names no known action."""
    name, _, rest = text.partition(":")
    action, _, count = rest.partition(":")
    if not name or action not in ACTIONS or not (count or "1").isdigit():
        return None
    return name, ACTIONS[action], max(1, int(count or "1"))


class Trap:
    """What is armed for this process, and how often it was passed."""

    def __init__(self, text: str, mark: str, page: mmap.mmap | None) -> None:
        self._text = text
        self._mark = mark
        self._page = page
        self._passed = 0
        self._seen: set[str] = set()

    def reach(self, name: str) -> None:
        """Count a pass of the armed step; the last one signals the own process, unless another was first."""
        if self._page is not None:
            self._read(self._page)
            if self._text == "*":
                self._record(name)
        armed = parse(self._text)
        if armed is None or armed[0] != name:
            return
        self._passed += 1
        if self._passed == armed[2] and self._is_first():
            os.kill(os.getpid(), armed[1])

    def _record(self, name: str) -> None:
        if name in self._seen:
            return
        self._seen.add(name)
        fd = os.open(
            self._mark.removesuffix(".done") + ".seen",
            os.O_WRONLY | os.O_CREAT | os.O_APPEND,
            0o600,
        )
        os.write(fd, f"{name}\n".encode())
        os.close(fd)

    def _read(self, page: mmap.mmap) -> None:
        text = page[:PAGE_BYTES].split(b"\0", 1)[0].decode(errors="replace")
        if text != self._text:
            self._text, self._passed = text, 0
            self._seen.clear()

    def _is_first(self) -> bool:
        if not self._mark:
            return True
        try:
            fd = os.open(self._mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        os.write(fd, str(os.getpid()).encode())
        os.close(fd)
        return True


def _from_environment() -> Trap | None:
    if os.environ.get("FABRIC_FAULTS") != "1":
        return None
    path = os.environ.get("FABRIC_STEP_PAGE", "")
    if path:
        with open(path, "rb") as file:
            return Trap(
                "", path + ".done", mmap.mmap(file.fileno(), PAGE_BYTES, prot=mmap.PROT_READ)
            )
    text = os.environ.get("FABRIC_STEP", "")
    return Trap(text, os.environ.get("FABRIC_STEP_MARK", ""), None) if text else None


_trap = _from_environment()


def at(name: str) -> None:
    """Say that the step `name` is reached: the effects before it are done, those behind it are not."""
    if _trap is not None:
        _trap.reach(name)
