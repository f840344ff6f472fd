"""Compare declarations of one channel: the same again is fine, anything else is refused by name. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from fabric.errors import ConfigError, FabricError, TypeMismatchError
from fabric.registry.records import ChannelRecord

_COMPARED = ("pattern", "delivery", "overflow", "klass", "idempotent")


def conflict(known: ChannelRecord, asked: ChannelRecord) -> FabricError | None:
    """Return the error that refuses `asked`, or None when it agrees with `known`.

    Route, transforms, credit, deadline and weight may be left out by the second declaration; given, they must agree.
    """
    for which in ("schema", "reply_schema"):
        error = schema_conflict(known.name, getattr(known, which), getattr(asked, which))
        if error is not None:
            return error
    if known.type_name != asked.type_name:
        return _refuse(known.name, "type", known.type_name, asked.type_name)
    for name in _COMPARED:
        before, now = getattr(known, name), getattr(asked, name)
        if before != now:
            return _refuse(known.name, "class" if name == "klass" else name, before, now)
    if asked.deadline_s and asked.deadline_s != known.deadline_s:
        return _refuse(known.name, "deadline_s", known.deadline_s, asked.deadline_s)
    if asked.weight != 1 and asked.weight != known.weight:
        return _refuse(known.name, "weight", known.weight, asked.weight)
    if asked.route and asked.route != known.route:
        return _refuse(known.name, "route", known.route, asked.route)
    if asked.codecs and asked.codecs != known.codecs:
        said = [[codec.name for codec in each.codecs] for each in (known, asked)]
        return _refuse(known.name, "codecs", *said)
    if asked.transforms and asked.transforms != known.transforms:
        return _refuse(known.name, "transforms", list(known.transforms), list(asked.transforms))
    return None


def schema_conflict(channel: str, known: str, asked: str) -> TypeMismatchError | None:
    """Return the error naming the field for which two canonical schemas are no versions of one type, or None.

    An empty text is a schema not known yet (a channel of fabric.yaml that nobody opened): it agrees.
    """
    if known == asked or not known or not asked:
        return None
    from fabric.messages.evolution import require_compatible
    from fabric.messages.schema import Schema

    try:
        require_compatible(channel, Schema.parse(known), Schema.parse(asked))
    except TypeMismatchError as error:
        return error
    return None


def type_conflict(known: ChannelRecord, schema: str) -> TypeMismatchError | None:
    """Return the error of a schema whose name is not the type that the channel was declared with by name."""
    from fabric.messages.schema import Schema

    name = Schema.parse(schema).name
    if known.type_name and name != known.type_name:
        return TypeMismatchError(
            f"channel {known.name!r} carries {known.type_name!r}, this endpoint uses {name!r}; use the declared type",
            channel=known.name,
            expected=known.type_name,
            found=name,
        )
    return None


def unknown_channel(name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a channel nobody declared, with what is known and the nearest name."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    listing = ", ".join(names[:10]) + (" …" if len(names) > 10 else "") if names else "none"
    return ConfigError(
        f"channel {name!r} is not declared{hint} Known: {listing}. Declare it with port.declare or in fabric.yaml.",
        channel=name,
        known=names[:32],
    )


def _refuse(channel: str, field: str, before: object, now: object) -> ConfigError:
    return ConfigError(
        f"channel {channel!r} is declared with {field} {before!r}, not {now!r}; use the same or another channel name",
        channel=channel,
        field=field,
        expected=before,
        found=now,
    )
