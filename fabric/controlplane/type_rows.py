"""Rows of `fabricctl type ls`: the message types that channels carry and plugins bring. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fabric.messages.schema import Schema
from fabric.registry.records import ChannelRecord


def type_rows(
    channels: Iterable[ChannelRecord], plugins: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return one row a type and version, with the channels and plugins that use it, by name and version."""
    found: dict[str, dict[str, Any]] = {}
    for channel in channels:
        used = (channel.schema, *channel.schemas, channel.reply_schema, *channel.reply_schemas)
        for text in filter(None, used):
            _row(found, text)["channels"].append(channel.name)
    for plugin in plugins:
        for export in plugin.get("exports") or ():
            keys = ("schema", "accepts_schema", "produces_schema")
            for text in {export.get(key) for key in keys} - {None, ""}:
                row = _row(found, str(text))
                if plugin["name"] not in row["plugins"]:
                    row["plugins"].append(plugin["name"])
    return sorted(found.values(), key=lambda row: (row["name"], row["version"]))


def _row(found: dict[str, dict[str, Any]], text: str) -> dict[str, Any]:
    if text not in found:
        schema = Schema.parse(text)
        found[text] = {
            "name": schema.name,
            "version": schema.version,
            "fields": len(schema.fields),
            "fingerprint": schema.fingerprint,
            "type_id": f"{schema.type_id:08x}",
            "channels": [],
            "plugins": [],
            "schema": text,
        }
    return found[text]
