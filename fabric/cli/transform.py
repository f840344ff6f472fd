"""`fabricctl transform`: what the codec of a channel decided of late, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from fabric import units
from fabric.cli.failure import failing
from fabric.cli.options import Output, Socket, connect
from fabric.cli.output import Column, Format, emit, table

transform_app = typer.Typer(
    help="Codecs of channels: what they decided, and why.", no_args_is_help=True
)
SHOWN = 12
Row = Mapping[str, Any]


def _rate(key: str) -> Any:
    from fabric.cli.path_tables import rate

    return lambda row: rate(row.get(key))


def _bytes(key: str) -> Any:
    return lambda row: units.format_bytes(int(row[key])) if row.get(key) else None


def _seconds(key: str) -> Any:
    return lambda row: units.format_seconds(row[key]) if row.get(key) else None


def _ratio(row: Row) -> str | None:
    return f"{row['ratio']:.3f}" if row.get("ratio") else None


def _terms() -> tuple[Column, ...]:
    return (
        Column("size", _bytes("size"), True),
        Column("ahead", _bytes("queued"), True),
        Column("path", _rate("path_bytes_per_s"), True),
        Column("encode", _rate("encode_bytes_per_s"), True),
        Column("decode", _rate("decode_bytes_per_s"), True),
        Column("ratio", _ratio, True),
        Column("raw takes", _seconds("raw_s"), True),
        Column("encoded", _seconds("coded_s"), True),
    )


@transform_app.command("why")
def why(
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="As `channel ls` has it.")],
    socket: Socket = None,
    output: Output = Format.table,
) -> None:
    """Say for each sender of a channel what its codec decided of late, with every term of the decision."""
    with failing(f"cannot explain the codec of {channel}"), connect(socket) as client:
        rows = client.codec_why(channel)
    emit(rows, output, lambda: shown(channel, rows))


def shown(channel: str, rows: Sequence[Row]) -> str:
    """Return what was decided, by sender."""
    if not rows:
        return f"no sender of {channel} has a codec; name one under transforms in fabric.yaml"
    return "\n\n".join(_sender(row) for row in rows)


def _sender(row: Row) -> str:
    counts = row.get("counts", {})
    coded, raw = int(counts.get("coded", 0)), int(counts.get("raw", 0))
    wire, total = int(counts.get("wire_bytes", 0)), int(counts.get("raw_bytes", 0))
    head = f"{row['sender']} on {row['node']}: {row['codec']}, when: {row['when']}, where: {row['where']}"
    if row.get("is_idle"):
        return f"{head}\nevery receiver is on this node: nothing is encoded"
    share = f"; {units.format_bytes(wire)} sent for {units.format_bytes(total)}" if total else ""
    said = f"{coded} encoded, {raw} raw, {int(counts.get('errors', 0))} errors{share}"
    columns = (Column("chosen", "chosen"), *_terms(), Column("because", "reason"))
    decisions = list(row.get("decisions", ()))[-SHOWN:]
    return f"{head}\n{said}\n" + table(columns, decisions, "nothing was sent yet")


def measured(rows: Sequence[Row]) -> str:
    """Return what codecs do with a channel's messages, and what `pays` would decide."""
    figures = (
        Column("sender", "sender"),
        Column("codec", "codec"),
        Column("lossless", "lossless"),
        Column("messages", "messages", True),
        Column("encode", _rate("encode_bytes_per_s"), True),
        Column("decode", _rate("decode_bytes_per_s"), True),
        Column("ratio", _ratio, True),
        Column("error", lambda row: f"{row['error']:.2g}" if row.get("error") else None, True),
        Column("failed", "failed", may_go=True),
    )
    choices = [
        {**choice, "sender": row["sender"], "codec": row["codec"]}
        for row in rows
        for choice in row.get("pays", ())
    ]
    columns = (
        Column("sender", "sender"),
        Column("codec", "codec"),
        Column("to node", "node", True),
        Column("would be", lambda row: row["codec"] if row.get("coded") else "raw"),
        *_terms(),
        Column("because", "reason"),
    )
    no_path = "no path to another node was measured: when: pays would send raw"
    return table(figures, rows, "nothing was measured") + "\n\n" + table(columns, choices, no_path)
