"""What turns one plan into another: added, changed, unchanged and removed plugins, channels and modules. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from fabric.config import ChannelSpec, CreditSpec, ModuleSpec
from fabric.config.spec import TransformSettings
from fabric.registry.plans import Plan
from fabric.registry.records import ChannelRecord

Action = Literal["added", "changed", "unchanged", "removed"]
KINDS = ("plugin", "channel", "module")


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a plan; `detail` names each field that differs, old → new."""

    kind: str
    name: str
    action: Action
    detail: str = ""

    def row(self) -> dict[str, str]:
        """Return it as the control API answers it."""
        return {"kind": self.kind, "name": self.name, "action": self.action, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class Content:
    """What is compared: plain values by kind and name."""

    plugins: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    channels: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    modules: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, kind: str) -> Mapping[str, dict[str, Any]]:
        """Return the part of a kind."""
        parts: Mapping[str, dict[str, Any]] = getattr(self, f"{kind}s")
        return parts


def content(plan: Plan | None) -> Content:
    """Return what a plan says; nothing for None."""
    if plan is None:
        return Content()
    return Content(
        {p.name: {"source": p.digest[:12], "node": p.node} for p in plan.plugins},
        {c.name: _channel(c) for c in plan.channels},
        {m.name: _module(m) for m in plan.modules},
    )


def live_content(plan: Plan | None, wanted: Plan, channels: Iterable[ChannelRecord]) -> Content:
    """Return what is there now: the plan in force, its channels as they are, those of processes that `wanted` names.

    A channel that no plan brought in and `wanted` does not name is left out: it is not a plan's to remove.
    """
    names = {c.name for c in wanted.channels}
    base = content(plan)
    live = {c.name: _channel(spec_of(c)) for c in channels if c.is_planned or c.name in names}
    for name, plain in live.items():  # replies are known from the plan only
        planned = base.channels.get(name)
        if planned is not None:
            plain["reply"] = planned["reply"]
        else:
            asked = next((c for c in wanted.channels if c.name == name), None)
            plain["reply"] = asked.reply if asked else None
    return Content(base.plugins, live, base.modules)


def spec_of(record: ChannelRecord) -> ChannelSpec:
    """Return the file's form of a live channel; credit 0 is what each receiver chooses."""
    transforms, settings = _entries(record)
    return ChannelSpec(
        name=record.name,
        type=record.type_name,
        pattern=record.pattern,
        delivery=record.delivery,
        overflow=record.overflow,
        klass=record.klass,
        route=record.route,
        transforms=transforms,
        settings=settings,
        idempotent=record.idempotent,
        credit=CreditSpec(messages=record.messages, bytes=record.bytes),
        deadline_s=record.deadline_s or None,
        weight=record.weight,
    )


def _entries(
    record: ChannelRecord,
) -> tuple[tuple[str, ...], dict[str, TransformSettings]]:
    """Return a channel's hops and codecs as one list again, and their settings."""
    names = list(record.transforms)
    settings = {
        name: TransformSettings(parameters=given) for name, given in record.settings.items()
    }
    for codec in sorted(record.codecs, key=lambda each: each.index):
        names.insert(codec.index, codec.name)
        found = TransformSettings(when=codec.when, where=codec.where, parameters=codec.parameters)
        if found != TransformSettings():
            settings[codec.name] = found
    return tuple(names), settings


def compare(old: Content, new: Content) -> list[Change]:
    """Return every change and what stays, plugins first, each kind by name."""
    found = []
    for kind in KINDS:
        before, after = old.of(kind), new.of(kind)
        for name in sorted({*before, *after}):
            if name not in after:
                found.append(Change(kind, name, "removed"))
            elif name not in before:
                found.append(Change(kind, name, "added"))
            else:
                detail = differences(before[name], after[name])
                found.append(Change(kind, name, "changed" if detail else "unchanged", detail))
    return found


def is_different(changes: Iterable[Change]) -> bool:
    """Tell whether anything would change."""
    return any(change.action != "unchanged" for change in changes)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """Return ``field old → new, …`` of two plain maps; nested maps by dotted names; empty when equal."""
    parts = []
    for key in sorted({*old, *new}):
        one, other = old.get(key), new.get(key)
        if one == other:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            parts.append(differences(one, other, f"{prefix}{key}."))
        else:
            parts.append(f"{prefix}{key} {_text(one)} → {_text(other)}")
    return ", ".join(parts)


def _channel(spec: ChannelSpec) -> dict[str, Any]:
    return {k: v for k, v in dict(msgspec.to_builtins(spec)).items() if k != "name"}


def _module(spec: ModuleSpec) -> dict[str, Any]:
    return {k: v for k, v in dict(msgspec.to_builtins(spec)).items() if k != "name"}


def _text(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = "none" if value is None else str(plain)
    return text if len(text) <= 60 else text[:57] + "…"
