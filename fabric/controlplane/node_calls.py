"""Calls between daemons: what this node serves to others, and how it reaches them.

A call to itself is a function call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from fabric import errors, limits
from fabric.controlplane import codec_calls, path_calls, plan_node, probes
from fabric.controlplane.calls import Answer, ControlConnection
from fabric.controlplane.observed_events import own_events
from fabric.registry.client import REGISTRY_CALLS, serve_registry
from fabric.registry.records import view_from

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

log = logging.getLogger("fabricd.nodes")


class NodeCalls:
    """Belongs to the daemon's loop."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._tasks: set[asyncio.Task[Any]] = set()

    async def call(
        self, node: int, op: str, fields: dict[str, Any], timeout_s: float = limits.CONTROL_CALL_S
    ) -> dict[str, Any]:
        """Call a node; raises what it raised, or `PathBrokenError` when it is not connected."""
        if node == self._daemon.context.number:
            return await self.serve(op, fields)
        peer = self._daemon.membership.peer(node)
        if peer is None:
            raise errors.PathBrokenError(f"node {node} is not connected", node=node, op=op)
        return await peer.request(op, fields, timeout_s)

    async def serve_peer(
        self, connection: ControlConnection, op: str, fields: dict[str, Any]
    ) -> Answer:
        """Serve another node's request."""
        return await self.serve(op, fields, connection)

    async def serve(
        self, op: str, fields: dict[str, Any], connection: ControlConnection | None = None
    ) -> dict[str, Any]:
        """Serve one call by name."""
        daemon = self._daemon
        wiring = daemon.wiring
        if op == "flow_prepare":
            return await wiring.serve_flow_prepare(fields)
        if op == "flow_start":
            return await wiring.serve_flow_start(fields)
        if op == "flow_in_close":
            return await wiring.serve_flow_in_close(fields)
        if op == "flow_lost":
            return await wiring.serve_flow_lost(fields)
        if op == "flow_suspect":
            return daemon.suspects.serve(fields)
        if op == "endpoints":
            daemon.on_view(view_from(fields["view"]))
            return {}
        if op in ("join", "lease", "leave"):
            return daemon.membership.serve(op, fields, connection)
        if op in REGISTRY_CALLS and daemon.registry.local is not None:
            return serve_registry(daemon.registry.local, op, fields)
        if op in plan_node.VERBS:
            return await daemon.plans.serve(op, fields)
        if op in plan_node.CALLS:
            return await daemon.plan_node.serve(op, fields)
        if op in probes.CALLS:
            return await daemon.probes.serve(op, fields)
        if op in path_calls.CALLS:
            return await daemon.control.paths.serve(op, fields)
        if op in codec_calls.CALLS:
            return await daemon.control.codecs.serve(op, fields)
        if op == "events":
            return own_events(daemon, fields)
        if op == "describe":
            return {"classes": plain(await daemon.describer.describe(fields["classes"]))}
        if op in ("freeze", "inspect", "thaw"):
            return dict(await daemon.control.auditor.serve(op, fields))
        if op in (
            "summary",
            "apply_modules",
            "module_drain",
            "module_scale",
            "module_logs",
            "plugin_logs",
            "plugin_change",
        ):
            return dict(await daemon.control.serve(op, fields))
        raise errors.PeerProtocolError(f"unknown call {op!r}", op=op)

    def background(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run something whose result nobody waits for; failures are logged."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        if isinstance(error, errors.FabricError):
            log.info("background call failed", extra={"reason": str(error)})
        else:
            log.error("background call failed", exc_info=error)


def plain(value: Any) -> Any:
    """Return records as what msgpack carries."""
    return msgspec.to_builtins(value)
