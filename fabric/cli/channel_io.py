"""`fabricctl channel send|echo`: json lines into a channel, and what a channel carries as json lines.

Both attach to the node as any process does, so they use credit, and `echo` is a consumer: on a
queue it takes messages that other consumers then do not get.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Optional

import typer

import fabric
from fabric import errors, limits
from fabric.cli import places
from fabric.cli.failure import Failure, failing
from fabric.cli.listing import kind_app
from fabric.cli.options import Socket, connect

PORT_NAME = "fabricctl"

channel_app = kind_app("channel")
Deadline = Annotated[
    float,
    typer.Option("--deadline", min=0.001, max=limits.DEADLINE_S_MAX, help="Seconds per message."),
]


@channel_app.command("send")
def send(
    name: str,
    messages: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads the annotation at run time
        typer.Argument(metavar="[JSON]...", help="Messages; none: one per line of standard input."),
    ] = None,
    key: Annotated[
        Optional[str],  # noqa: UP045 - typer reads the annotation at run time
        typer.Option("--key", help="Key for routing and order.", show_default=False),
    ] = None,
    deadline: Deadline = limits.DEFAULT_DEADLINE_S,
    socket: Socket = None,
) -> None:
    """Send json objects as messages of the channel's type; on a request channel, print the replies.

    A tensor is a nested list, or {"shape": [2, 3], "dtype": "f32", "fill": 0}.
    """
    what = f"cannot send on channel '{name}'"
    with failing(what):
        channel = _describe(name, socket)
        lines = _lines(messages)
        transmit = _request if channel.get("pattern") == "request" else _send
        try:
            with _attach(socket) as port:
                count = transmit(port, channel, lines, key, deadline)
        except errors.TypeMismatchError as error:
            # The type is the channel's own, so it is the json that is wrong.
            fix = f"correct the json; its type: fabricctl channel show {name}"
            raise Failure(what, error.message, fix) from error
    sys.stderr.write(f"{count} sent\n")


def _lines(messages: Iterable[str] | None) -> Iterator[tuple[str, str]]:
    if messages:
        yield from ((f"argument {index}", text) for index, text in enumerate(messages, 1))
    else:
        yield from (
            (f"line {index}", text) for index, text in enumerate(sys.stdin, 1) if text.strip()
        )


def _send(
    port: Any,
    channel: dict[str, Any],
    lines: Iterable[tuple[str, str]],
    key: str | None,
    deadline: float,
) -> int:
    from fabric.cli.message_json import class_of, from_line

    cls = class_of(channel["schema"])
    count = 0
    with port.sender(channel["name"], cls) as sender:
        for place, line in lines:
            sender.send(from_line(cls, line, place), key=key, deadline=deadline)
            count += 1
        sender.flush(deadline)
    return count


def _request(
    port: Any,
    channel: dict[str, Any],
    lines: Iterable[tuple[str, str]],
    key: str | None,
    deadline: float,
) -> int:
    from fabric.cli.message_json import class_of, from_line, to_line

    if not channel.get("reply_schema"):
        raise _no_type(channel, "reply type")
    asks, replies = class_of(channel["schema"]), class_of(channel["reply_schema"])
    count = 0
    with port.requester(channel["name"], asks, replies) as requester:
        for place, line in lines:
            for reply in requester.stream(from_line(asks, line, place), key=key, deadline=deadline):
                _print(to_line(reply))
                reply.release()
            count += 1
    return count


@channel_app.command("echo")
def echo(
    name: str,
    count: Annotated[
        int, typer.Option("--count", "-n", min=0, help="Stop after so many; 0: never.")
    ] = 0,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Stop after so many seconds without one.")
    ] = 30.0,
    socket: Socket = None,
) -> None:
    """Print what arrives on a channel, one json object a line, tensors as dtype and shape.

    It is a consumer like any other: on a queue it takes messages from the others.
    """
    with failing(f"cannot receive from channel '{name}'"):
        channel = _describe(name, socket)
        with _attach(socket) as port:
            _echo(port, channel, count, timeout)


def _echo(port: Any, channel: dict[str, Any], count: int, timeout: float) -> None:
    from fabric.cli.message_json import class_of, to_line

    seen = 0
    cls = class_of(channel["schema"])
    # One message of credit: what is queued here when echo leaves would be lost to its other consumers.
    with port.receiver(channel["name"], cls, messages=1) as receiver:
        while not count or seen < count:
            message = receiver.receive(timeout=timeout)
            if message is None:
                break
            _print(to_line(message))
            message.ack()
            message.release()
            seen += 1
    sys.stderr.write(f"{seen} received\n")


def _describe(name: str, socket: str | None) -> dict[str, Any]:
    with connect(socket) as client:
        channel = client.show("channel", name)
    if not channel.get("schema"):
        raise _no_type(channel, "message type")
    return channel


def _no_type(channel: dict[str, Any], what: str) -> Failure:
    return Failure(
        f"the {what} of channel '{channel.get('name')}' is not known",
        "no process has opened it yet, so there is no declaration to build messages from",
        "start the module or process that uses the channel, then run this again",
    )


def _attach(socket: str | None) -> Any:
    return fabric.attach(PORT_NAME, socket=socket or places.default_socket())


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
