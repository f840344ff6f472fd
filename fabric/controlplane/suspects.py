"""Tell senders which of their flows lead to somebody who is silent, and when that is over.

Receiver's side: a local port became suspect or came back → the node of each of its producers is told. Sender's side:
a flow is suspect while its receiver's node says so, or while that node is silent itself → the sender is told. Both are
repeated until confirmed, and only the newest state counts. What may have been told is in the keeper
(`suspect/in|out/<flow>`), so that a successor of this daemon can take it back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fabric import errors, limits
from fabric.controlplane.context import Context
from fabric.controlplane.flows import FlowTable, OutFlow
from fabric.controlplane.ports import Port, PortTable

log = logging.getLogger("fabricd.suspects")


class Suspects:
    """Belongs to the daemon's loop. `call(node, op, fields)` reaches the daemon of a node."""

    def __init__(self, context: Context, ports: PortTable, flows: FlowTable) -> None:
        self._context = context
        self._ports = ports
        self._flows = flows
        self._reported: set[int] = set()  # out-flows whose receiver is suspect, as its node says
        self._nodes: set[int] = set()  # silent nodes
        # ("in" or "out", flow) → what was confirmed; None: an attempt failed, nobody knows what was heard
        self._told: dict[tuple[str, int], bool | None] = {}
        self._workers: dict[tuple[str, int], asyncio.Task[None]] = {}
        flows.on_forget = self._forget
        self.call: Callable[[int, str, dict[str, Any]], Awaitable[dict[str, Any]]]
        self.node_is: Callable[[int, int], bool] = lambda node, incarnation: False

    # ---------------------------------------------------------------- what happened
    def port_changed(self, port: Port) -> None:
        """Report a local port's new state to its producers."""
        for half in self._flows.ins_of_port(port.port):
            self.look_in(half.flow)

    def nodes_are(self, silent: set[int]) -> None:
        """Take the set of silent nodes."""
        changed, self._nodes = self._nodes ^ silent, set(silent)
        for out in list(self._flows.outs.values()):
            if out.target_node in changed:
                self.look_out(out.flow)

    def serve(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A receiver's node says that the receiver of a flow is suspect, or is no more."""
        flow = fields["flow"]
        if flow in self._flows.outs and fields["suspect"]:
            self._reported.add(flow)
        else:
            self._reported.discard(flow)
        self.look_out(flow)
        return {}

    def is_suspect(self, out: OutFlow) -> bool:
        """Tell whether a flow leads to somebody who is silent."""
        return out.flow in self._reported or out.target_node in self._nodes

    def suspect_endpoints(self, sender: int) -> frozenset[int]:
        """Return the receivers of a sender that are suspect now."""
        outs = self._flows.outs.values()
        found = (f.target_endpoint for f in outs if f.endpoint == sender and self.is_suspect(f))
        return frozenset(found)

    def restore(self, items: dict[str, Any]) -> None:
        """Take back what the last daemon may have told."""
        for key in items:
            if key.startswith("suspect/"):
                _, side, number = key.split("/")
                flow = int(number)
                self._told[side, flow] = True
                out = self._flows.outs.get(flow)
                if side == "out" and out is not None and out.target_node != self._context.number:
                    self._reported.add(flow)  # its node takes it back itself
        for side, flow in list(self._told):
            self._look(side, flow)

    def stop(self) -> None:
        """End the background work."""
        for task in self._workers.values():
            task.cancel()

    # ---------------------------------------------------------------- telling
    def look_in(self, flow: int) -> None:
        """Compare what the producer's node was told about an incoming flow with what is so, soon."""
        self._look("in", flow)

    def look_out(self, flow: int) -> None:
        """Compare what the sender was told about a flow with what is so, soon."""
        self._look("out", flow)

    def _look(self, side: str, flow: int) -> None:
        key = (side, flow)
        wanted = self._wanted(key)
        if key in self._workers or wanted == self._told.get(key, False):
            return
        task = asyncio.get_running_loop().create_task(self._tell_until_so(key))
        self._workers[key] = task
        task.add_done_callback(lambda done: self._done(key, done))

    def _forget(self, side: str, flow: int) -> None:
        """A flow is gone: what was told about it matters to nobody."""
        if side == "out":
            self._reported.discard(flow)
        if self._told.pop((side, flow), False) is not False:
            self._context.keeper.drop(f"suspect/{side}/{flow}")

    def _done(self, key: tuple[str, int], task: asyncio.Task[None]) -> None:
        self._workers.pop(key, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("suspicion not told", exc_info=task.exception(), extra={"flow": key[1]})
        elif not task.cancelled():
            self._look(*key)  # it changed while the last answer was on its way

    def _wanted(self, key: tuple[str, int]) -> bool | None:
        """Return what the other side should believe; None when the flow is gone or not there yet."""
        side, flow = key
        if side == "in":
            half = self._flows.ins.get(flow)
            port = self._ports.get(half.port) if half else None
            return port.is_suspect if port is not None and port.is_alive else None
        out = self._flows.outs.get(flow)
        return self.is_suspect(out) if out is not None and out.state != "opening" else None

    async def _tell_until_so(self, key: tuple[str, int]) -> None:
        name = f"suspect/{key[0]}/{key[1]}"
        while (wanted := self._wanted(key)) is not None and wanted != self._told.get(key, False):
            if wanted:
                self._context.keeper.put(name, {})
            try:
                if not await self._tell(key, wanted):
                    break
            except (errors.FabricError, OSError) as error:
                self._told[key] = None
                log.info("suspicion told again", extra={"flow": key[1], "reason": str(error)})
                await asyncio.sleep(limits.FLOW_RETRY_S)
                continue
            self._told[key] = wanted
            if not wanted:
                break
        if self._told.get(key, False) is not True or wanted is None:
            self._told.pop(key, None)
            self._context.keeper.drop(name)
        if key[0] == "out" and wanted is None:
            self._reported.discard(key[1])

    async def _tell(self, key: tuple[str, int], suspect: bool) -> bool:
        """Tell once; False when nobody is there to be told."""
        side, flow = key
        fields = {"flow": flow, "suspect": suspect}
        if side == "out":
            port = self._ports.get(self._flows.outs[flow].port)
            if port is None or not port.is_alive:
                return False
            await port.push("flow_suspect", fields)
            return True
        half = self._flows.ins[flow]
        if half.producer_node != self._context.number and not self.node_is(
            half.producer_node, half.producer_incarnation
        ):
            return False
        await self.call(half.producer_node, "flow_suspect", fields)
        return True
