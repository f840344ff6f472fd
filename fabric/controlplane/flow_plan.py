"""Plan the flows of one sender endpoint: a view and what exists in, what to open and close out.

Pure: no IO, no clock. Rules: a sender on hop h meets the receivers on hop h of its graph, which is the present one of
its channel for a user's end and the one it was opened for (its generation) for a stage; so a message leaves through
the hops of the graph that it entered. Nodes that are silent keep what they have and get nothing new. A stream's targets
change together (a key's hash must mean one thing); other patterns add and remove one by one.
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
    """Return the hop an endpoint is on in its graph; None when its transform is not part of that (yet, any more).

    A stage that runs transform i receives on hop i and sends on hop i + 1.
    """
    if not endpoint.transform:
        return 0 if endpoint.role == "sender" else len(channel.transforms)
    transforms = channel.graph(endpoint.generation)
    index = endpoint.stage if endpoint.role == "receiver" else endpoint.stage - 1
    if (
        transforms is not None
        and 0 <= index < len(transforms)
        and transforms[index] == endpoint.transform
    ):
        return endpoint.stage
    return None


def targets_of(view: View, sender: EndpointRecord) -> list[EndpointRecord]:
    """Return the receivers that `sender` may use under `view`, ascending by endpoint; silent nodes included."""
    channel = next((c for c in view.channels if c.number == sender.channel), None)
    hop = hop_of(sender, channel) if channel else None
    if channel is None or hop is None:
        return []
    generation = generation_of(sender, channel)
    is_last = hop == len(channel.graph(generation) or ())
    dead = {n.number for n in view.nodes if n.state == "dead"}

    def fits(end: EndpointRecord) -> bool:
        if is_last:
            return not end.transform
        return bool(end.transform) and end.generation == generation and hop_of(end, channel) == hop

    found = [
        e
        for e in view.endpoints
        if e.channel == sender.channel and e.role == "receiver" and e.node not in dead and fits(e)
    ]
    return sorted(found, key=lambda e: e.endpoint)


def generation_of(sender: EndpointRecord, channel: ChannelRecord) -> int:
    """Return the generation that a sender's messages go by: its own for a stage, else the channel's present one."""
    return sender.generation if sender.transform else channel.generation


def must_wait(view: View, sender: EndpointRecord, channel: ChannelRecord) -> bool:
    """Tell whether an older graph of a stream still holds messages, which newer ones of their key must not overtake."""
    if sender.transform or channel.pattern != "stream" or not channel.older:
        return False
    older = {g.generation for g in channel.older}
    dead = {n.number for n in view.nodes if n.state == "dead"}
    return any(
        e.channel == channel.number and e.transform and e.generation in older and e.node not in dead
        for e in view.endpoints
    )


def plan_flows(
    view: View,
    sender: EndpointRecord,
    existing: Iterable[FlowState],
    failing: frozenset[int] = frozenset(),
) -> Changes:
    """Return what turns the existing flows of `sender` into those that `view` asks for.

    Parameters
    ----------
    existing : iterable of FlowState
        All flows of this sender that were ever opened and not forgotten.
    failing : frozenset of int
        Targets that could not be set up lately: tried again by themselves, without touching the others.

    Returns
    -------
    Changes
        Empty when nothing differs. Every new flow is of the sender's present generation.
    """
    channel = next((c for c in view.channels if c.number == sender.channel), None)
    flows = list(existing)
    every_open = tuple(f.flow for f in flows if f.is_open)
    if channel is None or must_wait(view, sender, channel):
        return Changes((), every_open)
    generation = generation_of(sender, channel)
    superseded = tuple(f.flow for f in flows if f.is_open and f.generation != generation)
    is_open = {f.target_endpoint: f for f in flows if f.is_open and f.generation == generation}
    silent = {n.number for n in view.nodes if n.state == "silent"}
    targets = targets_of(view, sender)
    wanted = {t.endpoint: t for t in targets if t.node not in silent or t.endpoint in is_open}
    # A registry that restarted does not know the endpoints of nodes that are not back yet: they are kept.
    kept = {e for e in is_open if e >> 32 in silent}
    added = [t for e, t in wanted.items() if e not in is_open]
    removed = [f.flow for e, f in is_open.items() if e not in wanted and e not in kept]
    # Natively a key waits for what its closed flow carries; where a policy names the flow, the new flow waits.
    is_after = channel.pattern == "stream" and channel.route is not None and bool(flows)
    is_whole = channel.pattern == "stream" and (
        bool(removed) or any(t.endpoint not in failing for t in added)
    )
    if is_whole:
        added = [
            t
            for e, t in wanted.items()
            if t.node not in silent and (e in is_open or e not in failing)
        ]
        removed = [f.flow for f in is_open.values()]
    opens = tuple(NewFlow(t, generation, is_after) for t in added)
    return Changes(opens, (*superseded, *removed))
