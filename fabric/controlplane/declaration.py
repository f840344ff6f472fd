"""Read what a process declares: every field checked for type, then the same rules as a channel of fabric.yaml. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from fabric import errors, limits
from fabric.config.reader import clip
from fabric.config.rules import check_channel
from fabric.config.spec import ChannelSpec
from fabric.messages.schema import Schema
from fabric.registry.records import ChannelRecord

_WORDS = ("pattern", "delivery", "overflow", "klass")


class _Declared(msgspec.Struct, kw_only=True):
    """The fields of a `declare`, each of its type; what is not named has the default of a file."""

    channel: str
    schema: str | None = None
    reply_schema: str | None = None
    type: str | None = None
    pattern: str | None = None
    delivery: str | None = None
    overflow: str | None = None
    klass: str | None = None
    route: str | None = None
    transforms: tuple[str, ...] | None = None
    idempotent: bool | None = None
    messages: int | None = None
    bytes: int | None = None
    deadline_s: float | None = None
    weight: int | None = None


async def channel_from(fields: dict[str, Any]) -> ChannelRecord:
    """Read a `declare`.

    Raises
    ------
    ConfigError
        Names the first field of a wrong type, or the first rule that the declaration breaks, and the fix.
    """
    asked = _typed(fields)
    _check_names(asked)
    schema = Schema.parse(asked.schema) if asked.schema else None
    reply = Schema.parse(asked.reply_schema) if asked.reply_schema else None
    type_name = schema.name if schema else asked.type or ""
    options: dict[str, Any] = {
        key: getattr(asked, key) for key in (*_WORDS, "route", "idempotent") if getattr(asked, key)
    }
    options["weight"] = 1 if asked.weight is None else asked.weight
    spec = ChannelSpec(
        name=asked.channel,
        type=type_name,
        reply=reply.name if reply else None,
        transforms=asked.transforms or (),
        deadline_s=asked.deadline_s,
        **options,
    )
    for problem in check_channel(spec):
        if problem.severity == "error":
            text = f"{problem.where}: {problem.what}. {problem.fix}"
            raise errors.ConfigError(text, channel=asked.channel, where=problem.where)
    return ChannelRecord(
        name=asked.channel,
        type_name=type_name,
        schema=schema.text if schema else "",
        type=schema.type_id if schema else 0,
        reply_schema=reply.text if reply else "",
        transforms=asked.transforms or (),
        messages=asked.messages or 0,
        bytes=asked.bytes or 0,
        deadline_s=asked.deadline_s or 0.0,
        **options,
    )


def _typed(fields: dict[str, Any]) -> _Declared:
    try:
        return msgspec.convert(fields, _Declared)
    except msgspec.ValidationError as error:
        known = ", ".join(f for f in _Declared.__struct_fields__)
        raise errors.ConfigError(
            f"this is no declaration of a channel: {clip(str(error), 200)}. Give {known} as documented"
        ) from error


def _check_names(asked: _Declared) -> None:
    for what, name in (
        ("channel", asked.channel),
        ("route", asked.route or "r"),
        ("type", asked.type or "t"),
        *(("transform", one) for one in asked.transforms or ()),
    ):
        if not 0 < len(name.encode(errors="replace")) <= limits.NAME_BYTES_MAX or "@" in name:
            raise errors.ConfigError(
                f"{what} name {clip(name)!r}: use 1 to {limits.NAME_BYTES_MAX} bytes without '@'",
                limit="NAME_BYTES_MAX",
            )
    for what, count, most in (
        ("transforms", len(asked.transforms or ()), limits.TRANSFORMS_PER_CHANNEL_MAX),
        ("messages", asked.messages or 0, limits.OUTSTANDING_PER_ENDPOINT),
        ("bytes", asked.bytes or 0, limits.MESSAGE_BYTES_MAX * 64),
    ):
        if not 0 <= count <= most:
            raise errors.ConfigError(
                f"channel {asked.channel!r}: {what} is {count}; use at most {most}",
                channel=asked.channel,
            )
