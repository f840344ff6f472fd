"""`fabricctl plugin load|logs` and `module logs|stop`: what runs beside the daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from fabric.cli.failure import Failure, failing
from fabric.cli.listing import kind_app
from fabric.cli.options import Lines, Output, Socket, connect
from fabric.cli.output import Column, Format, emit, table

plugin_app = kind_app("plugin")
module_app = kind_app("module")

_EXPORTS = (
    Column("kind", "kind"),
    Column("name", "name"),
    Column("accepts", "accepts"),
    Column("produces", "produces"),
)


@plugin_app.command("load")
def plugin_load(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="One Python file with decorated plugins.")
    ],
    channel: Annotated[
        Optional[str],  # noqa: UP045 - typer reads the annotation at run time
        typer.Option("--channel", "-c", help="Put its transform or route to work on this channel."),
    ] = None,
    kind: Annotated[
        Optional[str],  # noqa: UP045 - typer reads the annotation at run time
        typer.Option("--kind", help="transform or route, when the file has both."),
    ] = None,
    socket: Socket = None,
    output: Output = Format.table,
) -> None:
    """Load a plugin file into its own stage host, while messages flow."""
    source = _source(file)
    with failing(f"cannot load {file}"), connect(socket, deadline_s=60.0) as client:
        answer = client.plugin_load(os.path.abspath(file), source, channel=channel, kind=kind)
    place = f" on channel {answer['channel']}" if answer.get("channel") else ""
    title = f"loaded {answer.get('name')}{place}"
    emit(
        answer,
        output,
        lambda: table(_EXPORTS, answer.get("exports", ()), "it exports nothing", title),
    )


def _source(file: str) -> str:
    """Return the text of a plugin file that at least compiles; nothing in it is run here."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise Failure(f"cannot load {file}", why, "check the path and its permissions") from error
    try:
        compile(text, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        why = f"{file}:{line}: {error.args[0]}" if line else str(error)
        raise Failure(
            f"cannot load {file}: it is not valid Python", why, "correct that line"
        ) from error
    return text


@plugin_app.command("logs")
def plugin_logs(name: str, lines: Lines = 100, socket: Socket = None) -> None:
    """Print what a plugin printed, tracebacks included."""
    with failing(f"cannot read the log of plugin '{name}'"), connect(socket) as client:
        _print(client.plugin_logs(name, lines))


@module_app.command("logs")
def module_logs(name: str, lines: Lines = 100, socket: Socket = None) -> None:
    """Print what a module printed, tracebacks included."""
    with failing(f"cannot read the log of module '{name}'"), connect(socket) as client:
        _print(client.module_logs(name, lines))


@module_app.command("stop")
def module_stop(name: str, socket: Socket = None) -> None:
    """Drain a module, then end it; it stays stopped until the next apply."""
    with failing(f"cannot stop module '{name}'"), connect(socket, deadline_s=60.0) as client:
        answer = client.module_stop(name)
    sys.stdout.write(f"module {answer.get('name', name)} is {answer.get('state', 'stopped')}\n")


def _print(lines: list[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
