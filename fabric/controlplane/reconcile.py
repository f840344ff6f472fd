"""Keep the flows of every local sender as the view asks, one worker per sender endpoint.

A slow or dying process delays only its own flows. A flow that cannot be set up is tried again after
`limits.FLOW_RETRY_S` while the view still asks for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from fabric import errors, limits
from fabric.controlplane.endpoints import EndpointTable
from fabric.controlplane.flow_plan import Changes, NewFlow, plan_flows
from fabric.controlplane.flows import FlowTable
from fabric.controlplane.ports import PortTable
from fabric.controlplane.view_change import ViewChange
from fabric.controlplane.wiring import Wiring
from fabric.registry.records import ChannelRecord, EndpointRecord, View

log = logging.getLogger("fabricd.reconcile")


class Reconciler:
    """Belongs to the daemon's loop. `look()` after anything changed; it returns at once."""

    def __init__(
        self,
        view: Callable[[], View],
        ports: PortTable,
        endpoints: EndpointTable,
        flows: FlowTable,
        wiring: Wiring,
    ) -> None:
        self._view = view
        self._ports = ports
        self._endpoints = endpoints
        self._flows = flows
        self._wiring = wiring
        self._dirty: dict[int, asyncio.Event] = {}
        self._workers: dict[int, asyncio.Task[None]] = {}
        self._failing: dict[
            int, set[int]
        ] = {}  # by sender: targets that could not be set up lately

    def look(self, change: ViewChange | None = None) -> None:
        """Compare the local senders that a change concerns with the view, soon; without one, all of them."""
        ends = self._endpoints.all()
        for record in ends if change is None else change.ends_among(ends):
            if record.role == "sender":
                self.look_at(record.endpoint)

    def look_at(self, endpoint: int) -> None:
        """Compare one sender, soon."""
        event = self._dirty.setdefault(endpoint, asyncio.Event())
        event.set()
        if endpoint not in self._workers:
            task = asyncio.get_running_loop().create_task(self._work(endpoint, event))
            self._workers[endpoint] = task
            task.add_done_callback(lambda done: self._done(endpoint, done))

    async def settle(self) -> None:
        """Wait until nothing is being changed (tests, audit); bounded by the deadlines inside."""
        while self._workers:
            await asyncio.wait(list(self._workers.values()))

    async def settled(self, endpoints: list[int], timeout_s: float) -> None:
        """Wait until the flows of some senders are as the view asks, at most `timeout_s`."""
        workers = [self._workers[e] for e in endpoints if e in self._workers]
        if workers:
            await asyncio.wait(workers, timeout=timeout_s)

    def stop(self) -> None:
        """End all workers."""
        for task in self._workers.values():
            task.cancel()

    def _done(self, endpoint: int, task: asyncio.Task[None]) -> None:
        self._workers.pop(endpoint, None)
        event = self._dirty.pop(endpoint, None)
        self._failing.pop(endpoint, None)
        if task.cancelled():
            return
        if task.exception() is not None:
            log.error(
                "a flow worker failed", exc_info=task.exception(), extra={"endpoint": endpoint}
            )
        elif event is not None and event.is_set():
            self.look_at(endpoint)

    async def _work(self, endpoint: int, dirty: asyncio.Event) -> None:
        while dirty.is_set():
            dirty.clear()
            record = self._endpoints.get(endpoint)
            port = self._ports.get(record.port) if record else None
            if record is None or port is None or not port.is_alive:
                return
            view = self._view()
            channel = next((c for c in view.channels if c.number == record.channel), None)
            failing = frozenset(self._failing.get(endpoint, ()))
            changes = plan_flows(view, record, self._flows.states_of(endpoint), failing)
            if channel is not None and not await self._apply(record, channel, changes):
                await asyncio.sleep(limits.FLOW_RETRY_S)
                dirty.set()

    async def _apply(
        self, record: EndpointRecord, channel: ChannelRecord, changes: Changes
    ) -> bool:
        """Open, then close; False when something has to be tried again."""
        opened = [self._open(record, channel, new) for new in changes.opens]
        closed = [self._close(flow) for flow in changes.closes]
        results = await asyncio.gather(*opened)
        results += await asyncio.gather(*closed)
        return all(results)

    async def _open(self, record: EndpointRecord, channel: ChannelRecord, new: NewFlow) -> bool:
        try:
            await self._wiring.open(record, channel, new)
        except (errors.FabricError, OSError) as error:
            extra = {
                "channel": channel.name,
                "endpoint": record.endpoint,
                "target": new.target.endpoint,
            }
            log.info("flow not set up", extra={**extra, "reason": str(error)})
            self._failing.setdefault(record.endpoint, set()).add(new.target.endpoint)
            return False
        self._failing.get(record.endpoint, set()).discard(new.target.endpoint)
        return True

    async def _close(self, flow: int) -> bool:
        try:
            await self._wiring.close(flow)
        except errors.FabricError as error:
            log.info("sender not told to close a flow", extra={"flow": flow, "reason": str(error)})
        return True
