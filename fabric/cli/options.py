"""The options that several verbs share, and the connection that they lead to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from fabric import limits
from fabric.cli import places
from fabric.cli.failure import Failure
from fabric.cli.output import Format

if TYPE_CHECKING:
    from fabric.controlplane.api.client import ControlClient

Socket = Annotated[
    Optional[str],  # noqa: UP045 - typer reads the annotation at run time
    typer.Option(
        "--socket", envvar="FABRIC_SOCKET", help="Attach socket of the node.", show_default=False
    ),
]
Output = Annotated[Format, typer.Option("--output", "-o", help="table, wide, json or yaml.")]
Lines = Annotated[
    int,
    typer.Option("--lines", "-n", min=1, max=limits.LOG_LINES_MAX, help="How many, from the end."),
]


def connect(socket: str | None, deadline_s: float = limits.CONTROL_S) -> ControlClient:
    """Return a client of the node that `--socket`, FABRIC_SOCKET or the default names.

    Raises
    ------
    Failure
        The path is longer than a unix socket's may be.
    """
    from fabric.controlplane.api.client import ControlClient

    path = places.control_socket(socket or places.default_socket())
    size = len(os.fsencode(path))
    if size > limits.SOCKET_PATH_BYTES_MAX:
        raise Failure(
            "no node can be there",
            f"the socket path {path} has {size} bytes, the system allows {limits.SOCKET_PATH_BYTES_MAX}",
            "choose a shorter one with --socket or FABRIC_SOCKET",
        )
    return ControlClient(path, deadline_s=deadline_s)
