"""Which message types are encoded and decoded natively, and what that needs to know of them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, cast

import msgspec


class NativePlan(NamedTuple):
    """What bind/plain_encoder.cpp needs to do the same for messages of plain fields."""

    cls: type
    #: name, kind (its first letter; ``t`` a tensor), and of a tensor (dtype, shape) → descriptor of what was checked
    fields: list[tuple[str, str, dict[Any, tuple[int, ...]] | None]]


class DecodePlan(NamedTuple):
    """What bind/plain_decoder.cpp needs to make the views of a type as msgspec would."""

    view: type
    #: the kind of each field, as in a `NativePlan`
    kinds: str


#: beside the fields of a message; native ends fill them in
_OWN_FIELDS = ("_native", "_source")

_NATIVE_KINDS: dict[Any, str] = {int: "i", float: "f", bool: "b", str: "s", bytes: "y"}


def native_plan(
    names: Sequence[str], view: type, known: dict[str, dict[Any, tuple[int, ...]]]
) -> NativePlan | None:
    """Return the plan for a type of plain scalars and the tensors of `known`; None with any other field."""
    kinds = _kinds(names, view, known)
    if kinds is None:
        return None
    fields = [(name, kind, known.get(name)) for name, kind in zip(names, kinds, strict=True)]
    return NativePlan(cast(type, view.__base__), fields)


def decode_plan(names: Sequence[str], view: type, tensors: Collection[str]) -> DecodePlan | None:
    """Return the plan for a type of plain scalars and `tensors`, which are no lists; None with any other field."""
    kinds = _kinds(names, view, tensors)
    fields = tuple(field.name for field in msgspec.structs.fields(view))
    if kinds is None or fields != (*names, *_OWN_FIELDS):
        return None
    return DecodePlan(view, kinds)


def _kinds(names: Sequence[str], view: type, tensors: Collection[str]) -> str | None:
    hints = {field.name: field.type for field in msgspec.structs.fields(view)}
    kinds = ""
    for name in names:
        hint = hints[name]
        kind = "t" if name in tensors else _NATIVE_KINDS.get(getattr(hint, "__origin__", hint))
        if kind is None:
            return None
        kinds += kind
    return kinds
