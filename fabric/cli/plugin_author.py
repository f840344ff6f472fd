"""`fabricctl plugin new|test`: write a plugin that works, and check one, without a node."""

from __future__ import annotations

import keyword
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fabric.cli import scaffolds
from fabric.cli.failure import Failure
from fabric.cli.plugin_life import plugin_app as plugin_app


class Kind(StrEnum):
    """What `plugin new` writes."""

    MESSAGE = "message"
    ROUTE = "route"
    TRANSFORM = "transform"
    CODEC = "codec"
    JOIN = "join"
    MODULE = "module"


@plugin_app.command("new")
def plugin_new(
    kind: Annotated[Kind, typer.Argument(help="What it is to be.")],
    name: Annotated[str, typer.Argument(help="A Python identifier: its file and its name.")],
    folder: Annotated[Path, typer.Option("--in", help="Where to.")] = Path("."),
) -> None:
    """Write NAME.py, a plugin that works, and test_NAME.py; nothing is overwritten."""
    what = f"cannot write plugin '{name}'"
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise Failure(what, f"'{name}' is no name for a Python module", "use letters, digits and _")
    plugin, test = folder / f"{name}.py", folder / f"test_{name}.py"
    for path, text in zip((plugin, test), scaffolds.texts(kind.value, name), strict=True):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError as error:
            raise Failure(what, f"{path} exists", "choose another name or folder") from error
        except OSError as error:
            raise Failure(what, f"{path}: {error.strerror}", "check the folder") from error
    following = scaffolds.NEXT[kind.value].format(name=name, file=plugin)
    sys.stdout.write(f"wrote {plugin} and {test}\nnext: pytest {test}\n      {following}\n")


@plugin_app.command("test")
def plugin_test(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A Python file, an importable module, or an installed plugin's name.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list of rows.")] = False,
) -> None:
    """Run the conformance kit on a plugin, in processes of its own; exit status 1 when something is broken.

    Round trips (random, empty, not contiguous, huge), expansion bound, purity, budgets, exceptions, kill -9.
    """
    argv = [sys.executable, "-m", "fabric.testing.plugin_kit", target]
    status = subprocess.run(argv + ["--json"] * as_json, check=False).returncode
    raise typer.Exit(status)
