"""Data connections of rails whose link is UCX: what both sides offer for them, and the links that are made of them.

Belongs to the daemon's loop. UCX is loaded with the first rail of it, and looks at the machine's devices for each
connection, some milliseconds: on a thread, one at a time.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fabric import errors
from fabric.abc.link import GPU_FRAMES, UCX_FRAMES
from fabric.links import addresses
from fabric.links.rail_link import is_gpu, is_ucx, transports_of

_WITHIN_MACHINE = frozenset({"shm", "posix", "sysv", "cma", "self"})


def offer_dialling(link: str, features: int) -> int:
    """Return the features to offer for a connection of a rail: one of UCX or over GPUs keeps its checksums.

    Its peer may still read what this side has given up (docs/decisions/0009): then it must not take it for the payload.
    """
    if is_gpu(link):
        return GPU_FRAMES
    return UCX_FRAMES if is_ucx(link) else features


def offer_accepting(links: Iterable[str], features: int) -> int:
    """Return the features to offer to who connects, before it says to which rail."""
    for link in links:
        features |= UCX_FRAMES if is_ucx(link) else GPU_FRAMES if is_gpu(link) else 0
    return features


class UcxRails:
    """One per daemon."""

    def __init__(self) -> None:
        self._making = asyncio.Lock()

    async def make(self, sock: socket.socket, session: int, rail_link: str, local: str) -> Any:
        """Return the link over a proven connection, for `NodeGateway.add_link`; the socket is its own, or closed.

        Parameters
        ----------
        rail_link : str
            As `RailRecord.link`; both sides know it, since one of them told the other.
        local : str
            Own address of the connection: network transports keep to its interface.

        Raises
        ------
        PathBrokenError
            UCX, or its transports, are not there, or the peer has none.
        """
        from fabric.links import ucx

        if not is_ucx(rail_link):
            sock.close()
            raise errors.PathBrokenError("the peer takes a rail of tcp for one of ucx")
        transports = transports_of(rail_link)
        try:
            devices = devices_for(transports, local)
        except errors.FabricError:
            sock.close()
            raise
        async with self._making:
            return await asyncio.to_thread(
                ucx.make_link, sock.detach(), session, transports, devices
            )


def devices_for(transports: str, local: str, root: Path = addresses.SYSFS) -> str:
    """Return UCX's names of the devices of an own address: its interface, and the InfiniBand or RoCE ports behind it.

    Empty for transports that use no network.

    Raises
    ------
    PathBrokenError
        No interface has that IPv4 address: UCX, left to itself, would listen on all of them.
    """
    if _WITHIN_MACHINE.issuperset(transports.split(",")):
        return ""
    owner = addresses.owner_of(local, addresses.local_addresses())
    if owner is None:
        raise errors.PathBrokenError(
            f"no interface here has the IPv4 address {local!r}, and a rail of UCX keeps to one",
            address=local,
        )
    device = root / owner.interface / "device" / "infiniband"
    try:
        port = int((root / owner.interface / "dev_port").read_text()) + 1
        verbs = sorted(each.name for each in device.iterdir())
    except (OSError, ValueError):
        return owner.interface
    return ",".join([*(f"{name}:{port}" for name in verbs), owner.interface])
