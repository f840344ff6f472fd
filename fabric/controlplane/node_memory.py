"""What a node's own bookkeeping takes: pages of its shared segments that are really there, and its two processes.

Reads sizes only, when a status is asked for. A page counts once it was written, so an idle port or channel is cheap.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

_BLOCK_BYTES = 512  # of st_blocks
_HEAD_BYTES = os.sysconf("SC_PAGE_SIZE")  # of a state segment, before its tables


def memory(daemon: Daemon) -> dict[str, int]:
    """Return bytes by purpose.

    Returns
    -------
    dict
        ``ports_bytes`` (heads and doorbells), ``channels_bytes`` (ledgers, flows and held messages of the ends here),
        ``lanes_bytes``, ``arenas_bytes``: shared, and counted by pages. ``port_bytes`` and ``channel_bytes``: the first
        two for one port and one channel with an end here, on average. ``daemon_bytes`` and ``keeper_bytes``: private.
    """
    ports = list(daemon.ports)
    states = [taken(port.state_fd) for port in ports]
    heads = sum(min(_HEAD_BYTES, state) for state in states)
    ports_bytes = heads + sum(taken(port.doorbell_fd) for port in ports)
    channels_bytes = sum(states) - heads
    channels = len({end.channel for end in daemon.endpoints.all()})
    return {
        "ports_bytes": ports_bytes,
        "channels_bytes": channels_bytes,
        "port_bytes": ports_bytes // max(1, len(ports)),
        "channel_bytes": channels_bytes // max(1, channels),
        "lanes_bytes": total(lane.fd for lane in daemon.lanes.all()),
        "arenas_bytes": total(segment.fd for segment in daemon.segments.all()),
        "daemon_bytes": private(os.getpid()),
        "keeper_bytes": private(os.getppid()),
    }


def total(fds: Iterable[int]) -> int:
    """Return the bytes that are really there of several segments."""
    return sum(taken(fd) for fd in fds)


def taken(fd: int) -> int:
    """Return the bytes of a segment that are really there; 0 of one that was closed meanwhile."""
    with contextlib.suppress(OSError):
        return os.fstat(fd).st_blocks * _BLOCK_BYTES
    return 0


def private(pid: int) -> int:
    """Return the anonymous memory of a process that is in use; 0 of one that is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    return 0
