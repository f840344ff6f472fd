"""`fabricctl path`: the rails to other nodes, what each carries and why, and how to bind or measure them."""

from __future__ import annotations

import sys
from typing import Annotated, Optional

import typer

from fabric import limits, units
from fabric.cli import path_tables
from fabric.cli.failure import Failure, failing
from fabric.cli.options import Output, Socket, connect
from fabric.cli.output import Format, emit

path_app = typer.Typer(
    help="Rails to other nodes: what each carries and why; measure and pin them.",
    no_args_is_help=True,
)

_NUMBER = Optional[int]  # noqa: UP045 - typer reads the annotation at run time
Peer = Annotated[str, typer.Argument(metavar="PEER", help="The node at the other end.")]
Rail = Annotated[_NUMBER, typer.Option("--rail", help="One rail only.", show_default=False)]
From = Annotated[
    str, typer.Option("--from", help="The node that sends; left out: the one that is asked.")
]
Size = Annotated[str, typer.Option("--size", help="Of the message, such as 64MiB.")]
Rails = Annotated[str, typer.Option("--rail", help="Numbers of rails: 1, or 0,2.")]


@path_app.command("ls")
def ls(source: From = "", socket: Socket = None, output: Output = Format.table) -> None:
    """List every rail to every node: state, rate, latency, what is in flight, its share of the bytes, failures."""
    with failing("cannot list the paths"), connect(socket) as client:
        rows = client.path_ls(source)
    emit(rows, output, lambda: path_tables.listing(rows))


@path_app.command("show")
def show(
    peer: Peer,
    rail: Rail = None,
    size: Size = "1MiB",
    source: From = "",
    socket: Socket = None,
    output: Output = Format.table,
) -> None:
    """Show each rail to a node: the terms of its score, penalty, last error, last changes, the last decisions."""
    what = f"cannot show the path to {peer}"
    size_bytes = _size(what, "--size", size)
    with failing(what), connect(socket) as client:
        answer = client.path_show(peer, rail=rail, size_bytes=size_bytes, source=source)
    emit(answer, output, lambda: path_tables.shown(answer))


@path_app.command("why")
def why(
    source: Annotated[str, typer.Option("--from", help="The node that sends.")],
    target: Annotated[str, typer.Option("--to", help="The node that receives.")],
    size: Size = "1MiB",
    klass: Annotated[
        str, typer.Option("--class", help="control, token, embedding or bulk.")
    ] = "bulk",
    socket: Socket = None,
    output: Output = Format.table,
) -> None:
    """Say where a message would go now, over which rails and how much over each, and why. Nothing is sent."""
    what = f"cannot say how {source} reaches {target}"
    size_bytes = _size(what, "--size", size)
    with failing(what), connect(socket) as client:
        answer = client.path_why(source, target, size_bytes=size_bytes, klass=klass)
    emit(answer, output, lambda: path_tables.reasons(answer))


@path_app.command("probe")
def probe(
    peer: Peer,
    rail: Rail = None,
    trips: Annotated[int, typer.Option("--trips", help="Round trips on each rail.")] = 20,
    size: Annotated[
        str, typer.Option("--bytes", help="Payload on each rail, at most; 0: round trips alone.")
    ] = "0",
    seconds: Annotated[
        float, typer.Option("--seconds", help="For the payload of each rail, at most.")
    ] = 1.0,
    source: From = "",
    socket: Socket = None,
    output: Output = Format.table,
) -> None:
    """Measure each rail by itself, over a connection of its own beside the traffic that is there.

    Round trips between the two daemons, what the kernel saw of them, and with --bytes how fast payload arrives. A rail
    that is down says why it cannot be reached.
    """
    what = f"cannot probe the path to {peer}"
    size_bytes = _size(what, "--bytes", size)
    payload = f"{units.format_bytes(size_bytes)} of payload in {seconds:g} s" if size_bytes else ""
    budget = " and at most ".join(filter(None, (f"{trips} round trips", payload)))
    sys.stderr.write(f"probing the rails to {peer}: {budget} a rail\n")
    wait_s = limits.CONTROL_S + limits.RAILS_PER_PEER_MAX * (seconds + limits.PATH_PROBE_WAIT_S)
    with failing(what), connect(socket, deadline_s=wait_s) as client:
        answer = client.path_probe(
            peer, rail=rail, trips=trips, size_bytes=size_bytes, seconds=seconds, source=source
        )
    emit(answer, output, lambda: path_tables.probed(answer))
    if all(row.get("failed") for row in answer["rails"]):
        raise typer.Exit(1)


@path_app.command("pin")
def pin(peer: Peer, rail: Rails, socket: Socket = None, output: Output = Format.table) -> None:
    """Bind what this node sends to PEER to some of its rails, until `unpin`: over reconnects and restarts.

    While none of them is up, messages of more than 4 KiB wait; `path ls`, `status` and `doctor` say so.
    """
    what = f"cannot pin the path to {peer}"
    rails = _numbers(what, rail)
    with failing(what), connect(socket) as client:
        answer = client.path_pin(peer, rails)
    emit(answer, output, lambda: path_tables.pinned(answer))


@path_app.command("unpin")
def unpin(peer: Peer, socket: Socket = None, output: Output = Format.table) -> None:
    """Let every rail to PEER carry again."""
    with failing(f"cannot unpin the path to {peer}"), connect(socket) as client:
        answer = client.path_pin(peer, ())
    emit(answer, output, lambda: path_tables.pinned(answer))


def _size(what: str, option: str, text: str) -> int:
    try:
        return units.parse_bytes(text)
    except ValueError as error:
        raise Failure(what, f"{option}: {error}", "correct it and run the command again") from error


def _numbers(what: str, text: str) -> list[int]:
    """Return the rails that ``1`` or ``0,2`` names."""
    words = text.replace(",", " ").split()
    most = limits.RAILS_PER_PEER_MAX - 1
    if not words or not all(word.isascii() and word.isdigit() for word in words):
        raise Failure(
            what, f"--rail: {text!r} names no rail", "write for example --rail 1 or --rail 0,2"
        )
    numbers = [int(word) for word in words]
    if max(numbers) > most:
        raise Failure(
            what,
            f"--rail: {max(numbers)} is no rail, they have numbers 0 to {most}",
            "see which there are: fabricctl path ls",
        )
    return numbers
