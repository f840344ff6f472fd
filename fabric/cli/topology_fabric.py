"""What a node says of the fabric, as tables: nodes, links, attached processes, channels with endpoints and flows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fabric import units
from fabric.cli.output import ABSENT, Column, cell, size_of, table
from fabric.paths import explain
from fabric.paths.discovery import rates


def _rtt(row: Mapping[str, Any]) -> str | None:
    return None if row.get("rtt_us") is None else units.format_seconds(row["rtt_us"] / 1e6)


def _link(row: Mapping[str, Any]) -> str:
    return f"{row.get('link')}{', no checksums' if row.get('checksums') is False else ''}"


def _path(row: Mapping[str, Any]) -> str:
    taken, preferred = str(row.get("path") or ABSENT), row.get("path_preferred")
    if not preferred or preferred == taken:
        return taken
    return f"{taken} instead of {preferred}: {row.get('path_reason')}"


_NODES = (
    Column("node", lambda row: f"{row.get('name')}{' (this)' if row.get('local') else ''}"),
    Column("number", "number", True),
    Column("address", "address"),
    Column("state", "state"),
    Column("incarnation", "incarnation", True),
)
_LINKS = (
    Column("from", "source"),
    Column("to", "target"),
    Column("link", _link),
    Column("state", "state"),
    Column("connections", "connections", True),
    Column("sent", size_of("bytes_sent"), True),
    Column("received", size_of("bytes_received"), True),
    Column("rtt", _rtt, True),
)
_RAILS = (
    Column("from", "source"),
    Column("to", "target"),
    Column("rail", "rail", True),
    Column("state", "state"),
    Column("rate", lambda row: _rail_rate(row), True),
    Column("interface", "interface"),
    Column("addresses", lambda row: f"{cell(row.get('local'))} → {_far(row)}"),
)
_PORTS = (
    Column("port", "name"),
    Column("node", "node"),
    Column("kind", "kind"),
    Column("pid", "pid", True),
    Column("state", "state"),
)
_ENDPOINTS = (
    Column("  role", lambda row: f"  {row.get('role')}"),
    Column("port", "name"),
    Column("node", "node"),
    Column("stage", "stage", True),
)
_FLOWS = (
    Column("  from", lambda row: f"  {row.get('source')}"),
    Column("to", "target"),
    Column("path", _path),
    Column("messages", "messages", True),
    Column("bytes", size_of("bytes"), True),
    Column("outstanding", "outstanding", True),
    Column("generation", "generation", True),
)


def render(answer: Mapping[str, Any]) -> str:
    """Return a node's answer as tables, one section each."""
    sections = [
        f"generation {cell(answer.get('generation'))}",
        table(_NODES, answer.get("nodes", ()), "no nodes"),
        table(_LINKS, answer.get("links", ()), "no links: this node stands alone"),
        *_rails(answer.get("links", ())),
        table(_PORTS, answer.get("ports", ()), "nothing is attached"),
    ]
    sections += [_channel(channel) for channel in answer.get("channels", ())]
    if not answer.get("channels"):
        sections.append("no channels")
    return "\n\n".join(sections)


def _rails(links: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the rails between nodes as a table, where any link has some; `fabricctl path` tells more of them."""
    rows = [
        {**rail, "source": link.get("source"), "target": link.get("target")}
        for link in links
        for rail in link.get("rails") or ()
    ]
    return [table(_RAILS, rows, "no rails")] if rows else []


def _rail_rate(row: Mapping[str, Any]) -> str:
    """Return a rail's rate, marked where nothing has measured it yet."""
    text = rates.text(row.get("rate") or None)
    return text if text == "?" or explain.is_measured(row) else f"{text}?"


def _far(row: Mapping[str, Any]) -> str:
    return cell(row.get("remote") or row.get("address"))


def _channel(channel: Mapping[str, Any]) -> str:
    words = [str(channel.get(key) or ABSENT) for key in ("type", "pattern", "delivery", "class")]
    extras = [f"{key} {cell(channel[key])}" for key in ("route", "transforms") if channel.get(key)]
    heading = f"channel {channel.get('name')}: {', '.join(words + extras)}"
    endpoints = table(_ENDPOINTS, channel.get("endpoints") or (), "  no endpoints")
    flows = table(_FLOWS, channel.get("flows") or (), "  no flows")
    return "\n".join((heading, endpoints, flows))
