"""Read messages of another version of a type as one's own: fields by name or former name, defaults, the rest skipped.

The message is decoded as what it is, then lifted field by field; its tensors stay where they lie. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from fabric.errors import TypeMismatchError
from fabric.messages import scalars
from fabric.messages.evolution import describe, sources, type_tree_of, unreadable
from fabric.messages.schema import FieldSchema, Schema

if TYPE_CHECKING:
    from fabric.messages.codec import Decode
    from fabric.messages.declare import MessageType

Lift = Callable[[Any], list[Any]]


def make_convert(writer: Schema, type_: MessageType) -> Decode:
    """Return ``decode(native_message, endpoint) -> view`` of `type_` for messages of another version.

    Raises
    ------
    TypeMismatchError
        `type_` does not read that version; names the field and both versions. Later, of a message:
        `PeerProtocolError` when its bytes are not of the version that it says it is.
    """
    from fabric.messages.declare import class_from_schema, message_type

    finding = unreadable(writer, type_.schema)
    if finding is not None:
        raise TypeMismatchError(describe(finding, writer, type_.schema), field=finding.field)
    foreign = message_type(class_from_schema(writer))
    lift = _lift_fields(writer.fields, type_)
    view = _converted_class(writer, type_)

    def decode(native: Any, source: Any) -> Any:
        original = foreign.decode(native, source)
        return view(*lift(original), native, source, original)

    return decode


def _lift_fields(written: list[FieldSchema], type_: MessageType) -> Lift:
    """Return what makes the values of a type's fields of a message of another version."""
    matched = sources(written, type_.schema.fields)
    readers = [
        _read(source, _lift_value(source, field, type_))
        if (source := matched[field.name]) is not None
        else _default(field.name, type_)
        for field in type_.schema.fields
    ]
    return lambda message: [read(message) for read in readers]


def _read(source: FieldSchema, lift: Callable[[Any], Any]) -> Callable[[Any], Any]:
    get = attrgetter(source.name)
    return get if lift is _same else lambda message: lift(get(message))


def _default(name: str, type_: MessageType) -> Callable[[Any], Any]:
    """Return what gives a field's default, a fresh one where it can be changed."""
    field = next(f for f in msgspec.structs.fields(type_.cls) if f.name == name)
    if field.default_factory is not msgspec.NODEFAULT:
        make = field.default_factory
        return lambda _: make()
    value = field.default
    return lambda _: value


def _lift_value(
    source: FieldSchema, field: FieldSchema, type_: MessageType
) -> Callable[[Any], Any]:
    part = type_.parts.get(field.name)
    if part is None:
        return _same
    tree = type_tree_of(field)
    if source.record is None:
        make = part if isinstance(part, type) else _same  # a Literal is its own value
        return lambda value: scalars.map_leaves(tree, value, make)
    inner: MessageType = part.__fabric_type__
    lift = _lift_fields(source.record.fields, inner)
    return lambda value: scalars.map_leaves(tree, value, lambda leaf: inner.cls(*lift(leaf)))


def _same(value: Any) -> Any:
    return value


def _converted_class(writer: Schema, type_: MessageType) -> type:
    """Return the received class of messages of another version: their tensors have other places."""
    matched = sources(writer.fields, type_.schema.fields)

    def tensor_index(self: Any, field: str, item: int | None = None) -> int:
        source = matched.get(field)
        if source is None:
            raise TypeMismatchError(
                f"this message is {writer.label}: it holds no tensor for field {field!r}",
                field=field,
            )
        return int(self._original.tensor_index(source.name, item))

    return msgspec.defstruct(
        f"{type_.cls.__name__}From{writer.version}",
        [("_original", Any, None)],
        bases=(type_.view,),
        namespace={"tensor_index": tensor_index, "__fabric_type__": type_},
        array_like=True,
        eq=False,
        module=type_.cls.__module__,
    )
