"""The two halves of every flow that touches this node, kept for a restarted daemon. Tables only; no IO but the keeper.

An `OutFlow` is the sender's half, an `InFlow` the receiver's; a flow between local ports has both here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fabric import limits
from fabric.controlplane.context import Context
from fabric.controlplane.flow_plan import FlowState


@dataclass(eq=False)
class OutFlow:
    """Sender's half.

    `opening`: the sender has not heard of it. `offered`: it may have. `open`: it has confirmed. `closing`: it is to
    take nothing new, what is out still ends; `is_told` once the sender has confirmed that: not before then may it go.
    """

    flow: int
    endpoint: int
    port: int
    channel: int
    klass: str
    target_endpoint: int
    target_node: int
    target_incarnation: int
    generation: int
    lane: int = 0
    messages: int = 0
    bytes: int = 0
    reply_flow: int = 0
    is_reply: bool = False
    state: Literal["opening", "offered", "open", "closing"] = "opening"
    is_told: bool = False


@dataclass(eq=False)
class InFlow:
    """Receiver's half. `producer_*` is where messages come from; `reply_flow` the way back of a request."""

    flow: int
    endpoint: int
    port: int
    channel: int
    klass: str
    producer_port: int
    producer_node: int
    producer_incarnation: int
    lane: int = 0
    messages: int = 0
    bytes: int = 0
    reply_flow: int = 0


class FlowTable:
    """All flow halves of this node by flow id."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.outs: dict[int, OutFlow] = {}
        self.ins: dict[int, InFlow] = {}
        self.on_forget: Callable[[str, int], None] = lambda side, flow: None

    def keep(self, half: OutFlow | InFlow) -> None:
        """Take or update a half, here and in the keeper."""
        if isinstance(half, OutFlow):
            self.outs[half.flow] = half
            self._context.keeper.put(f"outflow/{half.flow}", asdict(half))
        else:
            self.ins[half.flow] = half
            self._context.keeper.put(f"inflow/{half.flow}", asdict(half))

    def forget_out(self, flow: int) -> None:
        """Forget the sender's half."""
        if self.outs.pop(flow, None) is not None:
            self._context.keeper.drop(f"outflow/{flow}")
            self.on_forget("out", flow)

    def forget_in(self, flow: int) -> None:
        """Forget the receiver's half."""
        if self.ins.pop(flow, None) is not None:
            self._context.keeper.drop(f"inflow/{flow}")
            self.on_forget("in", flow)

    def states_of(self, endpoint: int) -> list[FlowState]:
        """Return the flows of a sender endpoint as the planner sees them; those being opened are not there yet."""
        return [
            FlowState(f.flow, f.target_endpoint, f.generation, f.state == "open")
            for f in self.outs.values()
            if f.endpoint == endpoint and f.state not in ("opening", "offered")
        ]

    def outs_of_port(self, port: int) -> list[OutFlow]:
        """Return the sender's halves of a port."""
        return [f for f in self.outs.values() if f.port == port]

    def ins_of_port(self, port: int) -> list[InFlow]:
        """Return the receiver's halves of a port."""
        return [f for f in self.ins.values() if f.port == port]

    def credit_for(self, port: int, messages: int) -> int:
        """Return the messages one more flow into `port` may be granted.

        The sum over a port's flows stays below its held table, or the lanes could not be drained.
        """
        granted = sum(f.messages for f in self.ins_of_port(port))
        room = max(0, limits.HELD_PER_PORT - granted)
        return max(limits.CREDIT_MESSAGES_MIN, min(messages, room // 4))

    def restore(self, items: dict[str, tuple[dict[str, Any], int]]) -> None:
        """Take back what the keeper held."""
        for key, (value, _) in items.items():
            if key.startswith("outflow/"):
                self.outs[value["flow"]] = OutFlow(**value)
            elif key.startswith("inflow/"):
                self.ins[value["flow"]] = InFlow(**value)
