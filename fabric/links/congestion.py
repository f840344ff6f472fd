"""Which congestion control a tcp connection between two nodes gets, and why (docs/decisions/0007, 0008).

`choose` does a few socket options, once a connection. No state.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from fabric.errors import ConfigError

#: As the system says; one that does not pace within a machine, and for chunks: a scheduler bounds what is in flight.
AUTO = "auto"
SYSTEM = "system"  #: as the system says, everywhere
UNPACED = ("cubic", "reno")  #: the first that this process may use
_ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
_NAME_BYTES_MAX = 16  # TCP_CA_NAME_MAX


def choose(sock: socket.socket, wanted: str = AUTO, *, is_scheduled: bool = False) -> str:
    """Give a connected socket its congestion control.

    Parameters
    ----------
    sock : socket.socket
        Connected; one that is not tcp is left alone.
    wanted : str
        `AUTO`, `SYSTEM`, or the name of one.
    is_scheduled : bool
        The connection carries chunks, of which a scheduler keeps few in flight.

    Returns
    -------
    str
        What it has now; empty where that is not known.
    """
    if wanted == AUTO:
        names: tuple[str, ...] = UNPACED if is_scheduled or is_within_machine(sock) else ()
    else:
        names = () if wanted == SYSTEM else (wanted,)
    for name in names:
        with contextlib.suppress(OSError):  # not there, or not for this user
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
            break
    with contextlib.suppress(OSError):
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _NAME_BYTES_MAX)
        return raw.rstrip(b"\0").decode()
    return ""


def is_within_machine(sock: socket.socket) -> bool:
    """Whether both ends have the same address, or loopback's: what is sent crosses no network."""
    with contextlib.suppress(OSError):
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            here, there = sock.getsockname()[0], sock.getpeername()[0]
            return bool(here == there or (here.startswith("127.") and there.startswith("127.")))
    return False


def check(wanted: str) -> str:
    """Return `wanted` where it can be had.

    Raises
    ------
    ConfigError
        The system has no such congestion control, or keeps it from this user.
    """
    if wanted in (AUTO, SYSTEM):
        return wanted
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, wanted.encode())
        except OSError as error:
            allowed = ""
            with contextlib.suppress(OSError):
                allowed = f" here: {', '.join(_ALLOWED.read_text().split())}"
            raise ConfigError(
                f"--tcp-congestion {wanted!r}: {error.strerror}; use {AUTO}, {SYSTEM} or one that is allowed{allowed}",
                key="--tcp-congestion",
                found=wanted,
            ) from error
    return wanted
