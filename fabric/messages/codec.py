"""Encode and decode one message type, precompiled: per message no lookup by name and no dict.

`meta` is a MessagePack array of the fields in order, a tensor standing as [dtype code, size, size, …], a list of
tensors as a list of those; tensors themselves are a list of C-contiguous buffers. What is encoded is decoded once with
the receiver's decoder, so a sender refuses exactly what a receiver would. Thread-safe.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from fabric import limits
from fabric.errors import CapacityError, PeerProtocolError, TypeMismatchError
from fabric.messages.native_plan import NativePlan, native_plan
from fabric.messages.tensor import TensorSpec
from fabric.messages.tensor_check import (
    TensorField,
    check_shared,
    describe,
    describe_list,
    shared_axes,
    tensor_fields,
)

if TYPE_CHECKING:
    from fabric.messages.declare import MessageType

Encode = Callable[[Any], tuple[bytes, list[Any]]]
Decode = Callable[[Any, Any], Any]
Unpack = Callable[[bytes], Any]
Lower = Callable[[Any, list[Any]], Any]

_LENGTHS = (str, bytes)
_SCALARS_LOOKED_AT_MAX = 3

_PLACE = re.compile(r" - at `(?:key|value)?.*?\$\[(\d+)\](.*)`\Z")


def _plain_number(value: Any) -> Any:
    """Let numpy scalars pass as the Python numbers they are; anything else is refused by msgspec."""
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return value.item()
    raise TypeError(f"{type(value).__name__} is no value of a scalar field")


_UNPACKABLE = (msgspec.MsgspecError, TypeError, OverflowError, RecursionError, UnicodeError)
_pack = msgspec.msgpack.Encoder(enc_hook=_plain_number).encode


def make_encode(
    names: Sequence[str],
    specs: dict[str, TensorSpec],
    view: type,
    records: Sequence[tuple[int, Lower]] = (),
) -> tuple[Encode, NativePlan | None]:
    """Return `encode(message) -> (meta, buffers)` for a type with this view class, and the native encoder's plan.

    `records` are the positions of record fields with what encodes them.
    """
    read = attrgetter(*names) if len(names) > 1 else None
    only = names[0]
    fields = tensor_fields(names, specs)
    plan = _steps(fields, records)
    shared = shared_axes(fields)
    validate: Callable[[bytes], Any] = msgspec.msgpack.Decoder(view).decode
    scalars = _plain_scalars(names, specs, view)
    own = (view.__base__, view)  # the sent and the received class

    def encode(message: Any) -> tuple[bytes, list[Any]]:
        if type(message) not in own:
            check_class(message, view)
        try:
            values = list(read(message)) if read is not None else [getattr(message, only)]
        except AttributeError as error:
            raise TypeMismatchError(
                f"message {type(message).__name__}: {error}; every field must be set"
            ) from error
        buffers: list[Any] = []
        for position, known, is_byte, field in plan:
            value = values[position]
            try:  # `_recall`, without a call: every message comes by here
                descriptor = (
                    known.get((value.dtype, value.shape)) if value.flags.c_contiguous else None
                )
                if is_byte and descriptor is not None and value.dtype.metadata:
                    descriptor = None
            except (AttributeError, TypeError):
                descriptor = None
            if descriptor is None:
                if type(field) is not TensorField:
                    values[position] = field(value, buffers)
                    continue
                if field.spec.is_list:
                    values[position] = describe_list(field, value, known, buffers)
                    continue
                if value is None and field.spec.optional:
                    buffers.append(b"")
                    continue
                descriptor, value = describe(field, value, known)
            values[position] = descriptor
            buffers.append(value)
        for pair in shared:
            check_shared(values, *pair)
        if len(buffers) > 1:
            _check_total(names, buffers)
        try:
            meta = _pack(values)
            if scalars is None or not _hold(scalars, values):
                validate(meta)
        except _UNPACKABLE as error:
            raise _name_field(names, values, error) from error
        if len(meta) > limits.META_BYTES_MAX:
            raise _too_large(meta)
        return meta, buffers

    known = {f.name: seen for _, seen, _, f in plan if type(f) is TensorField}
    return encode, native_plan(names, view, fields, known, [name for name, *_ in shared])


def _steps(
    fields: Sequence[TensorField], records: Sequence[tuple[int, Lower]]
) -> list[tuple[int, dict[Any, tuple[int, ...]], bool, Any]]:
    """Return what is done with the fields that have tensors, in their order, in which buffers stand, too.

    With each goes what was seen and checked before: (numpy dtype, shape) → descriptor.
    """
    plan: list[Any] = [(f.position, {}, f.is_byte, f) for f in fields]
    plan += [(position, {}, False, lower) for position, lower in records]
    return sorted(plan, key=lambda step: int(step[0]))


def _too_large(meta: bytes) -> CapacityError:
    return CapacityError(
        f"the fields take {len(meta)} bytes, META_BYTES_MAX is {limits.META_BYTES_MAX}; use a tensor for bulk",
        limit="META_BYTES_MAX",
        value=len(meta),
    )


def check_class(message: Any, view: Any) -> None:
    """Raise `TypeMismatchError` unless `message` is of the type of `view`, by class or by equal schema."""
    ours = view.__fabric_type__
    theirs = None if isinstance(message, type) else getattr(message, "__fabric_type__", None)
    if theirs is not None and (theirs is ours or theirs.schema.text == ours.schema.text):
        return
    shown = theirs.schema.label if theirs is not None else type(message).__name__
    shown = f"the class {message.__name__}" if isinstance(message, type) else shown
    raise TypeMismatchError(
        f"this channel carries {ours.schema.label}, the message is {shown}; "
        f"send {ours.cls.__name__}(...)",
        expected=ours.schema.label,
        found=shown,
    )


def _check_total(names: Sequence[str], buffers: list[Any]) -> None:
    """Refuse what is too many or too large together; each tensor was checked by itself."""
    if len(buffers) > limits.TENSORS_PER_MESSAGE_MAX:
        raise CapacityError(
            f"{len(buffers)} tensors in one message, TENSORS_PER_MESSAGE_MAX is "
            f"{limits.TENSORS_PER_MESSAGE_MAX}; stack them or send several messages",
            limit="TENSORS_PER_MESSAGE_MAX",
            value=len(buffers),
        )
    total = sum(buffer.nbytes for buffer in buffers if type(buffer) is not bytes)
    if total > limits.MESSAGE_BYTES_MAX:
        raise CapacityError(
            f"the tensors take {total} bytes together, MESSAGE_BYTES_MAX is {limits.MESSAGE_BYTES_MAX}; "
            "send several messages",
            limit="MESSAGE_BYTES_MAX",
            value=total,
        )


def _plain_scalars(
    names: Sequence[str], specs: dict[str, TensorSpec], view: type
) -> list[tuple[int, type]] | None:
    """Return (position, type) of the scalar fields where looking at each is cheaper than decoding them all."""
    hints = {field.name: field.type for field in msgspec.structs.fields(view)}
    found = []
    for position, name in enumerate(names):
        kind = getattr(hints[name], "__origin__", hints[name])
        if name in specs:
            continue
        if kind not in _LENGTHS and kind not in (int, float, bool):
            return None
        found.append((position, kind))
    return found if len(found) <= _SCALARS_LOOKED_AT_MAX else None


def _hold(scalars: list[tuple[int, Any]], values: list[Any]) -> bool:
    """Tell whether plain scalars are what the receiver's decoder would take; False: ask the decoder."""
    for position, kind in scalars:
        value = values[position]
        if type(value) is not kind:
            return False
        if kind is float:
            if not math.isfinite(value):
                return False
        elif kind in _LENGTHS and len(value) > limits.STRING_BYTES_MAX:
            return False
    return True


