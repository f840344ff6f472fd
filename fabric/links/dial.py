"""Connect to one rail of a peer: from the local address in its network, over that interface alone, within a time.

A connection that is bound to its interface stays on its rail: when the interface goes, the kernel must not lead it over
another one, where it would share that one's rate and hide the loss.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from dataclasses import dataclass

from fabric.errors import DeadlineExceeded, PathBrokenError

_TCP_INFO_BYTES = 104
_RETRANSMITS, _UNACKED, _LAST_ACK_MS = (
    2,
    24,
    56,
)  # offsets in struct tcp_info: a byte, and two of 32 bits
_SLACK_S = 0.02


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect, and from where.

    Parameters
    ----------
    host : str
        Address or name.
    port : int
    local : str
        Own address to connect from; empty: the kernel's route decides.
    device : str
        Interface to keep to; empty: any.
    """

    host: str
    port: int
    local: str = ""
    device: str = ""

    def __str__(self) -> str:
        here = f" from {self.local}" if self.local else ""
        over = f" over {self.device}" if self.device else ""
        return f"{self.host}:{self.port}{here}{over}"


async def dial(target: Target, within_s: float) -> socket.socket:
    """Connect and return the socket, non-blocking.

    Raises
    ------
    DeadlineExceeded
        No answer within `within_s`.
    PathBrokenError
        Refused, unreachable, or the local address or interface is not there now.

    Notes
    -----
    A system that keeps SO_BINDTODEVICE from this user gets the address only.
    """
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        async with asyncio.timeout(within_s):
            _bind(sock, target)
            await loop.sock_connect(sock, (target.host, target.port))
    except TimeoutError as error:
        sock.close()
        raise DeadlineExceeded(f"{target} does not answer within {within_s:g} s") from error
    except OSError as error:
        sock.close()
        # asyncio's own text repeats the address instead of the reason.
        number = error.errno or 0
        why = os.strerror(number) if number > 0 else str(error)
        raise PathBrokenError(f"cannot reach {target}: {why}", address=str(target)) from error
    except BaseException:
        sock.close()
        raise
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _bind(sock: socket.socket, target: Target) -> None:
    if target.device:
        with contextlib.suppress(PermissionError):
            name = target.device.encode() + b"\0"
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
    if target.local and sock.family == socket.AF_INET:
        sock.bind((target.local, 0))


def nudge(target: Target) -> None:
    """Send an empty datagram to a peer whose rail may be back, so that both kernels find each other's hardware address.

    A kernel that asked in vain asks again only a second later; it takes the address from this side's question at once.
    Whether anybody listens there does not matter; what fails here is no loss.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        _bind(sock, target)
        sock.sendto(b"", (target.host, target.port))


def give_up_after(sock: socket.socket, silent_s: float) -> None:
    """Have the kernel break a connection whose peer's kernel confirms nothing for that long, idle or not.

    A peer that is stopped or busy still confirms: only a dead path, or a dead machine, breaks it.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)  # whole seconds, the least there is
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(silent_s * 1000))


def is_stalled(sock: socket.socket, sent_s_ago: float) -> bool:
    """Tell whether the peer's kernel has confirmed nothing since something was sent so many seconds ago.

    That is the path: a peer whose process is stopped or busy confirms. What the kernel sends again anyway counts too.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return False  # closed, or not tcp: whoever reads it finds out
    if len(info) < _LAST_ACK_MS + 4:
        return False
    (unacked,) = struct.unpack_from("=I", info, _UNACKED)
    (last_ack_ms,) = struct.unpack_from("=I", info, _LAST_ACK_MS)
    is_silent = last_ack_ms / 1000 >= sent_s_ago - _SLACK_S
    return unacked > 0 and (is_silent or info[_RETRANSMITS] > 0)
