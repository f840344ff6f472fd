"""The registry as a node sees it: the same calls on the first node (in process) and on the others (by request).

The view is pushed; `view` is the newest one seen. Calls raise what the registry raises.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from fabric.errors import PathBrokenError
from fabric.registry.cluster import Registry
from fabric.registry.records import ArchivedCounts, ChannelRecord, EndpointRecord, View

Request = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


async def _not_joined(op: str, fields: dict[str, Any]) -> dict[str, Any]:
    raise PathBrokenError("the registry node is not connected; the call can be repeated", op=op)


class RegistryClient:
    """`request` reaches the registry node; on that node `local` is the registry itself."""

    def __init__(self, local: Registry | None = None) -> None:
        self.local = local
        self.request: Request = _not_joined
        self.view = local.view() if local else View()
        self.on_archived: Callable[[list[ArchivedCounts]], None] = lambda finals: None

    async def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """Call the registry, wherever it is."""
        plain = {key: msgspec.to_builtins(value) for key, value in fields.items()}
        if self.local is not None:
            return serve_registry(self.local, op, plain)
        return await self.request(op, plain)

    async def declare(self, channel: ChannelRecord) -> ChannelRecord:
        """Declare a channel; idempotent."""
        answer = await self.call("declare", channel=channel)
        return msgspec.convert(answer["channel"], ChannelRecord)

    async def settle(
        self, name: str, schema: str, reply_schema: str, is_last: bool, role: str = ""
    ) -> ChannelRecord:
        """Confirm the types an endpoint brings to a declared channel."""
        answer = await self.call(
            "settle",
            name=name,
            schema=schema,
            reply_schema=reply_schema,
            is_last=is_last,
            role=role,
        )
        return msgspec.convert(answer["channel"], ChannelRecord)

    async def change(
        self,
        name: str,
        transforms: Iterable[str] | None = None,
        route: str | None = None,
        delivers: str | None = None,
    ) -> ChannelRecord:
        """Change a live channel."""
        plain = None if transforms is None else list(transforms)
        answer = await self.call(
            "change", name=name, transforms=plain, route=route, delivers=delivers
        )
        return msgspec.convert(answer["channel"], ChannelRecord)

    async def release(self, names: Iterable[str]) -> None:
        """Let transient channels go, at once or with their last end."""
        await self.call("release", names=list(names))

    async def open(self, endpoint: EndpointRecord) -> None:
        """Report an endpoint."""
        await self.call("open", endpoint=endpoint)

    async def close(self, endpoints: Iterable[int]) -> None:
        """Report endpoints gone."""
        await self.call("close", endpoints=list(endpoints))

    async def archive(self, finals: Iterable[ArchivedCounts]) -> None:
        """Hand in final counts; repeating is safe."""
        rows = list(finals)
        await self.call("archive", finals=rows)
        self.on_archived(rows)

    async def archived(self) -> list[ArchivedCounts]:
        """Return all archived counts."""
        return msgspec.convert((await self.call("archived"))["finals"], list[ArchivedCounts])


def serve_registry(registry: Registry, op: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Serve one registry call from plain fields; `KeyError` for what is none."""
    if op == "declare":
        return {
            "channel": msgspec.to_builtins(
                registry.declare(msgspec.convert(fields["channel"], ChannelRecord))
            )
        }
    if op == "settle":
        settled = registry.settle(
            fields["name"],
            fields["schema"],
            fields["reply_schema"],
            fields["is_last"],
            fields.get("role", ""),
        )
        return {"channel": msgspec.to_builtins(settled)}
    if op == "change":
        transforms = fields["transforms"]
        changed = registry.change(
            fields["name"],
            transforms=None if transforms is None else tuple(transforms),
            route=fields["route"],
            delivers=fields["delivers"],
        )
        return {"channel": msgspec.to_builtins(changed)}
    if op == "release":
        registry.release(fields["names"])
        return {}
    if op == "open":
        registry.open(msgspec.convert(fields["endpoint"], EndpointRecord))
        return {}
    if op == "close":
        registry.close(fields["endpoints"])
        return {}
    if op == "archive":
        registry.archive(msgspec.convert(fields["finals"], list[ArchivedCounts]))
        return {}
    if op == "archived":
        return {"finals": msgspec.to_builtins(registry.archived())}
    raise KeyError(op)


REGISTRY_CALLS = frozenset(
    {"declare", "settle", "change", "release", "open", "close", "archive", "archived"}
)
