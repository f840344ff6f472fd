"""What happens after a living process closed a sender: once nothing is outstanding, its counts are archived, then its
ledger is given back, so that a process may open and close senders without end.

Archived first, forgotten then: between the two it is in both places, and whoever sums them up prefers the ledger.
A restarted daemon begins again with every sender of a port whose endpoint is not open.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fabric import errors, limits, steps
from fabric.controlplane.context import Context
from fabric.controlplane.death import final_counts
from fabric.controlplane.endpoints import EndpointTable
from fabric.controlplane.flows import FlowTable
from fabric.controlplane.ports import Port, PortTable
from fabric.registry.client import RegistryClient
from fabric.registry.records import EndpointRecord

log = logging.getLogger("fabricd.senders")

_POLL_S = (0.002, 0.5)
ROOM_S = 0.8 * limits.CONTROL_CALL_S  #: within what the process waits for its answer
CLOSED_SENDERS_MAX = limits.ENDPOINTS_PER_PORT_MAX // 4  #: of one port, before it may open more


class SenderRetirer:
    """Belongs to the daemon's loop; one task for each port that has closed senders."""

    def __init__(
        self,
        context: Context,
        ports: PortTable,
        endpoints: EndpointTable,
        flows: FlowTable,
        registry: RegistryClient,
    ) -> None:
        self._context = context
        self._ports = ports
        self._endpoints = endpoints
        self._flows = flows
        self._registry = registry
        self._closed: dict[int, set[int]] = {}  # port → closed senders with a ledger
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def closed(self, record: EndpointRecord) -> None:
        """Retire what a closed endpoint had sent with."""
        endpoint = record.endpoint if record.role == "sender" else record.reply_endpoint
        if endpoint:
            self._begin(record.port, {endpoint})

    def restore(self) -> None:
        """Go on with the ledgers that no open endpoint has."""
        for port in self._ports:
            if port.is_alive and port.kind != "gateway":
                self._begin(port.port, {e for e in port.senders if self._endpoints.get(e) is None})

    def stop(self) -> None:
        """End the background work; the ledgers themselves say where to go on."""
        for task in self._tasks.values():
            task.cancel()

    async def room(self, port: Port) -> None:
        """Wait until a port has few closed senders left, so that a ledger is free for one more.

        Raises
        ------
        CapacityError
            What they had sent does not end.
        """
        try:
            async with asyncio.timeout(ROOM_S):
                pause = _POLL_S[0]
                while len(self._closed.get(port.port, ())) >= CLOSED_SENDERS_MAX:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _POLL_S[1])
        except TimeoutError as error:
            raise errors.CapacityError(
                f"{len(self._closed[port.port])} closed senders of {port.name} still have messages under way;"
                " flush them before they are closed, or use fewer",
                limit="ENDPOINTS_PER_PORT_MAX",
            ) from error

    # ---------------------------------------------------------------- parts
    def _begin(self, port: int, endpoints: set[int]) -> None:
        if not endpoints:
            return
        self._closed.setdefault(port, set()).update(endpoints)
        if port not in self._tasks:
            task = asyncio.get_running_loop().create_task(self._retire(port))
            self._tasks[port] = task
            task.add_done_callback(lambda done: self._done(port, done))

    def _done(self, port: int, task: asyncio.Task[None]) -> None:
        self._tasks.pop(port, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("closed senders kept", exc_info=task.exception(), extra={"port": port})

    async def _retire(self, number: int) -> None:
        pause = _POLL_S[0]
        while self._closed.get(number):
            port = self._ports.get(number)
            if port is None or not port.is_alive:
                break  # its death archives everything
            try:
                done = await self._retire_once(port, self._closed[number])
            except (errors.FabricError, OSError) as error:
                log.info("sender not forgotten yet", extra={"port": number, "reason": str(error)})
                done = set()
            self._closed[number] -= done
            pause = _POLL_S[0] if done else min(pause * 2, _POLL_S[1])
            await asyncio.sleep(pause)
        self._closed.pop(number, None)

    async def _retire_once(self, port: Port, closed: set[int]) -> set[int]:
        """Archive and forget the closed senders with nothing outstanding; returns those that are gone."""
        with_flows = {out.endpoint for out in self._flows.outs.values()}
        found = self._context.native.inspect_ledgers(port.state_fd, list(closed))
        rows = {row["endpoint"]: row for row in found}
        gone = closed - rows.keys() - with_flows
        ready = [e for e, row in rows.items() if e not in with_flows and _is_over(row)]
        if ready:
            await self._registry.archive(final_counts({"ledgers": [rows[e] for e in ready]}))
            steps.at("sender.archived")
        for endpoint in ready:
            await port.push("sender_forget", {"endpoint": endpoint})
        done = gone | set(ready)
        port.senders = [e for e in port.senders if e not in done]
        if port.is_alive:  # a dead one may be forgotten by now
            self._ports.keep(port)
        return done


def _is_over(row: dict[str, Any]) -> bool:
    """Tell whether nothing of a ledger is under way."""
    return all(entry["state"] == "ended" for entry in row["outstanding"])
