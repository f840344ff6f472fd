"""What a plan may do to a cluster, decided from values: nodes, channels in use, types along a chain. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from fabric import errors
from fabric.config import ChannelSpec
from fabric.controlplane.chain_rules import negotiate
from fabric.registry.plans import Plan
from fabric.registry.records import ChannelRecord, View

#: what a channel keeps while somebody has it open
FIXED = ("type_name", "pattern", "delivery", "idempotent")
_SAID = {"type_name": "type"}


def channel_record(spec: ChannelSpec) -> ChannelRecord:
    """Return the declaration that a channel of a file stands for; its schema comes with the first endpoint."""
    return ChannelRecord(
        name=spec.name,
        type_name=spec.type,
        pattern=spec.pattern,
        delivery=spec.delivery,
        overflow=spec.overflow,
        klass=spec.klass,
        route=spec.route,
        transforms=spec.transforms,
        idempotent=spec.idempotent,
        messages=spec.credit.messages,
        bytes=spec.credit.bytes,
        deadline_s=spec.deadline_s or 0.0,
        weight=spec.weight,
    )


def check_channel_change(view: View, known: ChannelRecord, wanted: ChannelRecord) -> None:
    """Refuse a change that those who have the channel open could not follow; names them and the field."""
    fixed = [f for f in FIXED if getattr(known, f) != getattr(wanted, f)]
    users = _users(view, known)
    if fixed and users:
        field = fixed[0]
        raise errors.ConfigError(
            f"channel {known.name!r}: {_SAID.get(field, field)} cannot change from {getattr(known, field)!r} to"
            f" {getattr(wanted, field)!r} while {_listed(users)} has it open; stop them first, or use another name",
            channel=known.name,
            field=_SAID.get(field, field),
            users=users[:8],
        )
    receivers = [
        e.port_name
        for e in view.endpoints
        if e.channel == known.number and e.role == "receiver" and not e.transform
    ]
    if known.delivers != wanted.delivers and receivers:
        raise errors.TypeMismatchError(
            f"the transforms of channel {known.name!r} would make it deliver {wanted.delivers or wanted.type_name},"
            f" and {_listed(receivers)} receives {known.delivers or known.type_name}; stop the receivers first",
            channel=known.name,
            receivers=receivers[:8],
        )


def check_removal(view: View, known: ChannelRecord, leaving: Iterable[str]) -> None:
    """Refuse to take away a channel that somebody has open who stays."""
    gone = set(leaving)
    users = [name for name in _users(view, known) if name not in gone]
    if users:
        raise errors.ConfigError(
            f"channel {known.name!r} is no longer in the file, and {_listed(users)} has it open; stop them first",
            channel=known.name,
            users=users[:8],
        )


def records_of(
    plan: Plan,
    view: View,
    exports: Mapping[str, Mapping[str, Any]],
    again: Iterable[str],
    leaving: Iterable[str],
) -> Plan:
    """Return the plan with the channel records that it makes and the names that it takes away.

    Parameters
    ----------
    again : iterable of str
        Transforms whose code changes: the channels that use them get a new graph although the file says the same.
    leaving : iterable of str
        Names of the module processes that this plan ends.

    Raises
    ------
    ConfigError, TypeMismatchError
        A change that those who use the channel could not follow.
    """
    renewed = set(again)
    records, added = [], []
    for spec in plan.channels:
        known = view.channel(spec.name)
        chain = negotiate(spec, exports, known.schema if known is not None else "")
        wanted = msgspec.structs.replace(channel_record(spec), **chain._asdict(), is_planned=True)
        if known is None:
            added.append(spec.name)
            records.append(wanted)
            continue
        check_channel_change(view, known, wanted)
        wanted = msgspec.structs.replace(wanted, is_planned=known.is_planned)
        if is_other(known, wanted) or renewed & set(wanted.transforms):
            records.append(wanted)
    names = {c.name for c in plan.channels}
    removed = [c for c in view.channels if c.is_planned and c.name not in names]
    for known in removed:
        check_removal(view, known, leaving)
    return msgspec.structs.replace(
        plan, records=tuple(records), added=tuple(added), removed=tuple(c.name for c in removed)
    )


def is_other(known: ChannelRecord, wanted: ChannelRecord) -> bool:
    """Tell whether a channel's messages would go otherwise."""
    fields = (
        *FIXED,
        "overflow",
        "klass",
        "route",
        "transforms",
        "codecs",
        "settings",
        "delivers",
        "messages",
        "bytes",
        "deadline_s",
        "weight",
    )
    return any(getattr(known, f) != getattr(wanted, f) for f in fields)


def _users(view: View, channel: ChannelRecord) -> list[str]:
    found = [e.port_name for e in view.endpoints if e.channel == channel.number and not e.transform]
    return list(dict.fromkeys(found))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more
