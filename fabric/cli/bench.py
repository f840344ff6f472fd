"""`fabricctl bench`: what a live deployment delivers now, measured beside its traffic within a stated budget."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any, Optional

import typer

from fabric import limits, units
from fabric.cli.failure import Failure, failing
from fabric.cli.options import Output, Socket, connect
from fabric.cli.output import ABSENT, Column, Format, cell, emit, table

bench_app = typer.Typer(help="Measure a live deployment without stopping it.", no_args_is_help=True)


def _figure(title: str, *keys: str) -> Column:
    """Return a column of the first of the keys that a row has."""
    return Column(title, lambda row: next((row[k] for k in keys if k in row), None), True)


_STEPS = (
    Column("group", "group"),
    Column("row", "name"),
    _figure("p50 us", "p50_us"),
    _figure("p99 us", "p99_us"),
    _figure("k/s", "k_per_s"),
    _figure("GB/s", "gb_per_s"),
    _figure("CPU us/message", "cpu_us"),
    _figure("CPU s/GB", "cpu_s_per_gb"),
    _figure("of it daemons", "daemons_cpu_us", "daemons_cpu_s_per_gb"),
    _figure("messages", "messages"),
)
_PATHS = (
    Column("channel", "channel"),
    Column("from", "source"),
    Column("to", "target"),
    Column("path", lambda row: _path(row)),
    Column("checksums", "checksums"),
)
_LOADS = (
    Column("node", "node"),
    Column("cores", "cores", True),
    Column("load", "load_1m", True),
    Column("busy %", "busy_percent", True),
    Column("daemon % of a core", "daemon_percent", True),
)

Seconds = Annotated[float, typer.Option("--seconds", help="Time of measuring, at most.")]
Bytes = Annotated[str, typer.Option("--bytes", help="Payload put on the edge, at most.")]
Memory = Annotated[
    str, typer.Option("--memory", help="Arena memory and buffers on each node, at most.")
]


@bench_app.command("edge")
def edge(
    source: Annotated[str, typer.Argument(metavar="FROM", help="Node that sends.")],
    target: Annotated[
        Optional[str],  # noqa: UP045 - typer reads the annotation at run time
        typer.Argument(metavar="TO", help="Node that receives; left out: FROM, by its lanes."),
    ] = None,
    seconds: Seconds = 5.0,
    size: Bytes = "1GiB",
    memory: Memory = "64MiB",
    socket: Socket = None,
    output: Output = Format.table,
) -> None:
    """Measure what an edge of the topology delivers now, beside the traffic that is there.

    Latency, rate, throughput and CPU under the names of `make bench`, the path taken, and how loaded both machines were
    before. A row that does not fit in the budget says why. Two processes of low priority do it, and whatever ends it
    (Ctrl-C too) takes them and their channels away.
    """
    target = source if target is None else target
    what = f"cannot measure {source} → {target}"
    size_bytes, memory_bytes = _size(what, "--bytes", size), _size(what, "--memory", memory)
    sys.stderr.write(_budget(f"{source} → {target}", seconds, size_bytes, memory_bytes) + "\n")
    with failing(what), connect(socket, deadline_s=limits.CONTROL_S) as client:
        answer = client.bench_edge(
            source, target, seconds=seconds, size_bytes=size_bytes, memory_bytes=memory_bytes
        )
    emit(answer, output, lambda: render(answer))


@bench_app.command("path")
def path(
    peer: Annotated[str, typer.Argument(metavar="PEER", help="Node at the other end.")],
    seconds: Seconds = 5.0,
    size: Bytes = "1GiB",
    memory: Memory = "64MiB",
    socket: Socket = None,
    output: Output = Format.table,
) -> None:
    """Measure the live rails to a node: each alone, all at once, and what the fabric makes of them.

    The first two are connections of their own beside the traffic that is there, the third is messages over channels of
    its own, as `bench edge` sends them. Whatever ends it takes them away.
    """
    from fabric.cli import path_tables

    what = f"cannot measure the rails to {peer}"
    size_bytes, memory_bytes = _size(what, "--bytes", size), _size(what, "--memory", memory)
    sys.stderr.write(_budget(f"the rails to {peer}", seconds, size_bytes, memory_bytes) + "\n")
    with failing(what), connect(socket, deadline_s=limits.CONTROL_S) as client:
        answer = client.bench_path(
            peer, seconds=seconds, size_bytes=size_bytes, memory_bytes=memory_bytes
        )
    emit(answer, output, lambda: path_tables.measured(answer))


@bench_app.command("codec")
def codec(
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="As `channel ls` has it.")],
    codecs: Annotated[
        str,
        typer.Option(
            "--codec", help="Names, such as compress,quantize; left out: all that are installed."
        ),
    ] = "",
    seconds: Annotated[
        float, typer.Option("--seconds", help="Wait for messages at most this long.", min=0.1)
    ] = 5.0,
    socket: Socket = None,
    output: Output = Format.table,
) -> None:
    """Measure codecs on copies of what a channel's senders send: rates, ratio, error, and what `when: pays` would do.

    Each sender's process copies its next messages (8, or 16 MiB) and measures beside its traffic; nothing that is sent
    changes.
    """
    from fabric.cli import transform

    names = [name for name in codecs.replace(",", " ").split() if name]
    deadline_s = seconds + limits.CODEC_BENCH_S + limits.CONTROL_CALL_S
    what = f"cannot measure codecs on {channel}"
    with failing(what), connect(socket, deadline_s=deadline_s) as client:
        rows = client.codec_bench(channel, names, seconds)
    emit(rows, output, lambda: transform.measured(rows))


def _size(what: str, option: str, text: str) -> int:
    try:
        return units.parse_bytes(text)
    except ValueError as error:
        raise Failure(what, f"{option}: {error}", "correct it and run the command again") from error


def _budget(measured: str, seconds: float, size: int, memory: int) -> str:
    """Return the budget in words."""
    return (
        f"measuring {measured}: at most {seconds:g} s, {units.format_bytes(size)} of payload and"
        f" {units.format_bytes(memory)} of memory a node; Ctrl-C takes everything away"
    )


def render(answer: Mapping[str, Any]) -> str:
    """Return figures, what was left out and why, path and load, as tables."""
    steps = answer.get("steps", ())
    left_out = [f"{row['name']}: {row['left_out']}" for row in steps if row.get("left_out")]
    used = answer.get("used", {})
    spent = f"took {cell(used.get('seconds'))} s and {units.format_bytes(used.get('bytes', 0))} of payload"
    measured = [row for row in steps if not row.get("left_out")]
    sections = [
        table(
            _STEPS,
            measured,
            "nothing was measured",
            f"{answer.get('source')} → {answer.get('target')}",
        ),
        "\n".join(["left out:", *(f"  {line}" for line in left_out)]) if left_out else "",
        table(_PATHS, answer.get("path", ()), "no path"),
        table(_LOADS, answer.get("load", ()), "", "before anything was sent:"),
        spent,
    ]
    return "\n\n".join(section for section in sections if section)


def _path(row: Mapping[str, Any]) -> str:
    taken, preferred = str(row.get("path") or ABSENT), row.get("path_preferred")
    if not preferred or preferred == taken:
        return taken
    return f"{taken} instead of {preferred}: {row.get('path_reason')}"
