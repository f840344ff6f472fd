"""`fabricctl plan`, `apply`, `diff`, `rollback`, `history`: from one generation to another."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer

from fabric import limits
from fabric.cli.failure import failing
from fabric.cli.options import Output, Socket, connect
from fabric.cli.output import Column, Format, emit, table
from fabric.cli.spec import File, problem_line, read_spec, refuse_problems

EXIT_CHANGES = 2  # of `plan` and `diff`: something differs

_CHANGES = (
    Column("kind", "kind"),
    Column("name", "name"),
    Column("action", "action"),
    Column("detail", "detail"),
)
_HISTORY = (
    Column("generation", "generation", True),
    Column("outcome", "outcome"),
    Column("when", "when"),
    Column("by", "by"),
    Column("source", "source"),
    Column("note", "note"),
    Column("why", "why"),
)

Generation = Annotated[
    int | None, typer.Argument(metavar="[GEN]", help="A generation of `fabricctl history`.", min=1)
]


def plan(file: File, socket: Socket = None, output: Output = Format.table) -> None:
    """Show what apply would change, and change nothing. Exit status 0: nothing, 2: something."""
    text, search, problems = read_spec(file, f"cannot plan {file}")
    refuse_problems(file, problems)
    with failing(f"cannot plan {file}"), connect(socket, deadline_s=limits.APPLY_S) as client:
        answer = client.plan(text, source=file, search=search)
    _warn(answer)
    changes = [c for c in answer.get("changes", ()) if c.get("action") != "unchanged"]
    title = f"{file} against generation {answer.get('generation', 0)}"
    emit(answer, output, lambda: table(_CHANGES, changes, "nothing would change", title))
    if changes:
        raise typer.Exit(EXIT_CHANGES)


def apply(
    file: File,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would change, as plan does.")
    ] = False,
    socket: Socket = None,
    output: Output = Format.table,
) -> None:
    """Bring a fabric.yaml into force as the next generation, everywhere or nowhere.

    Every node is asked first; what fails on the way is rolled back to the last good generation, which is named. What
    the file no longer names is removed, when an apply had brought it.
    """
    if dry_run:
        plan(file, socket, output)
        return
    text, search, problems = read_spec(file, f"cannot apply {file}")
    refuse_problems(file, problems)
    with (
        failing(f"cannot apply {file}"),
        _left_to_the_node(),
        connect(socket, deadline_s=limits.APPLY_S) as client,
    ):
        answer = client.apply(text, source=file, search=search)
    _warn(answer)
    _show(answer, output)


def diff(
    old: Annotated[
        str | None,
        typer.Argument(metavar="[GEN]", help="A generation; default: the one before the present."),
    ] = None,
    new: Annotated[
        str | None,
        typer.Argument(
            metavar="[GEN|FILE]", help="A generation or a fabric.yaml; default: the present."
        ),
    ] = None,
    socket: Socket = None,
    output: Output = Format.table,
) -> None:
    """Compare two generations, or a generation with a file. Exit status 0: the same, 2: they differ."""
    if old is not None and new is None and not old.isdigit():
        old, new = None, old
    with failing("cannot compare"), connect(socket) as client:
        options: dict[str, Any] = {}
        if new is not None and not new.isdigit():
            text, search, _ = read_spec(new, f"cannot compare with {new}")
            options = {"text": text, "source": new, "search": search}
        answer = client.diff(
            _number(old), _number(new) if new and new.isdigit() else None, **options
        )
    changes = [c for c in answer.get("changes", ()) if c.get("action") != "unchanged"]
    old_number, new_number = answer.get("from") or 0, answer.get("to")
    title = f"generation {old_number} → {new if new_number is None else new_number}"
    emit(answer, output, lambda: table(_CHANGES, changes, "no difference", title))
    if changes:
        raise typer.Exit(EXIT_CHANGES)


def rollback(
    generation: Generation = None, socket: Socket = None, output: Output = Format.table
) -> None:
    """Apply an earlier generation as a new one; the last good one before the present when none is named."""
    with (
        failing("cannot roll back"),
        _left_to_the_node(),
        connect(socket, deadline_s=limits.APPLY_S) as client,
    ):
        answer = client.rollback(generation)
    _show(answer, output)


def history(socket: Socket = None, output: Output = Format.table) -> None:
    """List the generations, newest first: what became of each, when, by whom, and why it was rolled back."""
    with failing("cannot read the history"), connect(socket) as client:
        answer = client.history()
    rows = [{**row, "when": _when(row.get("when_s"))} for row in answer.get("rows", ())]
    live = ", ".join(str(int(g)) for g in answer.get("live", ())) or "none"
    title = f"generation {answer.get('generation', 0)} is in force, live: {live}"
    emit(answer, output, lambda: table(_HISTORY, rows, "nothing was applied yet", title))


@contextmanager
def _left_to_the_node() -> Iterator[None]:
    """Say, on an interrupt, that what was asked for goes on."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(
            "\nnot waited for: the node finishes it or rolls it back; see fabricctl history\n"
        )
        raise


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit():
        raise typer.BadParameter(f"{text!r} is no generation; see fabricctl history")
    return int(text)


def _when(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S") if seconds else "-"


def _show(answer: Mapping[str, Any], output: Format) -> None:
    title = f"generation {answer.get('generation', '-')}"
    emit(
        answer,
        output,
        lambda: table(_CHANGES, answer.get("changes", ()), "nothing to change", title),
    )


def _warn(answer: Mapping[str, Any]) -> None:
    for problem in answer.get("problems", ()):
        sys.stderr.write(f"warning: {problem_line(problem)}\n")
