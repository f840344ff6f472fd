"""What happens after a process found that the other side of a lane broke its rules: it uses the lane no more.

Nobody died, so nothing else would end what is under way there: every flow on the lane is lost, its outcome unknown. Its
sender then fails it or sends it to another consumer. Whoever reports can only lose what it shares with that peer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fabric import errors, limits
from fabric.controlplane.context import Context
from fabric.controlplane.death import OUTCOME_UNKNOWN
from fabric.controlplane.flows import FlowTable, InFlow, OutFlow
from fabric.controlplane.lanes import LaneTable
from fabric.controlplane.ports import Port
from fabric.controlplane.wiring import Wiring


class BrokenLanes:
    """Belongs to the daemon's loop. `settled()` is called once the flows of a broken lane are gone."""

    def __init__(
        self,
        context: Context,
        lanes: LaneTable,
        flows: FlowTable,
        wiring: Wiring,
        name_of: Callable[[int], str],
    ) -> None:
        self._context = context
        self._lanes = lanes
        self._flows = flows
        self._wiring = wiring
        self._name_of = name_of
        self.settled: Callable[[], None] = lambda: None

    async def report(self, port: Port, fields: dict[str, Any]) -> None:
        """Take a process's word that it uses a lane no more, and settle what is under way on it.

        Raises
        ------
        StaleHandleError
            It has no such lane.
        """
        number = fields["lane"]
        lane = self._lanes.get(number)
        if lane is None or port.port not in lane.ports:
            raise errors.StaleHandleError(f"{port.name} has no lane {number}", lane=number)
        self._context.events.add(
            "peer broke the rules",
            port=port.port,
            port_name=port.name,
            peer=self._name_of(lane.peer(port.port)),
            lane=number,
            reason=str(fields.get("reason", ""))[: limits.ERROR_TEXT_BYTES_MAX],
        )
        ins = [half for half in self._flows.ins.values() if half.lane == number]
        known = {half.flow for half in ins}
        outs = [o for o in self._flows.outs.values() if o.lane == number and o.flow not in known]
        await asyncio.gather(*map(self._lose_in, ins), *map(self._lose_out, outs))
        self.settled()  # who sends there again is refused by the lane, typed, and need not wait

    async def _lose_in(self, half: InFlow) -> None:
        """Tell the sender, wherever it is; then nobody expects the flow here."""
        fields = {"flow": half.flow, "handed_upto": 0, "reason": OUTCOME_UNKNOWN}
        await self._wiring.tell(half.producer_node, half.producer_incarnation, "flow_lost", fields)
        await self._wiring.serve_flow_in_close({"flow": half.flow})

    async def _lose_out(self, out: OutFlow) -> None:
        """A flow to another node: its lane here ends at the gateway."""
        await self._wiring.lose(out.flow, 0, OUTCOME_UNKNOWN)
        fields = {"flow": out.flow}
        await self._wiring.tell(out.target_node, out.target_incarnation, "flow_in_close", fields)
