"""A stream socket over loopback tcp: TCP_NODELAY, and buffers that the kernel sizes.

The kernel grows the buffers of a connection as it needs and stops doing so once SO_SNDBUF or SO_RCVBUF is set, so they
are left alone. Cubic where there is a choice: the pacing of bbr costs bandwidth on loopback.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.peers.rendezvous import exchange
from bench.peers.unix_socket import CONNECT_S, StreamEnd, meet

HOST = "127.0.0.1"
CONGESTION_CONTROL = b"cubic"


def connect(role: str, folder: Path, options: dict[str, Any]) -> StreamEnd:
    """Near listens, far connects."""
    if role == "near":
        stream = accept(folder)
    else:
        stream = meet(role, socket.AF_INET, (HOST, int(exchange(folder, role, b""))))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with suppress(OSError):
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL)
    return StreamEnd(stream)


def accept(folder: Path) -> socket.socket:
    """Listen on a port of the kernel's choice, say which, and return the one connection."""
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(CONNECT_S)
        exchange(folder, "near", str(listener.getsockname()[1]).encode())
        stream, _ = listener.accept()
        stream.settimeout(None)
        return stream
