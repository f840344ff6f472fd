"""`fabricctl events`: what happened, on all nodes, once or as it happens."""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from fabric import units
from fabric.cli.failure import Failure, failing
from fabric.cli.options import Output, Socket, connect
from fabric.cli.output import Column, Format, emit, table

POLL_S = 0.5  # between two looks of --follow
_COLUMNS = (
    Column("at", lambda row: _moment(row["at"])),
    Column("node", "node"),
    Column("severity", "severity"),
    Column("event", "kind"),
    Column("channel", "channel"),
    Column("port", "port"),
    Column("reason", "reason"),
    Column("count", "count", True),
    Column("text", lambda row: _said(row)),
)

Drops = Annotated[
    bool, typer.Option("--drops", help="Only of messages that were dropped or failed.")
]
Reason = Annotated[str, typer.Option("--reason", help="Only of this reason, such as expired.")]
Channel = Annotated[str, typer.Option("--channel", help="Only of this channel.")]
Since = Annotated[str, typer.Option("--since", help="Only of the last while, such as 5m.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on and show what comes.")]


def events(
    drops: Drops = False,
    reason: Reason = "",
    channel: Channel = "",
    since: Since = "",
    follow: Follow = False,
    socket: Socket = None,
    output: Output = Format.table,
) -> None:
    """Show events of all nodes, oldest first: what was dropped and why, who was lost, what is held too long."""
    query: dict[str, Any] = {
        "drops": drops,
        "reason": reason,
        "channel": channel,
        "since": _from(since),
    }
    with failing("cannot show the events"), connect(socket) as client:
        answer = client.events(**query)
        if not follow:
            emit(answer["events"], output, lambda: _all(answer))
            return
        while True:
            for row in answer["events"]:
                _one(row, output)
            time.sleep(POLL_S)
            answer = client.events(**query, after=answer["next"])


def _from(since: str) -> float:
    """Return the moment that a duration before now names, in seconds since 1970; 0 without one."""
    if not since:
        return 0.0
    try:
        return datetime.datetime.now(datetime.UTC).timestamp() - units.parse_seconds(since)
    except ValueError as error:
        raise Failure(
            "cannot show the events", f"--since: {error}", "write for example --since 5m"
        ) from error


def _all(answer: Mapping[str, Any]) -> str:
    lines = [table(_COLUMNS, answer["events"], "nothing happened that the log still has")]
    lost = {node: count for node, count in (answer.get("lost") or {}).items() if count}
    lines += [f"node {node}: {count} older events were pushed out" for node, count in lost.items()]
    lines += [f"node {node} did not answer" for node in answer.get("silent") or ()]
    return "\n".join(lines)


def _one(row: Mapping[str, Any], output: Format) -> None:
    if output is Format.json:
        line = json.dumps(row, ensure_ascii=False)
    else:
        words = [_moment(row["at"]), row["node"], row["severity"], row["kind"]]
        words += [f"{key}={row[key]}" for key in ("channel", "port", "reason", "count") if row[key]]
        line = "  ".join([*words, _said(row)])
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _said(row: Mapping[str, Any]) -> str:
    """Return an event's text; where it has none, what else is known of it."""
    return row["text"] or ", ".join(f"{key} {item}" for key, item in row["more"].items())


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
