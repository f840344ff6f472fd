"""`fabricctl doctor`: can a node run here, and what would make it run better?"""

from __future__ import annotations

import typer

from fabric.cli import places
from fabric.cli.options import Output, Socket
from fabric.cli.output import Column, Format, emit, table

_COLUMNS = (
    Column("check", "name"),
    Column("state", "state"),
    Column("found", "found"),
    Column("advice", "advice"),
)


def doctor(socket: Socket = None, output: Output = Format.table) -> None:
    """Check kernel, limits, packages, sockets and devices; exit status 1 if a node cannot run here."""
    from fabric.cli import checks

    found = [check._asdict() for check in checks.run_all(socket or places.default_socket())]
    failed = [row["name"] for row in found if row["state"] == "fail"]
    verdict = f"a node cannot run here: {', '.join(failed)}" if failed else "a node can run here"
    emit(found, output, lambda: f"{table(_COLUMNS, found, 'nothing was checked')}\n\n{verdict}")
    if failed:
        raise typer.Exit(1)
