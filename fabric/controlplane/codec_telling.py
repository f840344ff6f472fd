"""What the senders of channels with codecs are told: a new codec, and how fast the paths to their receivers are now.

Belongs to the daemon's loop. Rates are the scheduler's, of the rails that carry chunks; one that was not measured yet
is not told, and its messages go raw. A node without such senders does nothing here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

from fabric import errors
from fabric.controlplane.endpoints import plain_codecs
from fabric.controlplane.stage_parts import StageParts
from fabric.registry.records import EndpointRecord, View

TELL_S: Final = 0.1  #: between looks at the paths
IDLE_S: Final = 0.2  #: between looks whether there is a sender
CHANGED: Final = 0.03  #: of a rate, before it is told again

RateTo = Callable[[int], float]


class CodecTelling:
    """One per daemon. `rate_to` says the rate of the path to a node in bytes/s, 0 where it was not measured."""

    def __init__(self, parts: StageParts) -> None:
        self._context = parts.context
        self._ports = parts.ports
        self._flows = parts.flows
        self._endpoints = parts.endpoints
        self._told: dict[int, list[dict[str, Any]]] = {}
        self._rates: dict[int, dict[int, float]] = {}  # by port
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._coded: set[int] = set()  # channels with codecs
        self.rate_to: RateTo = lambda node: 0.0

    def tell(self, view: View) -> None:
        """Tell local senders of other codecs.

        One that was told nothing yet has what its `open` answered, which may be of the plan before; it is told where
        that may matter, and takes no notice of what it has.
        """
        codecs = {c.number: plain_codecs(c) for c in view.channels}
        told, self._told = self._told, {}
        for record in self._senders():
            if record.channel not in codecs:
                continue
            wanted = self._told[record.endpoint] = codecs[record.channel]
            is_new = record.endpoint not in told
            if told.get(record.endpoint) != wanted and (not is_new or wanted or record.transform):
                self._push(record.port, "codecs", {"endpoint": record.endpoint, "codecs": wanted})
        self._coded = {number for number, wanted in codecs.items() if wanted}
        if self._coded and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().create_task(self._look())

    def _senders(self) -> Iterable[EndpointRecord]:
        return [record for record in self._endpoints.all() if record.role == "sender"]

    async def _look(self) -> None:
        """Tell rates as long as there is a channel whose senders ask for them."""
        while self._coded:
            wanted = self._wanted()
            for port, nodes in wanted.items():
                rates = {node: self.rate_to(node) for node in nodes}
                if _is_other(self._rates.get(port, {}), rates):
                    self._rates[port] = rates
                    self._push(port, "path_rates", {"rates": sorted(rates.items())})
            await asyncio.sleep(TELL_S if wanted else IDLE_S)
        self._rates.clear()

    def _wanted(self) -> dict[int, set[int]]:
        """Return the nodes that each port with coded senders sends to."""
        found: dict[int, set[int]] = {}
        for flow in self._flows.outs.values():
            if flow.channel in self._coded and flow.target_node != self._context.number:
                found.setdefault(flow.port, set()).add(flow.target_node)
        return found

    def _push(self, number: int, op: str, fields: dict[str, Any]) -> None:
        port = self._ports.get(number)
        if port is None or not port.is_alive:
            return

        async def push() -> None:
            try:
                await port.push(op, fields)
            except errors.FabricError as error:
                self._rates.pop(number, None)
                self._context.events.add(f"{op} not told", port=number, reason=str(error))

        task = asyncio.get_running_loop().create_task(push())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_other(before: dict[int, float], now: dict[int, float]) -> bool:
    if before.keys() != now.keys():
        return True
    return any(abs(now[node] - before[node]) > CHANGED * before[node] for node in now)
