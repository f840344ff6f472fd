"""Which channels and modules make sense: pattern, delivery and overflow together, as in the design's table.

Pure: a spec in, problems out, in the order of the file. Names of routes, transforms and types are
not known here; the daemon checks them against what is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from fabric.config.reader import did_you_mean
from fabric.config.spec import ChannelSpec, FabricSpec, ModuleSpec

BUILT_PATTERNS = ("stream", "queue", "request")
BUILT_OVERFLOWS = ("block",)
ORDERED_FLOW = ("stream", "queue")  # patterns whose messages may take any number of hops
REPLYING = (
    "request",
    "scatter",
    "gather",
)  # may only wait or refuse: a lost reply would look like a lost request


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One refusal (`severity` "error") or remark ("warning") about a spec.

    `where` is the key's path, `place` its file, line and column, `fix` the one thing to do.
    """

    where: str
    what: str
    fix: str
    place: str = ""
    severity: str = "error"

    def __str__(self) -> str:
        """Return the line that is printed."""
        return f"{self.place or self.where}: {self.where}: {self.what}. {self.fix}"

    def to_wire(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


def validate(spec: FabricSpec) -> list[Problem]:
    """Return what is wrong with a spec, in the order of the file; an empty list means it can be applied.

    Returns
    -------
    list of Problem
        Problems of severity "warning" do not prevent an apply.
    """
    problems = list(_channel_problems(spec))
    problems += _module_problems(spec)
    return [
        msgspec.structs.replace(problem, place=spec.place(problem.where)) for problem in problems
    ]


def _channel_problems(spec: FabricSpec) -> Iterator[Problem]:
    for channel in spec.channels.values():
        yield from check_channel(channel)


def check_channel(channel: ChannelSpec) -> Iterator[Problem]:
    """Yield what is wrong with one channel (also used for a channel declared by a process)."""
    where = f"channels.{channel.name}"
    yield from _check_pattern(channel, where)
    yield from _check_overflow(channel, where)
    if channel.reply is not None and channel.pattern != "request":
        yield Problem(
            where=f"{where}.reply",
            what=f"a {channel.pattern} channel has no replies",
            fix="Remove 'reply', or use pattern: request",
        )
    if channel.transforms and channel.pattern not in ORDERED_FLOW:
        yield Problem(
            where=f"{where}.transforms",
            what=f"transforms run on {' and '.join(ORDERED_FLOW)} channels, and this one is {channel.pattern}",
            fix="Remove the transforms, or carry the messages over a stream or queue",
        )
    for index, name in enumerate(channel.transforms):
        if name in channel.transforms[:index]:
            yield Problem(
                where=f"{where}.transforms[{index}]",
                what=f"the transform '{name}' stands twice in one chain",
                fix="Remove one of the two",
            )


def _check_pattern(channel: ChannelSpec, where: str) -> Iterator[Problem]:
    if channel.pattern not in BUILT_PATTERNS:
        yield Problem(
            where=f"{where}.pattern",
            what=f"pattern {channel.pattern} is designed but not implemented in this version",
            fix=f"Use one of {', '.join(BUILT_PATTERNS)}",
        )
    if channel.delivery != "at_least_once":
        return
    if channel.pattern == "broadcast":
        yield Problem(
            where=f"{where}.delivery",
            what="broadcast delivers at_most_once only",
            fix="Use delivery: at_most_once, or a queue or stream",
        )
    if channel.pattern == "request" and not channel.idempotent:
        yield Problem(
            where=f"{where}.delivery",
            what="a request repeated after its responder died may act twice",
            fix="Say 'idempotent: true' if repeating is harmless, or use delivery: at_most_once",
        )


def _check_overflow(channel: ChannelSpec, where: str) -> Iterator[Problem]:
    where = f"{where}.overflow"
    if channel.overflow.startswith("drop_") and channel.delivery == "at_least_once":
        yield Problem(
            where=where,
            what=f"{channel.overflow} throws messages away, which at_least_once forbids",
            fix="Use overflow: block, or delivery: at_most_once",
        )
    elif channel.overflow.startswith("drop_") and channel.pattern in REPLYING:
        yield Problem(
            where=where,
            what=f"a {channel.pattern} channel may only block or reject",
            fix="Use overflow: block",
        )
    elif channel.overflow not in BUILT_OVERFLOWS:
        yield Problem(
            where=where,
            what=f"overflow {channel.overflow} is designed but not implemented in this version",
            fix=f"Use overflow: {BUILT_OVERFLOWS[0]}",
        )


def _module_problems(spec: FabricSpec) -> Iterator[Problem]:
    for module in spec.modules.values():
        yield from _check_module(module, spec)


def _check_module(module: ModuleSpec, spec: FabricSpec) -> Iterator[Problem]:
    where = f"modules.{module.name}"
    backoff_s: tuple[float, ...] = module.restart.backoff_s
    if len(backoff_s) != 2 or backoff_s[0] > backoff_s[1]:
        yield Problem(
            where=f"{where}.restart.backoff_s",
            what="the back-off is two numbers of seconds, the first not above the longest",
            fix="Write for example backoff_s: [0.2, 5]",
        )
    for field, channel in module.channels.items():
        if channel not in spec.channels:
            yield Problem(
                where=f"{where}.channels.{field}",
                what=f"the channel '{channel}' is not declared in this file{did_you_mean(channel, spec.channels)}",
                fix="Declare it under 'channels', unless a process declares it",
                severity="warning",
            )
