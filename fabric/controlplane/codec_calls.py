"""`fabricctl transform why` and `bench codec`: what the senders of a channel say of its codec, wherever they are.

Asks the processes; decides and measures nothing itself. Belongs to the daemon's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fabric import errors, limits
from fabric.registry.declare import unknown_channel

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

#: what other nodes ask of this one
CALLS = frozenset({"codec_why", "codec_bench"})


class CodecCalls:
    """One per daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def why(self, channel: str) -> list[dict[str, Any]]:
        """Return a row for each sender that has a codec; `ConfigError` for a channel that is not."""
        return await self._gather("codec_why", {"channel": channel}, limits.CONTROL_CALL_S)

    async def bench(
        self, channel: str, codecs: Sequence[str], seconds: float
    ) -> list[dict[str, Any]]:
        """Measure codecs in each sender's process on copies of what it sends next.

        Raises
        ------
        ConfigError
            There is no such channel, or nobody sends on it.
        """
        fields = {"channel": channel, "codecs": list(codecs), "seconds": seconds}
        timeout_s = seconds + limits.CODEC_BENCH_S
        rows = await self._gather("codec_bench", fields, timeout_s)
        if not rows:
            raise errors.ConfigError(
                f"nobody sends on channel {channel!r}: start its sender first", channel=channel
            )
        return rows

    async def _gather(
        self, op: str, fields: dict[str, Any], timeout_s: float
    ) -> list[dict[str, Any]]:
        view = self._daemon.registry.view
        if view.channel(fields["channel"]) is None:
            raise unknown_channel(fields["channel"], [c.name for c in view.channels])
        alive = [node.number for node in view.nodes if node.state == "alive"]
        answers = await asyncio.gather(
            *(self._daemon.calls.call(number, op, fields, timeout_s) for number in alive)
        )
        return [row for answer in answers for row in answer["rows"]]

    async def serve(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Ask the senders of a channel on this node."""
        channel = self._daemon.registry.view.channel(fields["channel"])
        if channel is None:
            return {"rows": []}
        rows: list[dict[str, Any]] = []
        for record in self._daemon.endpoints.all():
            port = self._daemon.ports.get(record.port)
            if record.channel != channel.number or record.role != "sender" or port is None:
                continue
            if not port.is_alive or port.connection is None:
                continue
            asked = {**fields, "endpoint": record.endpoint}
            timeout_s = float(fields.get("seconds", 0.0)) + limits.CODEC_BENCH_S
            answer = await port.connection.push(op, asked, (), timeout_s)
            about = {"node": self._daemon.context.name, "sender": record.port_name}
            rows += [{**about, **row} for row in answer["rows"]]
        return {"rows": rows}
