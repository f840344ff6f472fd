"""Which channels and modules make sense: pattern, delivery and overflow together, as in docs/SEMANTICS.md.

Pure: a spec in, problems out, in the order of the file. Names of routes, transforms and types are
not known here; the daemon checks them against what is loaded. Cycles of credit: `fabric.config.cycles`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from fabric import limits
from fabric.config import routes
from fabric.config.reader import clip, did_you_mean
from fabric.config.spec import (
    CLASSES,
    DELIVERIES,
    OVERFLOWS,
    PATTERNS,
    ChannelSpec,
    FabricSpec,
    ModuleSpec,
)

ORDERED_FLOW = ("stream", "queue")  # patterns whose messages may take any number of hops
#: patterns with answers may only wait or refuse: a lost answer would look like a lost request
REPLYING = ("request", "scatter")
GATHER_FIX = (
    "gather is the answering half of scatter, not a pattern to declare: use pattern: scatter"
)


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
        return line(self.to_wire())

    def to_wire(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


def line(problem: Mapping[str, Any]) -> str:
    """Return a problem, as it crosses to other processes, in one line: its place, what is wrong, what to do."""
    place = f"{problem['place']}: " if problem.get("place") else ""
    what = str(problem["what"])
    return f"{place}{problem['where']}: {what}{'' if what.endswith('?') else '.'} {problem['fix']}"


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
    unknown = list(_unknown_words(channel, where))
    if unknown:
        yield from unknown
        return
    yield from _check_delivery(channel, f"{where}.delivery")
    yield from _check_overflow(channel, f"{where}.overflow")
    yield from _check_reply(channel, f"{where}.reply")
    yield from _check_transforms(channel, f"{where}.transforms")
    for what, fix in routes.problems(channel.route, channel.pattern) if channel.route else ():
        yield Problem(where=f"{where}.route", what=what, fix=fix)
    if channel.deadline_s is not None and not 0 < channel.deadline_s <= limits.DEADLINE_S_MAX:
        yield Problem(
            where=f"{where}.deadline",
            what=f"a deadline of {channel.deadline_s!r} s",
            fix=f"Use more than 0 and at most {limits.DEADLINE_S_MAX:g} seconds",
        )
    if not 1 <= channel.weight <= limits.CHANNEL_WEIGHT_MAX:
        yield Problem(
            where=f"{where}.weight",
            what=f"a weight of {channel.weight!r}",
            fix=f"Use 1 to {limits.CHANNEL_WEIGHT_MAX}",
        )


def _unknown_words(channel: ChannelSpec, where: str) -> Iterator[Problem]:
    for key, word, known in (
        ("pattern", channel.pattern, PATTERNS),
        ("delivery", channel.delivery, DELIVERIES),
        ("overflow", channel.overflow, OVERFLOWS),
        ("class", channel.klass, CLASSES),
    ):
        if word not in known:
            hint = did_you_mean(str(word), known)
            fix = f"Use one of {', '.join(known)}"
            yield Problem(
                where=f"{where}.{key}",
                what=f"there is no {key} {clip(str(word))!r}{hint.rstrip('?')}",
                fix=GATHER_FIX if (key, word) == ("pattern", "gather") else fix,
            )


def _check_delivery(channel: ChannelSpec, where: str) -> Iterator[Problem]:
    if channel.delivery != "at_least_once":
        return
    if channel.pattern == "broadcast":
        yield Problem(
            where=where,
            what="pattern broadcast with delivery at_least_once: a broadcast is acknowledged by nobody",
            fix="Use delivery: at_most_once, or pattern: queue or stream",
        )
    if channel.pattern == "request" and not channel.idempotent:
        yield Problem(
            where=where,
            what="pattern request with delivery at_least_once: one that is repeated after a death may act twice",
            fix="Say 'idempotent: true' if repeating is harmless, or use delivery: at_most_once",
        )


def _check_overflow(channel: ChannelSpec, where: str) -> Iterator[Problem]:
    if not channel.overflow.startswith("drop_"):
        return
    if channel.delivery == "at_least_once":
        yield Problem(
            where=where,
            what=f"overflow {channel.overflow} with delivery at_least_once: what is to arrive may not be thrown away",
            fix="Use overflow: block or reject, or delivery: at_most_once",
        )
    elif channel.pattern in REPLYING:
        yield Problem(
            where=where,
            what=f"overflow {channel.overflow} with pattern {channel.pattern}: a dropped one would never be answered",
            fix="Use overflow: block or reject",
        )


def _check_reply(channel: ChannelSpec, where: str) -> Iterator[Problem]:
    if channel.reply is not None and channel.pattern not in REPLYING:
        yield Problem(
            where=where,
            what=f"pattern {channel.pattern} has no replies",
            fix=f"Remove 'reply', or use pattern: {' or '.join(REPLYING)}",
        )


def _check_transforms(channel: ChannelSpec, where: str) -> Iterator[Problem]:
    if channel.transforms and channel.pattern not in ORDERED_FLOW:
        yield Problem(
            where=where,
            what=f"transforms run on {' and '.join(ORDERED_FLOW)} channels, and this one is {channel.pattern}",
            fix="Remove the transforms, or carry the messages over a stream or queue",
        )
    for index, name in enumerate(channel.transforms):
        if name in channel.transforms[:index]:
            yield Problem(
                where=f"{where}[{index}]",
                what=f"the transform '{clip(name)}' stands twice in one chain",
                fix="Remove one of the two",
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
        hint = did_you_mean(channel, spec.channels)
        if channel not in spec.channels:
            yield Problem(
                where=f"{where}.channels.{field}",
                what=f"the channel '{clip(channel)}' is not declared in this file{hint}",
                fix="Declare it under 'channels', unless a process declares it",
                severity="warning",
            )
