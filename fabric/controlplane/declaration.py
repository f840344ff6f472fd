"""Read what a process declares: every field checked for type, then the same rules as a channel of fabric.yaml. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from fabric import errors, limits
from fabric.config import transform_entry
from fabric.config.reader import clip
from fabric.config.routes import name_of
from fabric.config.rules import check_channel
from fabric.config.spec import WHENS, WHERES, ChannelSpec, TransformSettings
from fabric.controlplane.chain_rules import Chain, negotiate
from fabric.controlplane.plugins import is_installed
from fabric.messages.schema import Schema
from fabric.registry.records import ChannelRecord
from fabric.worker import plugin_check

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
    transforms: tuple[str | dict[str, Any], ...] | None = None
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
    names, settings = _entries(asked)
    spec = ChannelSpec(
        name=asked.channel,
        type=type_name,
        reply=reply.name if reply else None,
        transforms=names,
        settings=settings,
        deadline_s=asked.deadline_s,
        **options,
    )
    for problem in check_channel(spec):
        if problem.severity == "error":
            text = f"{problem.where}: {problem.what}. {problem.fix}"
            raise errors.ConfigError(text, channel=asked.channel, where=problem.where)
    chain = await _chain(spec, schema.text if schema else "")
    return ChannelRecord(
        name=asked.channel,
        type_name=type_name,
        schema=schema.text if schema else "",
        type=schema.type_id if schema else 0,
        reply_schema=reply.text if reply else "",
        transforms=chain.transforms,
        codecs=chain.codecs,
        settings=chain.settings,
        messages=asked.messages or 0,
        bytes=asked.bytes or 0,
        deadline_s=asked.deadline_s or 0.0,
        **options,
    )


def _name_of(entry: str | dict[str, Any]) -> str:
    name = entry if isinstance(entry, str) else entry.get("name", "")
    return name if isinstance(name, str) else ""


def _entries(asked: _Declared) -> tuple[tuple[str, ...], dict[str, TransformSettings]]:
    """Return names and settings of what stands in `transforms`, as text or as mappings."""
    entries = asked.transforms or ()
    for entry in entries:
        if isinstance(entry, dict):
            for key, known in (("when", WHENS), ("where", WHERES)):
                if entry.get(key, known[0]) not in known:
                    raise errors.ConfigError(
                        f"channel {asked.channel!r}: transform {_name_of(entry)!r} has {key}"
                        f" {entry[key]!r:.100}; use one of {', '.join(known)}",
                        channel=asked.channel,
                    )
    return transform_entry.split(entries)


async def _chain(spec: ChannelSpec, schema: str) -> Chain:
    """Find the codecs among the transforms that a process names: installed ones, whose entries say more than a name.

    A transform given as a name alone is a hop; who declares it is known once it is loaded.
    """
    given = [name for name in spec.transforms if name in spec.settings]
    installed = [name for name in given if is_installed(name)]
    known = await plugin_check.run([], installed)
    exports = {e["name"]: e for rows in known.values() for e in rows if e["kind"] == "transform"}
    hops = {name: {"plugin": None} for name in spec.transforms if name not in given}
    return negotiate(spec, {**exports, **hops}, schema)


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
        ("route", name_of(asked.route) or "r"),
        ("type", asked.type or "t"),
        *(("transform", _name_of(one)) for one in asked.transforms or ()),
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
