"""Find events on all nodes, for `fabricctl events`. A node that does not answer is left out and named."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from fabric import errors
from fabric.telemetry.events import Event, Query, merged

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

ANSWER_S = 2.0


def own_events(daemon: Daemon, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Serve another node: this node's events that a query takes."""
    log = daemon.context.events
    found = log.find(msgspec.convert(fields["query"], Query))
    return {"events": msgspec.to_builtins(found), "last": log.total, "lost": log.lost}


async def find_events(
    daemon: Daemon, after: Mapping[str, int], query: Mapping[str, Any]
) -> dict[str, Any]:
    """Ask every node; returns `{events, next, lost, silent}`, the events in the order of their time."""
    nodes = [n for n in daemon.registry.view.nodes if n.state != "dead"]
    calls = [
        daemon.calls.call(
            n.number, "events", {"query": {**query, "after": after.get(n.name, 0)}}, ANSWER_S
        )
        for n in nodes
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    parts: dict[str, list[Event]] = {}
    following, lost, silent = dict(after), {}, []
    for node, answer in zip(nodes, answers, strict=True):
        if isinstance(answer, dict):
            parts[node.name] = msgspec.convert(answer["events"], list[Event])
            following[node.name], lost[node.name] = answer["last"], answer["lost"]
        elif isinstance(answer, errors.FabricError):
            silent.append(node.name)
        else:
            raise answer
    rows = [msgspec.to_builtins(event) for event in merged(parts)]
    return {"events": rows, "next": following, "lost": lost, "silent": silent}