def make_decode(type_: MessageType) -> Decode:
    """Return `decode(native_message, endpoint) -> view`; `PeerProtocolError` on bytes that are not this type."""
    unpack = type_.unpack
    label = type_.schema.label
    names = type_.names

    def decode(native: Any, source: Any) -> Any:
        try:
            view = unpack(native.meta)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            place = _PLACE.search(str(error))
            field = f" ({names[int(place[1])]!r})" if place and int(place[1]) < len(names) else ""
            raise PeerProtocolError(
                f"the fields of a {label} message do not decode: {error}{field}"
            ) from error
        view._native = native
        view._source = source
        return view

    return decode


def _name_field(names: Sequence[str], values: list[Any], error: Exception) -> TypeMismatchError:
    """Turn an encoder's or decoder's complaint into one that names the field."""
    text = str(error)
    place = _PLACE.search(text)
    if place is not None and int(place[1]) < len(names):
        name = names[int(place[1])]
        return TypeMismatchError(f"field {name!r}{place[2]}: {text[: place.start()]}", field=name)
    for name, value in zip(names, values, strict=True):
        try:
            _pack(value)
        except _UNPACKABLE as cause:
            return TypeMismatchError(f"field {name!r}: {cause}", field=name)
    return TypeMismatchError(f"the message does not encode: {text}")
