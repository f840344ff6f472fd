"""Find cycles of credit: modules that can all wait for each other's room, for ever. Pure.

An edge is a channel from a module that sends on it to one that receives from it. It can wait for ever when its
overflow is `block` and it has no deadline: dropping, rejecting or expiring breaks a cycle. A request channel is the
edge of its requests only: room for a reply is reserved before its request leaves, so replies wait for nothing.
Nothing is assumed of what a module does between receiving and sending; a module that sends on its own is as suspect.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from fabric.config.ends import RECEIVING, SENDING, ModuleEnds
from fabric.config.rules import REPLYING, Problem
from fabric.config.spec import ChannelSpec, FabricSpec


class Hop(NamedTuple):
    """One channel from a module's field to another's."""

    source: str
    source_field: str
    channel: str
    target: str
    target_field: str


def waiting_hops(
    spec: FabricSpec, known: Mapping[str, ModuleEnds], channels: Mapping[str, ChannelSpec]
) -> list[Hop]:
    """Return every hop on which a sender can wait without bound, in the order of the file."""
    senders: dict[str, list[tuple[str, str]]] = {}
    receivers: dict[str, list[tuple[str, str]]] = {}
    for module in spec.modules.values():
        for end in known.get(module.class_path, ModuleEnds()).ends:
            name = module.channels.get(end.name, end.name)
            if end.kind in SENDING:
                senders.setdefault(name, []).append((module.name, end.name))
            elif end.kind in RECEIVING:
                receivers.setdefault(name, []).append((module.name, end.name))
    return [
        Hop(*source, name, *target)
        for name, channel in channels.items()
        if channel.overflow == "block" and channel.deadline_s is None
        for source in senders.get(name, ())
        for target in receivers.get(name, ())
    ]


def find_cycles(hops: list[Hop]) -> list[list[Hop]]:
    """Return a shortest cycle through each knot of hops, every module in at most one of them."""
    by_source: dict[str, list[Hop]] = {}
    for hop in hops:
        by_source.setdefault(hop.source, []).append(hop)
    found: list[list[Hop]] = []
    told: set[str] = set()
    for start in by_source:
        cycle = [] if start in told else _shortest(start, by_source)
        modules = {hop.source for hop in cycle}
        if cycle and not modules & told:
            found.append(cycle)
            told |= modules
    return found


def _shortest(start: str, by_source: Mapping[str, list[Hop]]) -> list[Hop]:
    """Return a shortest way from a module back to itself; empty when there is none."""
    came: dict[str, Hop] = {}
    queue = deque([start])
    while queue:
        for hop in by_source.get(queue.popleft(), ()):
            if hop.target == start:
                return _way(came, hop, start)
            if hop.target not in came:
                came[hop.target] = hop
                queue.append(hop.target)
    return []


def _way(came: Mapping[str, Hop], last: Hop, start: str) -> list[Hop]:
    way = [last]
    while way[0].source != start:
        way.insert(0, came[way[0].source])
    return way


def check_cycles(
    spec: FabricSpec, known: Mapping[str, ModuleEnds], channels: Mapping[str, ChannelSpec]
) -> Iterator[Problem]:
    """Yield one refusal per cycle, hop by hop, with the edges that may be changed to break it."""
    for cycle in find_cycles(waiting_hops(spec, known, channels)):
        steps = ", ".join(
            f"{hop.source}.{hop.source_field} -> channel '{hop.channel}' -> {hop.target}.{hop.target_field}"
            for hop in cycle
        )
        names = list(dict.fromkeys(hop.channel for hop in cycle))
        yield Problem(
            where=f"channels.{next((n for n in names if n in spec.channels), names[0])}",
            what=f"a cycle of credit, in which all can wait for each other's room for ever: {steps}",
            fix=_fix([channels[name] for name in names]),
        )


def _fix(cycle: list[ChannelSpec]) -> str:
    named = ", ".join(f"'{channel.name}'" for channel in cycle)
    droppable = [
        f"'{c.name}'" for c in cycle if c.delivery == "at_most_once" and c.pattern not in REPLYING
    ]
    dropping = f", or overflow: drop_oldest or drop_newest (on {', '.join(droppable)})"
    return (
        f"Give one of {named} a deadline (deadline: 5s) or overflow: reject"
        f"{dropping if droppable else ''}"
    )
