"""Forget closed flows once nothing is outstanding on them: soon after they were closed, and with every slow tick."""

from __future__ import annotations

import asyncio
import logging

from fabric import errors, limits
from fabric.controlplane.audit import ENDED
from fabric.controlplane.context import Context
from fabric.controlplane.flows import FlowTable, OutFlow
from fabric.controlplane.ports import Port, PortTable
from fabric.controlplane.wiring import Wiring

log = logging.getLogger("fabricd.retiring")


class FlowRetirer:
    """Belongs to the daemon's loop. `soon` looks with growing pauses up to the longest; then the tick is enough."""

    def __init__(
        self, context: Context, ports: PortTable, flows: FlowTable, wiring: Wiring
    ) -> None:
        self._context = context
        self._ports = ports
        self._flows = flows
        self._wiring = wiring
        self._task: asyncio.Task[None] | None = None
        self._is_asked = False

    def soon(self) -> None:
        """A flow was closed: look for its end now and shortly after."""
        self._is_asked = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look_often())

    def stop(self) -> None:
        """End the background work."""
        if self._task is not None:
            self._task.cancel()

    async def _look_often(self) -> None:
        first, longest = limits.GENERATION_POLL_S
        pause = 0.0
        while pause < longest:
            pause = first if self._is_asked else pause * 2
            self._is_asked = False
            await asyncio.sleep(pause)
            try:
                if not await self.look():
                    return
            except (errors.FabricError, OSError) as error:
                log.info("closed flows not looked at", extra={"reason": str(error)})

    def _busy(self, port: Port) -> set[int]:
        state = self._context.native.inspect_state(port.state_fd)
        return {
            row["flow"]
            for ledger in state["ledgers"]
            for row in ledger["outstanding"]
            if row["state"] != ENDED
        }

    async def _is_empty(self, port: Port, out: OutFlow) -> bool:
        """Look once more after the sender has said that it sends nothing on the flow any more: it may not know yet."""
        try:
            await port.push("flow_close", {"flow": out.flow})
        except errors.FabricError as error:
            log.info("flow not retired yet", extra={"flow": out.flow, "reason": str(error)})
            return False
        return out.flow not in self._busy(port)

    async def _has_calls(self, port: Port, out: OutFlow) -> bool:
        """Tell whether answers are still to come on the way back of a request flow: a streamed one may take long."""
        if not out.reply_flow:
            return False
        try:
            fields = {"endpoint": out.endpoint, "flow": out.flow}
            return bool((await port.push("flow_calls", fields)).get("calls"))
        except errors.FabricError as error:  # it is asked again, or its death settles the flow
            log.info("calls not counted", extra={"flow": out.flow, "reason": str(error)})
            return True

    async def look(self) -> int:
        """Forget what is empty; returns how many closing flows are left."""
        closing = [f for f in self._flows.outs.values() if f.state == "closing" and f.is_told]
        for number in {f.port for f in closing}:
            port = self._ports.get(number)
            if port is None or not port.is_alive:
                continue
            busy = self._busy(port)
            for out in closing:
                if out.port != number or out.flow in busy or await self._has_calls(port, out):
                    continue
                if out.flow in self._flows.outs and await self._is_empty(port, out):
                    await self._wiring.retire(out)
        return sum(f.state == "closing" for f in self._flows.outs.values())
