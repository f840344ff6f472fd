"""Run probes of rails, from this node or on behalf of another one, and accept those of others.

A rail is dialled by the node that dials its data connections, between the same two addresses: rail numbers and pairs
are the accepting node's. Asked to measure a rail that the other node dials, this one has it dial and measure towards
us. Belongs to the daemon's loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fabric import errors, limits
from fabric.controlplane import rail_probe
from fabric.controlplane.rail_probe import Wish
from fabric.links import congestion
from fabric.links.rail_link import is_gpu, is_ucx

if TYPE_CHECKING:
    import socket

    from fabric.controlplane.daemon import Daemon
    from fabric.registry.records import NodeRecord

Rows = Sequence[dict[str, Any]]
_NO_PROBE = "a probe measures a socket, and this rail's bytes go beside one: see its rate in fabricctl path ls"


class PathProbes:
    """Belongs to the daemon's loop; at most `limits.PATH_PROBES_MAX` connections of others at once."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._served = 0

    async def run(self, node: NodeRecord, rows: Rows, wish: Wish) -> dict[str, Any]:
        """Measure rails one after another; one that cannot be measured says why instead.

        Returns
        -------
        dict
            ``rails``: a row each, with its figures or ``failed``; ``seconds`` and ``bytes`` spent.
        """
        began, found = time.monotonic(), []
        for row in rows:
            found.append(await self.one(node, row, wish))
        return {
            "source": self._daemon.context.name,
            "peer": node.name,
            "rails": found,
            "seconds": round(time.monotonic() - began, 3),
            "bytes": sum(row.get("bytes", 0) for row in found),
        }

    async def together(self, node: NodeRecord, rows: Rows, wish: Wish) -> list[dict[str, Any]]:
        """Measure rails all at once, as the engine uses them."""
        return list(await asyncio.gather(*(self.one(node, row, wish) for row in rows)))

    async def one(self, node: NodeRecord, row: dict[str, Any], wish: Wish) -> dict[str, Any]:
        """Measure one rail; returns its row with the figures, or with ``failed``."""
        about = {key: row.get(key) for key in ("rail", "interface", "local", "remote", "state")}
        if is_ucx(link := str(row.get("link", ""))) or is_gpu(link):
            return {**about, "failed": _NO_PROBE}
        try:
            if self._daemon.membership.links.dials(node.number):
                figures = await self._measure(node.number, row["rail"], wish)
            else:
                figures = await self._have_measured(node.number, row["rail"], wish)
        except errors.FabricError as error:
            return {**about, "failed": error.message}
        return {**about, **figures}

    async def serve(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Measure a rail that this node dials for the node at its other end."""
        wish = Wish(**fields["wish"]).check()
        return await self._measure(fields["node"], fields["rail"], wish)

    async def accept(self, sock: socket.socket) -> None:
        """Obey a probe's connection until it ends; closes the socket."""
        if self._served >= limits.PATH_PROBES_MAX:
            sock.close()
            return
        self._served += 1
        congestion.choose(sock, self._daemon.options.tcp_congestion, is_scheduled=True)
        try:
            await rail_probe.serve(sock)
        finally:
            self._served -= 1

    # ---------------------------------------------------------------- parts
    async def _measure(self, number: int, rail: int, wish: Wish) -> dict[str, Any]:
        sock = await self._daemon.membership.links.dial_probe(number, rail)
        try:
            return (await rail_probe.measure(sock, wish)).row()
        finally:
            sock.close()

    async def _have_measured(self, number: int, rail: int, wish: Wish) -> dict[str, Any]:
        """Have the node that dials this rail measure what comes from here."""
        fields = {
            "node": self._daemon.context.number,
            "rail": rail,
            "wish": {
                "trips": wish.trips,
                "size_bytes": wish.size_bytes,
                "seconds": wish.seconds,
                "outward": not wish.outward,
            },
        }
        limit_s = wish.seconds + 3 * limits.PATH_PROBE_WAIT_S
        return await self._daemon.calls.call(number, "path_measure", fields, limit_s)
