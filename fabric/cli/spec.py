"""`fabricctl validate`: a fabric.yaml, checked here first, then by the node; the reading of one for other verbs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fabric import errors
from fabric.cli.failure import Failure, failing
from fabric.cli.options import Output, Socket, connect
from fabric.cli.output import Format, emit

if TYPE_CHECKING:
    from fabric.config import FabricSpec

File = Annotated[str, typer.Argument(metavar="FILE", help="A fabric.yaml.")]


def validate(file: File, socket: Socket = None, output: Output = Format.table) -> None:
    """Check a fabric.yaml: its form and rules here, its names against the node if one runs."""
    text, search, problems = read_spec(file, f"{file} is not valid")
    checked_by, missing = None, [p for p in problems if p["where"].startswith("plugins[")]
    try:
        with connect(socket) as client:
            problems = client.validate(text, source=file, search=search)["problems"] + missing
            checked_by = client.path
    except errors.BrokenError as error:
        if not error.context.get("unreachable"):
            raise
        problems += _look_at_modules(file)
    refuse_problems(file, problems)
    verdict = {"file": file, "valid": True, "checked_by": checked_by, "problems": problems}
    emit(verdict, output, lambda: _valid(file, checked_by, problems))


def _look_at_modules(file: str) -> list[dict[str, Any]]:
    """Judge a file by the classes of its modules, as far as they can be imported here."""
    from fabric import config
    from fabric.config.cycles import check_cycles
    from fabric.config.ends import check_ends, ends_from
    from fabric.worker import describe

    spec = config.load(file)
    classes = dict.fromkeys(module.class_path for module in spec.modules.values())
    known = ends_from(describe.run(list(classes)))
    found = [*check_ends(spec, known, spec.channels), *check_cycles(spec, known, spec.channels)]
    rows = [{**problem.to_wire(), "place": spec.place(problem.where)} for problem in found]
    # The machine that will run the module may have what this one lacks.
    for row in rows:
        if row["where"].endswith(".class"):
            row["severity"] = "warning"
    return rows


def _valid(file: str, checked_by: str | None, problems: Sequence[Mapping[str, Any]]) -> str:
    against = (
        f"checked against the node on {checked_by}"
        if checked_by
        else "no node runs, so names of routes, transforms and nodes were not checked"
    )
    return "\n".join(
        [
            *(f"warning: {problem_line(problem)}" for problem in problems),
            f"{file} is valid ({against})",
        ]
    )


def read_spec(file: str, what: str) -> tuple[str, list[str], list[dict[str, Any]]]:
    """Return a file's text, where its relative names are looked for, and what the rules say of it."""
    from fabric import config

    with failing(what):
        spec = config.load(file)
        problems = [problem.to_wire() for problem in config.validate(spec)]
    problems += _missing_plugins(spec)
    search = [str(Path(file).resolve().parent), os.getcwd()]
    return Path(file).read_text(encoding="utf-8"), search, problems


def _missing_plugins(spec: FabricSpec) -> list[dict[str, Any]]:
    """Return a problem for each plugin whose file is not there; the daemon reads them on this machine, too."""
    return [
        {
            "where": f"plugins[{index}]",
            "what": f"there is no file {plugin.path!r} beside {spec.source}, nor in the working directory",
            "fix": "Correct the path",
            "place": spec.place(f"plugins[{index}]"),
            "severity": "error",
        }
        for index, plugin in enumerate(spec.plugins)
        if not os.path.isfile(plugin.path)
    ]


def refuse_problems(file: str, problems: Sequence[Mapping[str, Any]]) -> None:
    """Fail with every problem that is no warning."""
    refused = [problem for problem in problems if problem.get("severity") != "warning"]
    if refused:
        why = "\n".join(problem_line(problem) for problem in refused)
        raise Failure(
            f"{file} is not valid", why, "correct what is named above and run the command again"
        )


def problem_line(problem: Mapping[str, Any]) -> str:
    """Return one problem in one line, its place first."""
    from fabric.config.rules import line

    return line(problem)
