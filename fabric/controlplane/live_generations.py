"""Which generations still carry messages, asked of every node; how a further one waits for room among them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fabric import errors, limits
from fabric.registry.planbook import PlanBook

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon


class LiveGenerations:
    """Belongs to the daemon's loop, on the registry's node."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def room_for_one_more(self, book: PlanBook) -> None:
        """Wait until fewer than `limits.GENERATIONS_MAX` are live; refuse naming what keeps the oldest."""
        deadline = asyncio.get_running_loop().time() + limits.GENERATION_WAIT_S
        pause, longest = limits.GENERATION_POLL_S
        while len(book.live()) >= limits.GENERATIONS_MAX:
            usage = await self.close_empty(book)
            if (
                asyncio.get_running_loop().time() >= deadline
                and len(book.live()) >= limits.GENERATIONS_MAX
            ):
                oldest = min(book.live())
                held = [u for u in usage if u["generation"] == oldest] or usage
                what = ", ".join(
                    f"{u['messages']} messages in {u['flows']} flows of channel {u['channel']!r} on node {u['node']!r}"
                    for u in held[:4]
                )
                raise errors.CapacityError(
                    f"GENERATIONS_MAX ({limits.GENERATIONS_MAX}) generations are live; the oldest, {oldest}, still has"
                    f" {what} in flight: let them be consumed, then apply again",
                    limit="GENERATIONS_MAX",
                    live=list(book.live()),
                    in_flight=held[:16],
                )
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def close_empty(self, book: PlanBook) -> list[dict[str, Any]]:
        """Forget older graphs of which no node has anything; returns what there is of the others."""
        nodes = {n.name: n.number for n in self._daemon.registry.view.nodes if n.state != "dead"}
        usage = []
        for name, number in nodes.items():
            answer = await self._daemon.calls.call(number, "plan_usage", {}, limits.CONTROL_CALL_S)
            usage += [{**row, "node": name} for row in answer["usage"]]
        held = {(row["channel"], row["generation"]) for row in usage}
        numbers = {c.number: c.name for c in self._daemon.registry.view.channels}
        held |= {
            (numbers.get(e.channel, ""), e.generation)
            for e in self._daemon.registry.view.endpoints
            if e.transform
        }
        graphs = {
            (c.name, g.generation) for c in self._daemon.registry.view.channels for g in c.older
        }
        book.forget_graphs(graphs - held)
        return usage
