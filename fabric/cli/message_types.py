"""`fabricctl type ls|show|diff|compat|export`: types of a running fabric, of installed packages and of files."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from fabric import errors
from fabric.cli.failure import failing
from fabric.cli.options import Output, Socket, connect
from fabric.cli.output import Column, Format, emit, table

type_app = typer.Typer(help="List, show, compare and export message types.", no_args_is_help=True)
_WHICH = "NAME, NAME@VERSION, FILE.py:Class, package.module:Class, or a file with a schema (.json)."
Type = Annotated[str, typer.Argument(metavar="TYPE", help=_WHICH)]

_COLUMNS = (
    Column("name", "name"),
    Column("version", "version", True),
    Column("fields", "fields", True),
    Column("channels", "channels"),
    Column("plugins", "plugins"),
    Column("fingerprint", lambda row: row["fingerprint"][:12]),
)
_FIELDS = (Column("field", "field"), Column("type", "type"))
_CHANGES = (
    Column("field", "field"),
    Column("change", "change"),
    Column("old", "old"),
    Column("new", "new"),
)


@type_app.command("ls")
def type_ls(socket: Socket = None, output: Output = Format.table) -> None:
    """List the types of channels, loaded plugins and installed packages."""
    with failing("cannot list types"):
        rows = _rows(socket)
    emit(rows, output, lambda: table(_COLUMNS, rows, "no types"))


@type_app.command("show")
def type_show(name: Type, socket: Socket = None, output: Output = Format.table) -> None:
    """Show the fields of a type."""
    with failing(f"cannot show type '{name}'"):
        schema = _find(name, socket)
    fields = [{"field": f.name, "type": str(f)} for f in schema.fields]
    row = {"name": schema.name, "version": schema.version, "fingerprint": schema.fingerprint}
    title = f"{schema.label} {schema.fingerprint[:12]}"
    emit(
        {**row, "fields": fields, "schema": schema.text},
        output,
        lambda: table(_FIELDS, fields, "", title),
    )


@type_app.command("diff")
def type_diff(old: Type, new: Type, socket: Socket = None, output: Output = Format.table) -> None:
    """Show field by field what differs between two types."""
    with failing(f"cannot compare '{old}' and '{new}'"):
        before, after = _find(old, socket), _find(new, socket)
    rows = _changes(before, after)
    emit(rows, output, lambda: table(_CHANGES, rows, f"{before.label} and {after.label} are equal"))


@type_app.command("compat")
def type_compat(old: Type, new: Type, socket: Socket = None, output: Output = Format.table) -> None:
    """Tell whether NEW reads all that OLD sends; exit status 0 yes, 1 no, naming the field."""
    from fabric.messages.evolution import describe, unreadable

    with failing(f"cannot compare '{old}' and '{new}'"):
        before, after = _find(old, socket), _find(new, socket)
    rows = []
    for writer, reader in ((before, after), (after, before)):
        finding = unreadable(writer, reader)
        rows.append(
            {
                "reader": reader.label,
                "writer": writer.label,
                "reads": finding is None,
                "field": finding.field if finding else None,
                "why": describe(finding, writer, reader) if finding else None,
            }
        )
    emit(rows, output, lambda: "\n".join(map(_verdict, rows)))
    raise typer.Exit(0 if rows[0]["reads"] else 1)


@type_app.command("export")
def type_export(name: Type, socket: Socket = None) -> None:
    """Print a type as JSON Schema."""
    from fabric.messages.json_schema import json_schema

    with failing(f"cannot export type '{name}'"):
        schema = _find(name, socket)
    emit(json_schema(schema), Format.json, str)


def _verdict(row: dict[str, Any]) -> str:
    return f"{row['reader']} reads {row['writer']}" if row["reads"] else f"{row['why']}"


def _changes(before: Any, after: Any) -> list[dict[str, Any]]:
    from fabric.messages.evolution import sources

    matched = sources(before.fields, after.fields)
    rows = []
    for field in after.fields:
        source = matched[field.name]
        old = None if source is None else str(source)
        if source is None or old != str(field) or source.name != field.name:
            change = "added" if source is None else "changed"
            change = (
                f"renamed from {source.name}" if source and source.name != field.name else change
            )
            rows.append({"field": field.name, "change": change, "old": old, "new": str(field)})
    kept = {source.name for source in matched.values() if source is not None}
    rows += [
        {"field": f.name, "change": "removed", "old": str(f), "new": None}
        for f in before.fields
        if f.name not in kept
    ]
    return rows


def _rows(socket: str | None) -> list[dict[str, Any]]:
    """Return what the node lists and what is installed here."""
    from fabric.controlplane.type_rows import type_rows
    from fabric.messages.installed import installed_types

    installed = [
        {"name": f"installed: {place}", "exports": [{"schema": type_.schema.text}]}
        for place, type_ in installed_types()
    ]
    with connect(socket) as client:
        rows: list[dict[str, Any]] = client.ls("type")
    known = {row["schema"]: row for row in rows}
    for row in type_rows((), installed):
        if row["schema"] in known:
            known[row["schema"]]["plugins"] += row["plugins"]
        else:
            rows.append(row)
    return sorted(rows, key=lambda row: (row["name"], row["version"]))


def _find(word: str, socket: str | None) -> Any:
    """Return the schema that a word on the command line names."""
    from pathlib import Path

    from fabric.messages import Schema
    from fabric.messages.installed import class_at, installed_types

    if word.endswith(".json"):
        try:
            return Schema.parse(Path(word).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise errors.ConfigError(f"cannot read {word}: {error}") from error
    if ":" in word:
        return class_at(word).schema
    name, _, version = word.partition("@")
    here = [t.schema for _, t in installed_types()]
    found = [s for s in here if s.name == name and version in ("", str(s.version))]
    try:
        with connect(socket) as client:
            rows = client.ls("type")
    except errors.FabricError as error:
        if not (found and error.context.get("unreachable")):
            raise
        rows = []
    found += [
        Schema.parse(row["schema"])
        for row in rows
        if row["name"] == name and version in ("", str(row["version"]))
    ]
    if not found:
        known = sorted({f"{r['name']}@{r['version']}" for r in rows} | {s.label for s in here})
        raise errors.ConfigError(f"there is no type {word!r}; known: {', '.join(known) or 'none'}")
    if len({s.text for s in found if s.version == max(f.version for f in found)}) > 1:
        sys.stderr.write(f"warning: {word} is declared in several ways; see fabricctl type ls\n")
    return max(found, key=lambda schema: schema.version)
