"""Which message types the native encoder understands, and what it needs to know of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import msgspec


class NativePlan(NamedTuple):
    """What bind/plain_encoder.cpp needs to do the same for messages of plain fields."""

    cls: type
    #: name, kind (its first letter; ``t`` a tensor), and of a tensor (dtype, shape) → descriptor of what was checked
    fields: list[tuple[str, str, dict[Any, tuple[int, ...]] | None]]


_NATIVE_KINDS: dict[Any, str] = {int: "i", float: "f", bool: "b", str: "s", bytes: "y"}


def native_plan(
    names: Sequence[str], view: type, known: dict[str, dict[Any, tuple[int, ...]]]
) -> NativePlan | None:
    """Return the plan for a type of plain scalars and the tensors of `known`; None with any other field."""
    hints = {field.name: field.type for field in msgspec.structs.fields(view)}
    fields: list[tuple[str, str, dict[Any, tuple[int, ...]] | None]] = []
    for name in names:
        kind = _NATIVE_KINDS.get(getattr(hints[name], "__origin__", hints[name]))
        if name in known:
            fields.append((name, "t", known[name]))
        elif kind is not None:
            fields.append((name, kind, None))
        else:
            return None
    return NativePlan(cast(type, view.__base__), fields)
