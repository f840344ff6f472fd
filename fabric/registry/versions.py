"""Which versions of its type the ends of a channel use, and whether one more may join them. Pure.

A channel's `schema` is the newest version that an end brought; `schemas` are the others that are in use. Whoever joins
must be a version of it, and be read by (or read) every end on the other side that is open now.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from fabric import limits
from fabric.errors import CapacityError
from fabric.messages.evolution import describe, mismatch, require_compatible, unreadable
from fabric.messages.schema import Schema
from fabric.registry.records import ChannelRecord, EndpointRecord

#: role → (what it does with messages, and with replies)
_USES: Final = {
    "sender": ("writes", ""),
    "receiver": ("reads", ""),
    "requester": ("writes", "reads"),
    "responder": ("reads", "writes"),
}


def admitted(
    channel: ChannelRecord,
    schema: str,
    reply_schema: str,
    role: str,
    endpoints: Iterable[EndpointRecord],
) -> ChannelRecord:
    """Return the channel with the versions that an end of `role` brings (empty: it declares and opens nothing).

    Raises
    ------
    TypeMismatchError
        A version does not meet the others; names the field and both versions.
    CapacityError
        More than `limits.SCHEMAS_PER_CHANNEL_MAX` versions are in use.
    """
    ends = [e for e in endpoints if e.channel == channel.number]
    uses = _USES.get(role, ("", ""))
    written = {e.type for e in ends if e.role == "sender"}
    read = {e.type for e in ends if e.role == "receiver"}
    now = _join(channel.name, (channel.schema, *channel.schemas), schema, uses[0], written, read)
    answered = {e.reply_type for e in ends if e.role == "receiver"}
    awaited = {e.reply_type for e in ends if e.role == "sender"}
    replies = _join(
        channel.name, (channel.reply_schema, *channel.reply_schemas), reply_schema, uses[1], answered, awaited
    )  # fmt: skip
    return msgspec.structs.replace(
        channel,
        schema=now[0],
        schemas=now[1:],
        reply_schema=replies[0],
        reply_schemas=replies[1:],
        type=Schema.parse(now[0]).type_id if now[0] else 0,
    )


def _join(
    channel: str,
    known: tuple[str, ...],
    text: str,
    use: str,
    written: set[int],
    read: set[int],
) -> tuple[str, ...]:
    """Return the texts in use with one more, the newest first."""
    if not text or text in known or not known[0]:
        return (known[0] or text, *known[1:])
    newest, offered = Schema.parse(known[0]), Schema.parse(text)
    require_compatible(channel, newest, offered)
    for other in map(Schema.parse, known):
        finding = None
        if use == "writes" and other.type_id in read:
            finding, pair = unreadable(offered, other), (offered, other)
        elif use == "reads" and other.type_id in written:
            finding, pair = unreadable(other, offered), (other, offered)
        if finding is not None:
            raise mismatch(channel, f"{describe(finding, *pair)} (an end of it is open)", *pair)
    in_use = written | read
    others = [t for t in known if t == known[0] or Schema.parse(t).type_id in in_use]
    if len(others) >= limits.SCHEMAS_PER_CHANNEL_MAX:
        raise CapacityError(
            f"channel {channel!r}: SCHEMAS_PER_CHANNEL_MAX ({limits.SCHEMAS_PER_CHANNEL_MAX}) versions of "
            f"{offered.name!r} are in use: close ends of old ones",
            limit="SCHEMAS_PER_CHANNEL_MAX",
        )
    return (text, *others) if offered.version > newest.version else (others[0], text, *others[1:])
