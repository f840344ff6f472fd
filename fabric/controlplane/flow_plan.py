"""Plan the flows of one sender endpoint: a view and what exists in, what to open and close out.

Pure: no IO, no clock. Rules: a sender on hop h meets the receivers on hop h of its channel. Nodes that are
silent keep what they have and get nothing new. A stream's targets change together (a key's hash must mean one
thing), each new flow waiting for the older ones to drain; other patterns add and remove one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fabric.registry.records import ChannelRecord, EndpointRecord, View


@dataclass(frozen=True, slots=True)
class FlowState:
    """One flow that exists: open (taking new messages) or closing."""

    flow: int
    target_endpoint: int
    generation: int
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class NewFlow:
    """One flow to open."""

    target: EndpointRecord
    generation: int
    after_drain: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """What to do, in this order: open, then close."""

    opens: tuple[NewFlow, ...] = ()
    closes: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.opens or self.closes)


def hop_of(endpoint: EndpointRecord, channel: ChannelRecord) -> int | None:
    """Return the hop an endpoint is on now; None when its transform is not part of the channel (yet, any more).

    A stage that runs transform i receives on hop i and sends on hop i + 1.
    """
    if not endpoint.transform:
        return 0 if endpoint.role == "sender" else len(channel.transforms)
    index = endpoint.stage if endpoint.role == "receiver" else endpoint.stage - 1
    if 0 <= index < len(channel.transforms) and channel.transforms[index] == endpoint.transform:
        return endpoint.stage
    return None


def targets_of(view: View, sender: EndpointRecord) -> list[EndpointRecord]:
    """Return the receivers that `sender` may use under `view`, ascending by endpoint; silent nodes included."""
    channel = next((c for c in view.channels if c.number == sender.channel), None)
    hop = hop_of(sender, channel) if channel else None
    if channel is None or hop is None:
        return []
    dead = {n.number for n in view.nodes if n.state == "dead"}
    found = [
        e
        for e in view.endpoints
        if e.channel == sender.channel
        and e.role == "receiver"
        and e.node not in dead
        and hop_of(e, channel) == hop
    ]
    return sorted(found, key=lambda e: e.endpoint)


def plan_flows(view: View, sender: EndpointRecord, existing: Iterable[FlowState]) -> Changes:
    """Return what turns the existing flows of `sender` into those that `view` asks for.

    Parameters
    ----------
    existing : iterable of FlowState
        All flows of this sender that were ever opened and not forgotten.

    Returns
    -------
    Changes
        Empty when nothing differs. New generations are above every existing one.
    """
    channel = next((c for c in view.channels if c.number == sender.channel), None)
    flows = list(existing)
    is_open = {f.target_endpoint: f for f in flows if f.is_open}
    silent = {n.number for n in view.nodes if n.state == "silent"}
    if channel is None:
        return Changes((), tuple(f.flow for f in is_open.values()))
    targets = targets_of(view, sender)
    wanted = {t.endpoint: t for t in targets if t.node not in silent or t.endpoint in is_open}
    # A registry that restarted does not know the endpoints of nodes that are not back yet: they are kept.
    kept = {e for e in is_open if e >> 32 in silent}
    added = [t for e, t in wanted.items() if e not in is_open]
    removed = [f for e, f in is_open.items() if e not in wanted and e not in kept]
    if not added and not removed:
        return Changes()
    generation = max((f.generation for f in flows), default=0) + 1
    if channel.pattern != "stream":
        # A hop inserted or taken out moves every receiver: what was sent before must arrive before.
        return Changes(
            tuple(NewFlow(t, generation, False) for t in added), tuple(f.flow for f in removed)
        )
    everyone = [t for e, t in wanted.items() if t.node not in silent]
    return Changes(
        tuple(NewFlow(t, generation, bool(flows)) for t in everyone),
        tuple(f.flow for f in is_open.values()),
    )
