"""`fabricctl plugin reload|canary|promote|rollback|unload|debug`: what happens to a plugin after it was loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Annotated, Any, Optional

import typer

from fabric import limits
from fabric.cli.failure import Failure, failing
from fabric.cli.options import Output, Socket, connect
from fabric.cli.output import Format, emit, pairs
from fabric.cli.workers import plugin_app as plugin_app
from fabric.cli.workers import plugin_text

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `plugin ls` has it.")]
File = Annotated[
    Optional[str],  # noqa: UP045 - typer reads the annotation at run time
    typer.Argument(metavar="[FILE]", help="The new code; left out: where it was loaded from."),
]
_POLL_S = 0.2


@plugin_app.command("reload")
def plugin_reload(
    name: Name, file: File = None, socket: Socket = None, output: Output = Format.table
) -> None:
    """Replace the code of a plugin between two batches; nothing is lost, repeated or reordered."""
    with failing(f"cannot reload plugin '{name}'"), connect(socket, deadline_s=60.0) as client:
        row = client.plugin_change("reload", name, **_code(client, name, file))
    _say(row, output, f"{name} is version {row.get('version')}")


@plugin_app.command("canary")
def plugin_canary(
    name: Name,
    file: File = None,
    seconds: Annotated[
        float, typer.Option("--for", help="Compare at most this many seconds.", min=0.1)
    ] = limits.CANARY_S,
    messages: Annotated[
        int, typer.Option(help="This many equal messages are enough; 0: the time decides.", min=0)
    ] = 0,
    promote: Annotated[
        bool, typer.Option("--promote", help="Let it take over when it passes.")
    ] = False,
    socket: Socket = None,
    output: Output = Format.table,
) -> None:
    """Run new code beside the running one on copies of live messages, and compare; a difference rolls it back.

    Its outputs go nowhere. Exit status 1 when it was rolled back.
    """
    with failing(f"cannot try plugin '{name}'"), connect(socket, deadline_s=60.0) as client:
        fields = {**_code(client, name, file), "seconds": seconds, "messages": messages}
        row = client.plugin_change("canary", name, **fields)
        while (row.get("canary") or {}).get("state") == "running":
            time.sleep(_POLL_S)
            row = client.show("plugin", name)
        found = row.get("canary") or {}
        if promote and found.get("state") == "passed":
            row = client.plugin_change("promote", name)
    if found.get("state") == "rolled back":
        raise Failure(
            f"the canary of plugin '{name}' was rolled back",
            str(found.get("reason")),
            "correct the new code; what ran before goes on",
        )
    emit({**row, "canary": found}, output, lambda: pairs(found))


@plugin_app.command("promote")
def plugin_promote(name: Name, socket: Socket = None, output: Output = Format.table) -> None:
    """Let the code of a canary take over."""
    with failing(f"cannot promote plugin '{name}'"), connect(socket, deadline_s=60.0) as client:
        row = client.plugin_change("promote", name)
    _say(row, output, f"{name} is version {row.get('version')}")


@plugin_app.command("rollback")
def plugin_rollback(
    name: Name,
    version: Annotated[
        Optional[int],  # noqa: UP045 - typer reads the annotation at run time
        typer.Option("--to", help="This version; left out: the one before.", min=1),
    ] = None,
    socket: Socket = None,
    output: Output = Format.table,
) -> None:
    """End a canary; without one, run the version before again."""
    fields = {"version": version} if version is not None else {}
    with failing(f"cannot roll back plugin '{name}'"), connect(socket, deadline_s=60.0) as client:
        row = client.plugin_change("rollback", name, **fields)
    versions = row.get("versions") or [{}]
    of = versions[-1].get("of")
    _say(row, output, f"{name} is version {row.get('version')}" + (f", as {of} was" if of else ""))


@plugin_app.command("unload")
def plugin_unload(name: Name, socket: Socket = None, output: Output = Format.table) -> None:
    """Take a plugin off its channels while messages flow, then end it once nothing is in it."""
    with failing(f"cannot unload plugin '{name}'"), connect(socket, deadline_s=60.0) as client:
        row = client.plugin_change("unload", name)
        is_gone = all(each.get("name") != name for each in client.ls("plugin"))
    _say(row, output, f"{name} is unloaded" if is_gone else f"{name} leaves when its chains end")


@plugin_app.command("debug")
def plugin_debug(
    name: Name,
    command: Annotated[
        str, typer.Option("--with", help="Run it under this, e.g. 'python -m pdb'.")
    ] = sys.executable,
    socket: Socket = None,
) -> None:
    """Run a plugin's stage host here, in the foreground, without deadlines; afterwards it is supervised again.

    breakpoint() in `apply` stops in this terminal. Messages wait meanwhile; senders keep their own deadlines.
    """
    with failing(f"cannot debug plugin '{name}'"), connect(socket, deadline_s=60.0) as client:
        row = client.plugin_change("debug", name)
    argv = [*command.split(), "-m", "fabric.worker.stage_host", "--foreground"]
    try:
        status = subprocess.run(
            argv, env={**os.environ, **row["environment"]}, check=False
        ).returncode
    except OSError as error:
        raise Failure(f"cannot debug plugin '{name}'", str(error), "check --with") from error
    finally:
        with failing(f"cannot give back plugin '{name}'"), connect(socket) as client:
            client.plugin_change("undebug", name)
    raise typer.Exit(status if status >= 0 else 1)


def _code(client: Any, name: str, file: str | None) -> dict[str, Any]:
    """Return path and text of new code: of a file, or of where the plugin came from."""
    path = file or str(client.show("plugin", name).get("path") or "")
    if not path.endswith(".py"):
        return {"path": path}
    if not os.path.isabs(path):
        path = os.path.abspath(path)
    return {"path": path, "source": plugin_text(path)}


def _say(row: dict[str, Any], output: Format, text: str) -> None:
    emit(row, output, lambda: text)
