"""Which message types are encoded and decoded natively, and what that needs to know of them. Pure.

Kinds of fields are letters: ``i`` int, ``f`` float, ``b`` bool, ``s`` str, ``y`` bytes, ``t`` a tensor (not a list of
them); upper case where None may stand instead.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from fabric.messages.tensor_check import TensorField

AXES_MAX: Final = 32  # bind/plain_encoder.hpp kAxesMax
_KINDS: Final[dict[Any, str]] = {int: "i", float: "f", bool: "b", str: "s", bytes: "y"}
_OWN_FIELDS: Final = ("_native", "_source")  # of a view, behind those of its message


class NativeField(NamedTuple):
    """One field of a `NativePlan`."""

    name: str
    kind: str
    known: (
        dict[Any, tuple[int, ...]] | None
    )  #: of a tensor: (dtype, shape) → descriptor of what was checked
    axes: list[tuple[int, int]]  #: (number of the name, axis) of each axis that shares its name


class NativePlan(NamedTuple):
    """What bind/plain_encoder.cpp needs to do the same as codec.py for messages of plain fields."""

    cls: type
    view: type
    fields: list[NativeField]


class DecodePlan(NamedTuple):
    """What bind/plain_decoder.cpp needs to make the views of a type as msgspec would."""

    view: type
    kinds: str


def native_plan(
    names: Sequence[str],
    view: type,
    tensors: Sequence[TensorField],
    known: dict[str, dict[Any, tuple[int, ...]]],
    shared: Sequence[str],
) -> NativePlan | None:
    """Return the plan for a type of plain scalars and tensors; None with any other field.

    `known` is the memory of checks of each tensor field, `shared` are the names of axes that must be compared.
    """
    kinds = _kinds(names, view, {f.name: f for f in tensors if not f.spec.is_list})
    numbers = {name: number for number, name in enumerate(dict.fromkeys(shared))}
    if kinds is None or len(numbers) > AXES_MAX:
        return None
    axes = {
        f.name: [(numbers[dim], axis) for dim, axis in f.spec.named_axes() if dim in numbers]
        for f in tensors
    }
    fields = [
        NativeField(name, kind, known.get(name), axes.get(name, []))
        for name, kind in zip(names, kinds, strict=True)
    ]
    return NativePlan(typing.cast(type, view.__base__), view, fields)


def decode_plan(
    names: Sequence[str], view: type, tensors: Sequence[TensorField]
) -> DecodePlan | None:
    """Return the plan for a type of plain scalars and tensors; None with any other field."""
    kinds = _kinds(names, view, {f.name: f for f in tensors if not f.spec.is_list})
    fields = tuple(field.name for field in msgspec.structs.fields(view))
    if kinds is None or fields != (*names, *_OWN_FIELDS):
        return None
    return DecodePlan(view, kinds)


def _kinds(names: Collection[str], view: type, tensors: dict[str, TensorField]) -> str | None:
    hints = {field.name: field.type for field in msgspec.structs.fields(view)}
    kinds = ""
    for name in names:
        tensor = tensors.get(name)
        if tensor is not None:
            kinds += "T" if tensor.spec.optional else "t"
            continue
        hint, is_optional = _without_none(hints[name])
        kind = _KINDS.get(getattr(hint, "__origin__", hint))
        if kind is None:
            return None
        kinds += kind.upper() if is_optional else kind
    return kinds


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    rest = [each for each in typing.get_args(hint) if each is not type(None)]
    return (rest[0], True) if len(rest) == 1 else (hint, False)
