"""`fabricctl plugin load|logs` and `module logs|stop`: what runs beside the daemon."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from fabric import limits
from fabric.cli.failure import Failure, failing
from fabric.cli.listing import kind_app
from fabric.cli.options import Lines, Output, Socket, connect
from fabric.cli.output import Column, Format, emit, table
from fabric.cli.spec import problem_line
from fabric.errors import ConfigError


class PluginKind(StrEnum):
    """What of a plugin file goes to work on a channel."""

    transform = "transform"
    route = "route"


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
        str,
        typer.Argument(
            metavar="FILE",
            help="A Python file with decorated plugins, an importable module, or an installed plugin's name.",
        ),
    ],
    channel: Annotated[
        Optional[str],  # noqa: UP045 - typer reads the annotation at run time
        typer.Option("--channel", "-c", help="Put its transform or route to work on this channel."),
    ] = None,
    kind: Annotated[
        Optional[PluginKind],  # noqa: UP045 - typer reads the annotation at run time
        typer.Option("--kind", help="transform or route, when the file has both."),
    ] = None,
    socket: Socket = None,
    output: Output = Format.table,
) -> None:
    """Load a plugin into its own stage host, while messages flow."""
    is_file = file.endswith(".py") or os.path.exists(file)
    path, source = (os.path.abspath(file), plugin_text(file)) if is_file else (file, "")
    with failing(f"cannot load {file}"), connect(socket, deadline_s=60.0) as client:
        answer = client.plugin_load(path, source, channel=channel, kind=kind)
    place = f" on channel {answer['channel']}" if answer.get("channel") else ""
    title = f"loaded {answer.get('name')}{place}"
    emit(
        answer,
        output,
        lambda: table(_EXPORTS, answer.get("exports", ()), "it exports nothing", title),
    )


def plugin_text(file: str) -> str:
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
    """Drain a module, then end it; it stays stopped until it is scaled up or an apply changes it."""
    with failing(f"cannot stop module '{name}'"), connect(socket, deadline_s=60.0) as client:
        answer = client.module_stop(name)
    sys.stdout.write(f"module {answer.get('name', name)} is {answer.get('state', 'stopped')}\n")


@module_app.command("drain")
def module_drain(
    name: Annotated[str, typer.Argument(help="A replica, or a module for all of its replicas.")],
    grace: Annotated[
        float, typer.Option("--grace", help="Seconds to finish what it holds.", min=0)
    ] = limits.MODULE_DRAIN_S,
    socket: Socket = None,
) -> None:
    """Give it nothing new, let it finish what it holds and hand back the rest, then end it."""
    with failing(f"cannot drain '{name}'"), connect(socket, deadline_s=60.0) as client:
        answer = client.module_drain(name, grace)
    _print_replicas(name, answer)


@module_app.command("scale")
def module_scale(
    name: str,
    replicas: Annotated[int, typer.Argument(min=0, max=limits.REPLICAS_MAX)],
    socket: Socket = None,
) -> None:
    """Run so many replicas of a module, until an apply changes it."""
    with failing(f"cannot scale module '{name}'"), connect(socket, deadline_s=60.0) as client:
        answer = client.module_scale(name, replicas)
    _print_replicas(name, answer)


@module_app.command("add")
def module_add(
    name: str,
    module_class: Annotated[
        str, typer.Option("--class", help="package.module:Class or file.py:Class.")
    ],
    node: Annotated[Optional[str], typer.Option(help="Where it runs.")] = None,  # noqa: UP045
    replicas: Annotated[int, typer.Option(min=1, max=limits.REPLICAS_MAX)] = 1,
    channel: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads the annotation at run time
        typer.Option("--channel", "-c", metavar="FIELD=CHANNEL", help="Repeat for each field."),
    ] = None,
    config: Annotated[str, typer.Option(help="Its configuration, as JSON.")] = "{}",
    socket: Socket = None,
) -> None:
    """Start a module beside those that run, without a file."""
    spec: dict[str, Any] = {"class": module_class, "replicas": replicas}
    with failing(f"cannot add module '{name}'"):
        spec["config"] = _json(config)
        spec["channels"] = dict(_field_of(pair) for pair in channel or ())
    if node is not None:
        spec["node"] = node
    text = json.dumps({"version": 1, "modules": {name: spec}})
    with failing(f"cannot add module '{name}'"), connect(socket, deadline_s=60.0) as client:
        answer = client.module_add(text, search=[os.getcwd()])
    for problem in answer.get("problems", ()):
        sys.stderr.write(f"warning: {problem_line(problem)}\n")
    for change in answer.get("changes", ()):
        sys.stdout.write(f"module {change['name']} {change['action']} {change.get('detail', '')}\n")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--config is not JSON: {error}", key="--config") from error


def _field_of(pair: str) -> tuple[str, str]:
    field, equals, channel = pair.partition("=")
    if not equals or not field or not channel:
        raise ConfigError(f"--channel {pair!r}: write FIELD=CHANNEL", key="--channel")
    return field, channel


def _print_replicas(name: str, answer: dict[str, Any]) -> None:
    rows = answer.get("replicas") or ()
    listed = ", ".join(f"{row['name']} ({row['state']})" for row in rows) or "none"
    sys.stdout.write(
        f"module {answer.get('name', name)}: {answer.get('state', '')}; replicas: {listed}\n"
    )


def _print(lines: list[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
