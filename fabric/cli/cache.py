"""`fabricctl cache ls|stat|clear`: the cache of encoder outputs of this user on a node.

It attaches as any process does: a cache is its user's, and nobody else can look into it.
"""

from __future__ import annotations

import sys

import typer

import fabric
from fabric.cli import places
from fabric.cli.failure import failing
from fabric.cli.options import Output, Socket
from fabric.cli.output import Column, Format, emit, pairs, size_of, table

cache_app = typer.Typer(help="Show and clear the cache of encoder outputs.", no_args_is_help=True)

_COLUMNS = (
    Column("digest", "digest"),
    Column("bytes", size_of("bytes"), True),
    Column("read lately", "read_lately"),
    Column("born", "born", True),
)


@cache_app.command("ls")
def ls(socket: Socket = None, output: Output = Format.table) -> None:
    """List what is in the cache, oldest first."""
    with failing("cannot list the cache"), _attach(socket) as port:
        rows = port.cache.entries()
    emit(rows, output, lambda: table(_COLUMNS, rows, "the cache is empty"))


@cache_app.command("stat")
def stat(socket: Socket = None, output: Output = Format.table) -> None:
    """Show sizes, hits, misses and evictions."""
    with failing("cannot look at the cache"), _attach(socket) as port:
        row = port.cache.stat()
    emit(row, output, lambda: pairs(row))


@cache_app.command("clear")
def clear(socket: Socket = None) -> None:
    """Forget everything in the cache and give its memory back."""
    with failing("cannot clear the cache"), _attach(socket) as port:
        count = port.cache.clear()
    sys.stdout.write(f"{count} entries forgotten\n")


def _attach(socket: str | None) -> fabric.Port:
    return fabric.attach("fabricctl", socket=socket or places.default_socket())
