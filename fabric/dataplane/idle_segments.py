"""Which empty segments of an arena are given back, and which stay for the next message.

A new segment costs its pages: several times what it takes to copy into pages that are there. So one that stayed
empty for `limits.SEGMENT_IDLE_S` is kept on up to `limits.SEGMENT_KEPT_S`, as far as the daemon allows (`keep_bytes`)
and while the machine has memory to spare. No IO but the reading of /proc and /sys. One thread at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from fabric import limits

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


class IdleSegments:
    """Since when the segments of one arena are empty.

    Parameters
    ----------
    has_spare_memory : callable, optional
        Asked when a segment has been empty for `limits.SEGMENT_IDLE_S`.
    """

    def __init__(self, has_spare_memory: Callable[[], bool] | None = None) -> None:
        self.keep_bytes = 0  #: that may stay longer than `limits.SEGMENT_IDLE_S`
        self._has_spare_memory = has_spare_memory or has_spare
        self._since: dict[int, float] = {}

    def due(self, empty: Mapping[int, int], now_s: float) -> list[int]:
        """Return those of the empty segments (number → bytes) that are to be given back now.

        Where not all may stay, those that were used last do.
        """
        self._since = {number: self._since.get(number, now_s) for number in empty}
        late = [n for n, since in self._since.items() if now_s - since >= limits.SEGMENT_IDLE_S]
        if not late:
            return []
        room = self.keep_bytes if self._has_spare_memory() else 0
        found = []
        for number in sorted(late, key=self._since.__getitem__, reverse=True):
            is_old = now_s - self._since[number] >= limits.SEGMENT_KEPT_S
            if is_old or empty[number] > room:
                found.append(number)
            else:
                room -= empty[number]
        return found

    def forget(self, number: int) -> None:
        """Begin anew with a segment: it was given back, or is in use again."""
        self._since.pop(number, None)


def has_spare() -> bool:
    """Whether `limits.MEMORY_SPARE` of the memory is available: the machine's, and that of the control group."""
    return min(_of_machine(), _of_cgroup()) >= limits.MEMORY_SPARE


def _of_machine() -> float:
    """Return the available part of the machine's memory; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, KeyError, ZeroDivisionError):
        fields = _numbers(_MEMINFO)
        return fields["MemAvailable:"] / fields["MemTotal:"]
    return 0.0


def _of_cgroup() -> float:
    """Return the part of this process's allowance that is left, with what the kernel could drop; 1 without one."""
    with contextlib.suppress(OSError, ValueError, KeyError, ZeroDivisionError, StopIteration):
        line = next(line for line in _CGROUP.read_text().splitlines() if line.startswith("0::"))
        group = _CGROUPS / line[3:].lstrip("/")
        allowed = int((group / "memory.max").read_text())  # "max": ValueError
        stat = _numbers(group / "memory.stat")
        droppable = stat["file"] - stat["shmem"]
        return 1 - (int((group / "memory.current").read_text()) - droppable) / allowed
    return 1.0


def _numbers(path: Path) -> dict[str, int]:
    """Return the second word of each line by the first."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
