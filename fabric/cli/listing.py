"""`node|module|channel|plugin ls` and `show`: what there is, and everything about one of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from fabric.cli.failure import failing
from fabric.cli.options import Output, Socket, connect
from fabric.cli.output import Column, Format, emit, pairs, size_of, table


def _exports(row: Mapping[str, Any]) -> list[str]:
    named = [
        f"{export.get('kind', '?')} {export.get('name', '?')}"
        for export in row.get("exports") or ()
    ]
    counts = row.get("join") or {}
    return named + [f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count]


def _decides(row: Mapping[str, Any]) -> str:
    """Say what the routing policies of a plugin cost: decisions, time in the policy, what was cached, what failed."""
    return "; ".join(
        f"{r['name']}: {r['decisions']} asked, {r['policy_us_mean']:g} µs (max {r['policy_us_max']:g}),"
        f" {r['cache_hits']} cached, {r['fallbacks']} by fallback"
        for r in row.get("routes") or ()
    )


def _addresses(row: Mapping[str, Any]) -> str | list[str] | None:
    """Return where a node is reached; of several rails each, with its interface and the speed that it claims."""
    rails = row.get("rails") or ()
    return [_rail(rail) for rail in rails] if len(rails) > 1 else row.get("address")


def _rail(rail: Mapping[str, Any]) -> str:
    bits = rail.get("bits_per_second") or 0
    link = rail.get("link", "tcp")
    where = f"{link}:{rail.get('address')}" if link != "tcp" else rail.get("address")
    words = [where, rail.get("interface"), f"{bits / 1e9:g} Gbit/s" if bits else ""]
    return " ".join(str(word) for word in words if word)


COLUMNS: dict[str, tuple[Column, ...]] = {
    "node": (
        Column("name", "name"),
        Column("number", "number", True),
        Column("address", _addresses),
        Column("state", "state"),
        Column("incarnation", "incarnation", True),
    ),
    "module": (
        Column("name", "name"),
        Column("node", "node"),
        Column("state", "state"),
        Column("pid", "pid", True),
        Column("restarts", "restarts", True),
        Column("class", "class"),
        Column("channels", "channels"),
    ),
    "channel": (
        Column("name", "name"),
        Column("type", "type", may_go=True),
        Column("pattern", "pattern"),
        Column("delivery", "delivery", may_go=True),
        Column("class", "class", may_go=True),
        Column("route", "route", may_go=True),
        Column("transforms", "transforms", may_go=True),
        Column("senders", "senders", True),
        Column("receivers", "receivers", True),
        Column("accepted", "accepted", True),
        Column("delivered", "delivered", True),
        Column("dropped", "dropped", True),
        Column("failed", "failed", True),
        Column("in flight", "in_flight", True),
        Column("bytes", size_of("delivered_bytes"), True, may_go=True),
    ),
    "plugin": (
        Column("name", "name"),
        Column("state", "state"),
        Column("pid", "pid", True),
        Column("restarts", "restarts", True),
        Column("version", "version", True, may_go=True),
        Column("exports", _exports),
        Column("decides", _decides, may_go=True),
        Column("path", "path"),
        Column("error", "error"),
    ),
}


def list_rows(kind: str, socket: str | None, output: Format) -> None:
    """Print the listing of a kind."""
    with failing(f"cannot list {kind}s"), connect(socket) as client:
        rows = client.ls(kind)
    emit(rows, output, lambda: table(COLUMNS[kind], rows, f"no {kind}s"))


def show_row(kind: str, name: str, socket: str | None, output: Format) -> None:
    """Print everything about one thing."""
    with failing(f"cannot show {kind} '{name}'"), connect(socket) as client:
        row = client.show(kind, name)
    emit(row, output, lambda: pairs(row))


def kind_app(kind: str) -> typer.Typer:
    """Return the sub-command of a kind, with `ls` and `show`."""
    app = typer.Typer(help=f"List and show {kind}s.", no_args_is_help=True)

    @app.command("ls", help=f"List the {kind}s.")
    def ls(socket: Socket = None, output: Output = Format.table) -> None:
        list_rows(kind, socket, output)

    @app.command("show", help=f"Show everything about one {kind}.")
    def show(name: str, socket: Socket = None, output: Output = Format.table) -> None:
        show_row(kind, name, socket, output)

    return app
