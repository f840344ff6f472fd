"""What happens after a local process ended: its consumers' and producers' messages get their end, nothing stays.

As receiver: its last reports are read by the senders, then each flow is lost from what it had been handed on.
As sender: an adopter settles its ledger from the return rings. Then its final counts go to the registry, and its
lanes, segments and descriptors are dropped. A restarted daemon begins again with every port still in the keeper.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from fabric import errors, limits, steps
from fabric.controlplane.audit import END_DELIVERED
from fabric.controlplane.context import Context
from fabric.controlplane.endpoints import EndpointTable
from fabric.controlplane.flows import FlowTable, InFlow
from fabric.controlplane.lanes import LaneTable
from fabric.controlplane.ports import Port, PortTable
from fabric.controlplane.segments import SegmentTable
from fabric.controlplane.wiring import Wiring
from fabric.registry.client import RegistryClient
from fabric.registry.records import ArchivedCounts

log = logging.getLogger("fabricd.death")

PEER_LOST, OUTCOME_UNKNOWN, CLOSED = 6, 7, 10  # layout.hpp Reason
_POLL_S = (0.002, 0.25)
_UNREAD_S = 0.5  # between two looks whether views of a dead producer's messages are gone


class DeathHandler:
    """Belongs to the daemon's loop; each dead port is settled by a task of its own."""

    def __init__(
        self,
        context: Context,
        ports: PortTable,
        lanes: LaneTable,
        segments: SegmentTable,
        wiring: Wiring,
    ) -> None:
        self._context = context
        self._ports = ports
        self._lanes = lanes
        self._segments = segments
        self._wiring = wiring
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._adopters: dict[int, Any] = {}
        self._unread: asyncio.TimerHandle | None = None
        self._left: dict[int, int] = {}  # dead port → its messages that are still under way

    def begin(
        self, port: Port, endpoints: EndpointTable, flows: FlowTable, registry: RegistryClient
    ) -> None:
        """Settle a dead port in the background; asking again while it runs changes nothing."""
        if port.port in self._tasks:
            return
        task = asyncio.get_running_loop().create_task(
            self._settle(port, endpoints, flows, registry)
        )
        self._tasks[port.port] = task
        task.add_done_callback(lambda done: self._done(port, done))

    async def settle(self) -> None:
        """Wait until every dead port is settled."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    @property
    def unsettled_count(self) -> int:
        """Dead ports that are not settled yet."""
        return len(self._tasks)

    def settling(self) -> list[dict[str, Any]]:
        """Return the dead processes that are not settled yet, and how many of their messages are under way."""
        found = []
        for number in self._tasks:
            port = self._ports.get(number)
            if port is not None:
                left = self._left.get(number, 0)
                found.append({"port": number, "name": port.name, "pid": port.pid, "messages": left})
        return found

    async def accepted(self, endpoint: int, registry: RegistryClient) -> int | None:
        """Return how many messages a dead process's sender had accepted; None while that is not settled.

        A sender that is not known here has accepted none that anybody could still ask about.
        """
        for port in self._ports:
            rows = self._context.native.inspect_ledgers(port.state_fd, [endpoint])
            if rows:  # the adopter's first step settles what the kill left between two stores
                is_settled = not port.is_alive and port.port in self._left
                return int(rows[0]["accepted"]) if is_settled else None
        finals = await registry.archived()
        return next((final.accepted for final in finals if final.endpoint == endpoint), 0)

    def stop(self) -> None:
        """End the background work; the keeper still has what it was about."""
        for task in self._tasks.values():
            task.cancel()
        if self._unread is not None:
            self._unread.cancel()

    def drop_unread(self) -> None:
        """Give back the segments of settled ports; one that a delivered message lies in stays until its release."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        living = {port.port for port in self._ports}
        states = [self._inspect(port) for port in self._ports if port.is_alive]
        named = {entry["segment"] for state in states for entry in state.get("held", ())}
        if self._segments.drop_unread(living, named):
            loop = asyncio.get_running_loop()
            self._unread = loop.call_later(_UNREAD_S, self.drop_unread)

    def lose(self, port: int, flow: int, handed_upto: int, reason: int) -> bool:
        """Tell the adopter of a dead sender that a consumer is gone too; False when there is none."""
        adopter = self._adopters.get(port)
        if adopter is None:
            return False
        adopter.lose_flow(flow, handed_upto, reason)
        return True

    def _done(self, port: Port, task: asyncio.Task[None]) -> None:
        self._tasks.pop(port.port, None)
        self._adopters.pop(port.port, None)
        self._left.pop(port.port, None)
        if not task.cancelled() and task.exception() is not None:
            log.error(
                "a dead port is not settled", exc_info=task.exception(), extra={"port": port.port}
            )

    async def _settle(
        self, port: Port, endpoints: EndpointTable, flows: FlowTable, registry: RegistryClient
    ) -> None:
        started = time.monotonic()
        self._adopt(port, flows)
        steps.at("death.adopted")
        gone = endpoints.of(port.port)
        for record in gone:
            endpoints.remove(record)
        closing = asyncio.get_running_loop().create_task(
            self._until_done("close endpoints", registry.close, [e.endpoint for e in gone])
        )
        await self._lose_inflows(port, flows)
        steps.at("death.flows.lost")
        await self._finish_adoption(port)
        for out in flows.outs_of_port(port.port):
            await self._wiring.retire(out)
        await closing
        steps.at("death.outflows.retired")
        if finals := self._finals(port):
            await self._until_done("archive counts", registry.archive, finals)
        steps.at("death.counts.archived")
        for lane in self._lanes.of(port.port):
            await self._lanes.drop(lane)
        steps.at("death.lanes.dropped")
        self._ports.forget(port)
        self.drop_unread()
        took_ms = round((time.monotonic() - started) * 1000, 1)
        log.info(
            "port settled", extra={"port": port.port, "port_name": port.name, "took_ms": took_ms}
        )

    # ---------------------------------------------------------------- as receiver
    async def _lose_inflows(self, port: Port, flows: FlowTable) -> None:
        halves = flows.ins_of_port(port.port)
        if not halves:
            return
        await wait_for_returns(self._context, self._ports, self._lanes, port)
        steps.at("death.returns.read")
        handed = {row["flow"]: row["handed"] for row in self._inspect(port).get("flows", ())}
        lost = [self._lose_inflow(half, handed.get(half.flow, 0)) for half in halves]
        await asyncio.gather(*lost)
        for half in halves:
            flows.forget_in(half.flow)
            if half.producer_node != self._context.number and self._wiring.gateway is not None:
                self._wiring.gateway.remove_flow(half.flow)

    async def _lose_inflow(self, half: InFlow, handed_upto: int) -> None:
        fields = {"flow": half.flow, "handed_upto": handed_upto, "reason": PEER_LOST}
        await self._wiring.tell(half.producer_node, half.producer_incarnation, "flow_lost", fields)

    # ---------------------------------------------------------------- as sender
    def _adopt(self, port: Port, flows: FlowTable) -> None:
        if not self._inspect(port).get("ledgers"):
            return
        adopter = self._context.native.Adopter(port.state_fd)
        for lane in self._lanes.of(port.port):
            adopter.add_lane(lane.fd, lane.side(port.port), lane.lane)
        for out in flows.outs_of_port(port.port):
            if out.lane:
                adopter.place_flow(out.flow, out.lane)
        self._adopters[port.port] = adopter

    async def _finish_adoption(self, port: Port) -> None:
        """Step until nothing is outstanding; what is left at the deadline fails, its outcome unknown."""
        adopter = self._adopters.get(port.port)
        if adopter is None:
            return
        deadline = time.monotonic() + limits.ADOPTION_S
        pause = _POLL_S[0]
        while (left := adopter.step()) and time.monotonic() < deadline:
            self._left[port.port] = left  # says too that the ledgers are settled: see `accepted`
            await asyncio.sleep(pause)
            pause = min(pause * 2, _POLL_S[1])
        if left:
            self._context.events.add(
                "messages of a dead sender given up",
                port=port.port,
                port_name=port.name,
                messages=left,
            )
            adopter.finish(OUTCOME_UNKNOWN)

    # ---------------------------------------------------------------- parts
    def _finals(self, port: Port) -> list[ArchivedCounts]:
        """Return the final counts of the port's own senders: it wrote the ledgers, and may have named another's."""
        finals = final_counts(self._inspect(port))
        foreign = [f.endpoint for f in finals if f.endpoint not in port.senders]
        if foreign:
            self._context.events.add(
                "ledger of an endpoint that is not its own",
                port=port.port,
                port_name=port.name,
                endpoints=foreign,
            )
        return [f for f in finals if f.endpoint in port.senders]

    def _inspect(self, port: Port) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._context.native.inspect_state(port.state_fd)
        except errors.FabricError as error:
            self._context.events.add(
                "state of a dead port is unreadable",
                port=port.port,
                port_name=port.name,
                reason=str(error),
            )
            return {}
        return found

    async def _until_done(self, what: str, call: Any, argument: Any) -> None:
        """Repeat a registry call until it is taken; the port stays in the keeper meanwhile."""
        pause = limits.FLOW_RETRY_S
        while True:
            try:
                await call(argument)
                return
            except (errors.BrokenError, errors.DeadlineExceeded) as error:
                log.info("registry not reached", extra={"what": what, "reason": str(error)})
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)


