"""`fabricctl audit`: is every accepted message delivered, dropped, failed or in flight, exactly once?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import typer

from fabric.cli.failure import EXIT_FAILURE, EXIT_INDETERMINATE, failing
from fabric.cli.options import Output, Socket, connect
from fabric.cli.output import Column, Format, cell, emit, table


def _with_reasons(end: str) -> Callable[[Mapping[str, Any]], str]:
    """Return a cell such as ``3 (expired 2, closed 1)``."""

    def count(row: Mapping[str, Any]) -> str:
        reasons = row.get(f"{end}_by_reason") or {}
        words = ", ".join(f"{reason} {number}" for reason, number in sorted(reasons.items()))
        return f"{cell(row.get(end))} ({words})" if words else cell(row.get(end))

    return count


_CHANNELS = (
    Column("channel", "name"),
    Column("accepted", "accepted", True),
    Column("delivered", "delivered", True),
    Column("dropped", _with_reasons("dropped"), True),
    Column("failed", _with_reasons("failed"), True),
    Column("in flight", "in_flight", True),
)
EXITS = {"balanced": 0, "unbalanced": EXIT_FAILURE}


def audit(socket: Socket = None, output: Output = Format.table) -> None:
    """Compare what senders' ledgers say with what is found in flight, at one cut, while traffic runs.

    Exit status: 0 balanced, 1 a difference, 3 no verdict (something could not be read or frozen).
    """
    with failing("there is no verdict", EXIT_INDETERMINATE), connect(socket) as client:
        answer = client.audit()
    emit(answer, output, lambda: render(answer))
    status = EXITS.get(str(answer.get("verdict")), EXIT_INDETERMINATE)
    if status:
        raise typer.Exit(status)


def render(answer: Mapping[str, Any]) -> str:
    """Return the verdict, the counts and every difference."""
    # A number instead of a name: the channel is gone, and says something only if it ever carried a message.
    rows = [r for r in answer.get("channels", ()) if r["accepted"] or not r["name"].startswith("#")]
    lines = [table(_CHANNELS, rows, "no channel has carried a message"), ""]
    lines += [
        f"difference: {row.get('where')}: {row.get('what')}"
        for row in answer.get("differences", ())
    ]
    reason = f" ({answer['reason']})" if answer.get("reason") else ""
    took = (
        f" in {cell(answer.get('duration_ms'))} ms" if answer.get("duration_ms") is not None else ""
    )
    lines.append(f"audit: {answer.get('verdict', 'indeterminate')}{reason}{took}")
    return "\n".join(lines)
