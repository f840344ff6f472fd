"""The words of rtnetlink: messages and their attributes, as `linux/rtnetlink.h` has them. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, sender
LINK = struct.Struct("=BxHiII")  # family, type, index, flags, changed flags
ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_NLA_TYPE_MASK = 0x3FFF

NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 2, 3, 4
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
DUMP_REQUEST = 0x1 | 0x300  # NLM_F_REQUEST | NLM_F_DUMP
NLM_F_DUMP_INTR = 0x10  # the table changed while it was read out
GROUPS = 0x1 | 0x10 | 0x100  # links, IPv4 addresses, IPv6 addresses
IFLA_IFNAME, IFLA_MTU = 3, 4
IFA_ADDRESS, IFA_LOCAL = 1, 2
IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x08, 0x40  # not usable: is, or may be, someone else's
SCOPE_LINK = 253
IFF_UP, IFF_RUNNING = 0x1, 0x40  # switched on; able to carry (carrier, and not dormant)


def request(kind: int, body: bytes, sequence: int) -> bytes:
    """Return the message that asks for a whole table."""
    return HEADER.pack(HEADER.size + len(body), kind, DUMP_REQUEST, sequence, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, flags and body of each message; one that is cut short ends it."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, flags, _, _ = HEADER.unpack_from(data, at)
        if length < HEADER.size or at + length > len(data):
            return
        yield kind, flags, data[at + HEADER.size : at + length]
        at += (length + 3) & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of each attribute; one that is cut short ends it."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            return
        yield kind & _NLA_TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
