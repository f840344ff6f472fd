"""What a node knows of one plugin, and of the types along a channel. Values only."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from fabric.registry.records import ChannelRecord

Chain = tuple[str, str, int]  #: channel, transform, generation


@dataclass(eq=False)
class Plugin:
    """One loaded plugin. `running`: (channel, transform, generation) its present host runs; `opening` what it begins.

    `is_planned`: a plan brought it, so a plan may take it away; `is_leaving`: one has, it goes once its chains have
    ended. `unsure`: those of `running` that an earlier daemon began to end, perhaps; the host is asked again.
    """

    name: str
    path: str
    exports: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    running: set[Chain] = field(default_factory=set)
    unsure: set[Chain] = field(default_factory=set)
    opening: int = 0
    is_planned: bool = False
    is_leaving: bool = False
    digest: str = ""
    versions: list[dict[str, Any]] = field(default_factory=list)
    canary: dict[str, Any] = field(default_factory=dict)
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    def exported(self, kind: str) -> list[str]:
        """Return the names of its exports of a kind."""
        return [e["name"] for e in self.exports if e["kind"] == kind]

    def export(self, kind: str, name: str) -> dict[str, Any]:
        """Return one export."""
        return next(e for e in self.exports if e["kind"] == kind and e["name"] == name)


def is_installed(name: str) -> bool:
    """Tell whether a transform or policy of this name is registered by an installed package."""
    groups = ("fabric.transforms", "fabric.routes")
    return any(point.name == name for group in groups for point in entry_points(group=group))


def delivered_type(plugin: Plugin, channel: ChannelRecord, transform: str) -> str:
    """Name the type a channel delivers behind `transform`; empty when it is the channel's own."""
    produces = str(plugin.export("transform", transform).get("produces", "any")).partition("@")[0]
    if produces == "any":
        return channel.delivers
    return "" if produces == channel.type_name else produces