def final_counts(state: dict[str, Any]) -> list[ArchivedCounts]:
    """Return the counts of every ledger of a state on which nothing is under way any more."""
    finals = []
    for row in state.get("ledgers", ()):
        counts = dict(row["counts"])
        delivered_bytes = row["delivered_bytes"]
        for entry in row["outstanding"]:
            if entry["state"] == "ended":  # ended behind one that has not: counted, not folded
                key = (entry["end"], entry["reason"])
                counts[key] = counts.get(key, 0) + 1
                is_delivered = entry["end"] == END_DELIVERED
                delivered_bytes += entry["payload_bytes"] if is_delivered else 0
        finals.append(
            ArchivedCounts(
                endpoint=row["endpoint"],
                channel=row["channel"],
                accepted=row["accepted"],
                counts=tuple((end, reason, n) for (end, reason), n in counts.items() if n),
                delivered_bytes=delivered_bytes,
            )
        )
    return finals


async def wait_for_returns(
    context: Context, ports: PortTable, lanes: LaneTable, port: Port
) -> None:
    """Wait until the living senders have read the last reports of a port; at most `limits.RETURN_DRAIN_S`."""
    deadline = time.monotonic() + limits.RETURN_DRAIN_S
    pause = _POLL_S[0]
    while time.monotonic() < deadline and not _returns_are_read(context, ports, lanes, port):
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.02)


def _returns_are_read(context: Context, ports: PortTable, lanes: LaneTable, port: Port) -> bool:
    for lane in lanes.of(port.port):
        peer = ports.get(lane.peer(port.port))
        if peer is None or not peer.is_alive:
            continue
        seen = context.native.inspect_lane(lane.fd, 1 - lane.side(port.port))
        if seen["return_head"] != seen["return_tail"]:
            return False
    return True
