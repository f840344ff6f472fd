"""Where this machine can be reached: its IPv4 addresses by interface, and which of them leads to a peer's.

Two of the kernel's tables and a file of sysfs a call; nothing is kept. Light to import: the keeper reads this before
the daemon starts. `/sys` may show another network namespace than the process is in, so it is asked for speed alone.
"""

from __future__ import annotations

import collections
import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fabric.paths.discovery import rtnetlink, tables

SYSFS = Path("/sys/class/net")
_LOWER_UP, _LOOPBACK = 0x10000, 0x8  # IFF_: there is a carrier; the loopback interface
_SPEED_UNKNOWN = (1 << 32) - 1  # -1 as some drivers write it


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """One IPv4 address of an interface.

    Parameters
    ----------
    interface : str
    address : str
        Dotted.
    prefix : int
        Bits of the network.
    is_usable : bool
        The interface is up and has a carrier.
    is_loopback : bool
    index : int
        Of the interface, in this process's network namespace.
    """

    interface: str
    address: str
    prefix: int
    is_usable: bool = True
    is_loopback: bool = False
    index: int = 0

    def holds(self, other: str) -> bool:
        """Tell whether a dotted address is in this one's network."""
        mask = ((1 << self.prefix) - 1) << (32 - self.prefix)
        theirs = number_of(other)
        return theirs is not None and theirs & mask == (number_of(self.address) or 0) & mask


def number_of(address: str) -> int | None:
    """Return a dotted IPv4 address as a number; None for anything else, names too."""
    try:
        return int.from_bytes(socket.inet_pton(socket.AF_INET, address), "big")
    except (OSError, UnicodeError):
        return None


def local_addresses() -> tuple[LocalAddress, ...]:
    """Return every IPv4 address of this network namespace, in the order of interfaces.

    Returns
    -------
    tuple of LocalAddress
        Empty where the system does not tell.
    """
    with contextlib.suppress(OSError, struct.error):
        links = dict(_links())
        found = []
        for index, prefix, address in _addresses():
            name, flags = links.get(index, ("", 0))
            is_usable = flags & rtnetlink.IFF_UP != 0 and flags & _LOWER_UP != 0
            found.append(
                LocalAddress(name, address, prefix, is_usable, flags & _LOOPBACK != 0, index)
            )
        return tuple(sorted(found, key=lambda a: a.index))
    return ()


def usable(found: Sequence[LocalAddress]) -> tuple[LocalAddress, ...]:
    """Return what other machines can use, and loopback's only where there is nothing else."""
    up = [a for a in found if a.is_usable]
    return tuple([a for a in up if not a.is_loopback] or up)


def bits_per_second(name: str, index: int, root: Path = SYSFS) -> int:
    """Return the speed that an interface claims, in bits/s; 0 where it does not say.

    A file that cannot be read (EINVAL: the interface has no speed, or is down), -1 and 2^32-1 all mean that. So does a
    folder of another network namespace's interface of the same name.
    """
    try:
        if int((root / name / "ifindex").read_text()) != index:
            return 0
        megabits = int((root / name / "speed").read_text())
    except (OSError, ValueError):
        return 0
    return megabits * 1_000_000 if 0 < megabits < _SPEED_UNKNOWN else 0


def owner_of(address: str, found: Sequence[LocalAddress]) -> LocalAddress | None:
    """Return the interface that an own address belongs to, with that address.

    The network of loopback is its own as a whole, so 127.0.0.2 is the loopback interface's.
    """
    exact = next((a for a in found if a.address == address), None)
    if exact is not None:
        return exact
    near = next((a for a in found if a.is_loopback and a.holds(address)), None)
    if near is None:
        return None
    return LocalAddress(near.interface, address, near.prefix, near.is_usable, True, near.index)


def pair(
    listening: Sequence[LocalAddress], others: Sequence[LocalAddress], peers: Sequence[str]
) -> list[LocalAddress | None]:
    """Choose the local address for each address of a peer: one in the same network.

    Parameters
    ----------
    listening : sequence of LocalAddress
        What this node was told to use; preferred.
    others : sequence of LocalAddress
        The rest of this machine's.
    peers : sequence of str
        Addresses of the peer's rails. Where several of ours are in the network of several of theirs, each is used
        about equally often, so that two interfaces in one network are two rails.

    Returns
    -------
    list of LocalAddress or None
        None: no interface is in that network, the kernel's route decides.
    """
    taken: collections.Counter[str] = collections.Counter()
    chosen: list[LocalAddress | None] = []
    for peer in peers:
        near = [a for a in listening if a.holds(peer)] or [
            a for a in others if a.is_usable and a.holds(peer)
        ]
        best = min(near, key=lambda a: taken[a.address], default=None)
        if best is not None:
            taken[best.address] += 1
        chosen.append(best)
    return chosen


def device_for(local: LocalAddress, peer: str, found: Sequence[LocalAddress]) -> str:
    """Return the interface to bind a connection to; empty where what goes to the peer stays on this machine."""
    if local.is_loopback or owner_of(peer, found) is not None:
        return ""
    return local.interface


# -------------------------------------------------------------------- what the kernel tells
def _links() -> Iterator[tuple[int, tuple[str, int]]]:
    for body in tables.read(rtnetlink.RTM_GETLINK):
        _, _, index, flags, _ = rtnetlink.LINK.unpack_from(body)
        fields = dict(rtnetlink.attributes(body[rtnetlink.LINK.size :]))
        name = fields.get(rtnetlink.IFLA_IFNAME, b"")
        yield index, (name.rstrip(b"\0").decode(errors="replace"), flags)


def _addresses() -> Iterator[tuple[int, int, str]]:
    for body in tables.read(rtnetlink.RTM_GETADDR, socket.AF_INET):
        family, prefix, _, _, index = rtnetlink.ADDRESS.unpack_from(body)
        fields = dict(rtnetlink.attributes(body[rtnetlink.ADDRESS.size :]))
        raw = fields.get(rtnetlink.IFA_LOCAL) or fields.get(rtnetlink.IFA_ADDRESS)
        if family == socket.AF_INET and raw is not None and len(raw) == 4:
            yield index, prefix, socket.inet_ntop(socket.AF_INET, raw)
