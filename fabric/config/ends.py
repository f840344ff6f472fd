"""What a module's class says of its channels, and whether a file fits it: directions, patterns, types. Pure.

`describe` answers (`fabric.worker.describe`) come in as `ModuleEnds`; nothing here imports a module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from fabric.config.reader import clip, did_you_mean
from fabric.config.rules import REPLYING, Problem
from fabric.config.spec import ChannelSpec, FabricSpec, ModuleSpec

SENDING = ("out", "call")
RECEIVING = ("in", "serve")


class End(msgspec.Struct, frozen=True):
    """One channel field of a module class: `kind` is in, out, serve or call; `types` are message type names."""

    name: str
    kind: str
    types: tuple[str, ...] = ()


class ModuleEnds(msgspec.Struct, frozen=True):
    """The channel fields of a class, or why they are not known (`error`).

    `is_refused`: the class was found wanting, rather than not looked at in time. `file` and `digest` name the
    source that was read.
    """

    ends: tuple[End, ...] = ()
    error: str = ""
    is_refused: bool = False
    file: str = ""
    digest: str = ""


def check_ends(
    spec: FabricSpec, known: Mapping[str, ModuleEnds], channels: Mapping[str, ChannelSpec]
) -> Iterator[Problem]:
    """Yield where a file and the classes of its modules disagree.

    Parameters
    ----------
    spec : FabricSpec
    known : mapping
        Class path → what it says of itself; a class that is missing was not described, and is not judged.
    channels : mapping
        Every channel that will be there: the file's and those declared already.
    """
    for module in spec.modules.values():
        ends = known.get(module.class_path)
        if ends is None:
            continue
        if ends.error:
            yield _undescribed(module, ends)
            continue
        yield from _check_mapping(module, ends)
        for end in ends.ends:
            yield from _check_end(module, end, channels)


def _undescribed(module: ModuleSpec, ends: ModuleEnds) -> Problem:
    fix = (
        "Correct the class"
        if ends.is_refused
        else "Its channels were not checked for types and cycles"
    )
    return Problem(
        where=f"modules.{module.name}.class",
        what=f"the class '{clip(module.class_path, 200)}' cannot be used: {clip(ends.error, 500)}",
        fix=fix,
        severity="error" if ends.is_refused else "warning",
    )


def _check_mapping(module: ModuleSpec, ends: ModuleEnds) -> Iterator[Problem]:
    fields = [end.name for end in ends.ends]
    for field in module.channels:
        if field not in fields:
            listing = f"; its fields: {', '.join(fields) or 'none'}"
            yield Problem(
                where=f"modules.{module.name}.channels.{field}",
                what=f"the class has no channel field '{clip(field)}'{did_you_mean(field, fields) or listing}",
                fix="Name a field of the class, or remove the line",
            )


def _check_end(
    module: ModuleSpec, end: End, channels: Mapping[str, ChannelSpec]
) -> Iterator[Problem]:
    name = module.channels.get(end.name, end.name)
    where = f"modules.{module.name}.channels.{end.name}"
    channel = channels.get(name)
    if channel is None:
        if (
            end.name not in module.channels
        ):  # one that is mapped was remarked on with the file's own rules
            yield Problem(
                where=where,
                what=f"the field '{end.name}' uses channel '{name}', which is not declared",
                fix="Declare it under 'channels', or map the field to another, unless a process declares it",
                severity="warning",
            )
        return
    replies = end.kind in ("serve", "call")
    if replies != (channel.pattern == "request") and not (replies and channel.pattern in REPLYING):
        yield Problem(
            where=where,
            what=f"the field '{end.name}' is {_article(end)}, and channel '{name}' has pattern {channel.pattern}",
            fix="Serve and Call fields need pattern: request; In and Out fields any other",
        )
        return
    yield from _check_type(where, end, channel)


def _check_type(where: str, end: End, channel: ChannelSpec) -> Iterator[Problem]:
    is_changed = bool(channel.transforms) and end.kind in RECEIVING
    if end.types and channel.type and not is_changed and end.types[0] != channel.type:
        yield Problem(
            where=where,
            what=f"the field '{end.name}' is of type {end.types[0]}, channel '{channel.name}' carries {channel.type}",
            fix="Use the same message type on both sides",
        )


def _article(end: End) -> str:
    return f"{'an' if end.kind[0] in 'aeiou' else 'a'} {end.kind.capitalize()}"


def ends_from(plain: Any) -> dict[str, ModuleEnds]:
    """Rebuild descriptions from plain values; raises `msgspec.ValidationError` for anything else."""
    return msgspec.convert(plain, dict[str, ModuleEnds])
