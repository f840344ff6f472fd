"""What happens after a living process closed a receiver: its flows are settled, what it was not handed goes elsewhere.

The order: nobody sends there any more (the view) → what was handed may still be acknowledged, for `limits.CLOSE_S` →
the senders have read the last reports → each flow is lost from what was handed on, reason closed, as after a death.
A restarted daemon begins again with every incoming flow whose endpoint is not open.
"""

from __future__ import annotations

import asyncio
import logging
import time

from fabric import errors, limits, steps
from fabric.controlplane.audit import HELD_HANDED
from fabric.controlplane.context import Context
from fabric.controlplane.death import CLOSED, wait_for_returns
from fabric.controlplane.flows import FlowTable, InFlow
from fabric.controlplane.lanes import LaneTable
from fabric.controlplane.ports import Port, PortTable
from fabric.controlplane.wiring import Wiring

log = logging.getLogger("fabricd.closing")

_POLL_S = (0.005, 0.1)


class ClosingHandler:
    """Belongs to the daemon's loop; each closed receiver is settled by a task of its own."""

    def __init__(
        self, context: Context, ports: PortTable, lanes: LaneTable, flows: FlowTable, wiring: Wiring
    ) -> None:
        self._context = context
        self._ports = ports
        self._lanes = lanes
        self._flows = flows
        self._wiring = wiring
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def begin(self, endpoint: int) -> None:
        """Settle the flows of a closed receiver in the background; asking again changes nothing."""
        if endpoint in self._tasks or not self._halves(endpoint):
            return
        task = asyncio.get_running_loop().create_task(self._settle(endpoint))
        self._tasks[endpoint] = task
        task.add_done_callback(lambda done: self._done(endpoint, done))

    @property
    def unsettled_count(self) -> int:
        """Closed receivers that are not settled yet."""
        return len(self._tasks)

    async def settle(self) -> None:
        """Wait until every closed receiver is settled."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    def stop(self) -> None:
        """End the background work; the keeper still has what it was about."""
        for task in self._tasks.values():
            task.cancel()

    def _done(self, endpoint: int, task: asyncio.Task[None]) -> None:
        self._tasks.pop(endpoint, None)
        if not task.cancelled() and task.exception() is not None:
            log.error(
                "a closed receiver is not settled",
                exc_info=task.exception(),
                extra={"endpoint": endpoint},
            )

    def _halves(self, endpoint: int) -> list[InFlow]:
        return [half for half in self._flows.ins.values() if half.endpoint == endpoint]

    async def _settle(self, endpoint: int) -> None:
        port = self._ports.get(self._halves(endpoint)[0].port)
        if port is None or not port.is_alive:
            return  # its death settles everything
        await self._while_acknowledging(port, endpoint)
        steps.at("closing.acknowledged")
        await wait_for_returns(self._context, self._ports, self._lanes, port)
        state = self._context.native.inspect_state(port.state_fd)
        handed = {row["flow"]: row["handed"] for row in state["flows"]}
        lost = [self._lose(half, handed.get(half.flow, 0)) for half in self._halves(endpoint)]
        await asyncio.gather(*lost)
        steps.at("closing.settled")

    async def _while_acknowledging(self, port: Port, endpoint: int) -> None:
        """Wait while messages that were handed over are not acknowledged, at most `limits.CLOSE_S`."""
        deadline = time.monotonic() + limits.CLOSE_S
        pause = _POLL_S[0]
        while time.monotonic() < deadline and port.is_alive:
            flows = {half.flow for half in self._halves(endpoint)}
            state = self._context.native.inspect_state(port.state_fd)
            if not any(e["flow"] in flows and e["state"] == HELD_HANDED for e in state["held"]):
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, _POLL_S[1])

    async def _lose(self, half: InFlow, handed_upto: int) -> None:
        fields = {"flow": half.flow, "handed_upto": handed_upto, "reason": CLOSED}
        await self._wiring.tell(half.producer_node, half.producer_incarnation, "flow_lost", fields)
        steps.at("closing.lost")
        try:
            await self._wiring.serve_flow_in_close({"flow": half.flow})
        except errors.FabricError as error:  # it left meanwhile: its death forgets the flow
            log.info("flow not closed", extra={"flow": half.flow, "reason": str(error)})
