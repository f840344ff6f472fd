"""Packets between keeper and daemon: one SEQPACKET each, JSON head, raw value, at most one descriptor.

A packet in the socket buffer outlives its sender, so a `put` that was sent is durable even when the
daemon is killed right after it. Standard library only: the keeper imports this.
"""

from __future__ import annotations

import array
import json
import socket
import struct
from typing import Any

Packet = tuple[dict[str, Any], bytes, int]

FD_LOST = -2  #: the descriptor that came could not be taken: RLIMIT_NOFILE
PACKET_BYTES_MAX = 128 * 1024  #: below the default socket buffer, so that one packet always fits
_HEAD = struct.Struct("<I")


def pack(head: dict[str, Any], value: bytes = b"") -> bytes:
    """Return the bytes of one packet; raises `ValueError` above `PACKET_BYTES_MAX`."""
    text = json.dumps(head, separators=(",", ":")).encode()
    data = _HEAD.pack(len(text)) + text + value
    if len(data) > PACKET_BYTES_MAX:
        raise ValueError(
            f"a keeper packet of {len(data)} bytes, PACKET_BYTES_MAX is {PACKET_BYTES_MAX}"
        )
    return data


def send_packet(sock: socket.socket, data: bytes, fd: int = -1) -> None:
    """Send one packet whole; the kernel takes its own reference to `fd`."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive_packet(sock: socket.socket) -> Packet | None:
    """Read one packet; None at end of stream. The descriptor (or -1, or `FD_LOST`) belongs to the caller."""
    data, ancillary, flags, _ = sock.recvmsg(
        PACKET_BYTES_MAX, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data:
        return None
    (size,) = _HEAD.unpack_from(data)
    head = json.loads(data[4 : 4 + size])
    none = FD_LOST if flags & socket.MSG_CTRUNC else -1
    return head, data[4 + size :], fds[0] if fds else none
