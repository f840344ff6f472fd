"""One call of `Control` as a reply message, or its error as a gRPC status."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.message import Message

from fabric import errors
from fabric.controlplane.api import convert, status

Answer = Mapping[str, Any]


async def answer(
    context: Any, reply: type[Message], call: Callable[[], Awaitable[Answer]]
) -> Message:
    """Return what `call` answers as a message; a failure ends the call with its status."""
    try:
        return convert.to_message(await call(), reply())
    except Exception as error:
        await _abort(context, error)
        raise  # abort has raised already; this line is for the reader and the type checker


async def _abort(context: Any, error: Exception) -> None:
    known = (
        error
        if isinstance(error, errors.FabricError)
        else errors.InternalError(f"{type(error).__name__}: {error}")
    )
    text = str(known)[: status.DETAIL_CHARACTERS_MAX]
    await context.abort(status.status_of(known), text, (status.to_trailer(known),))
