"""Plain dicts to protobuf messages and back, for any message of `fabric.v1`.

Fields that a message does not declare go to its `more` Struct and come back as if declared, so a
daemon may answer more than the proto knows. None and missing are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf import struct_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_STRUCT = "google.protobuf.Struct"
_M = TypeVar("_M", bound=Message)
_EXACT_MAX = 2**53  # above it a double, which is what a Struct holds, skips integers


def to_struct(
    values: Mapping[str, Any], into: struct_pb2.Struct | None = None
) -> struct_pb2.Struct:
    """Return a Struct of a mapping; foreign values become text, integers above 2^53 decimal text."""
    target = struct_pb2.Struct() if into is None else into
    for key, value in values.items():
        target.fields[str(key)].CopyFrom(_value(value))
    return target


def _value(value: Any) -> struct_pb2.Value:
    if value is None:
        return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if isinstance(value, int):
        exact = abs(value) <= _EXACT_MAX
        return (
            struct_pb2.Value(number_value=value)
            if exact
            else struct_pb2.Value(string_value=str(value))
        )
    if isinstance(value, float):
        return struct_pb2.Value(number_value=value)
    if isinstance(value, bytes):
        return struct_pb2.Value(string_value=value.hex())
    if isinstance(value, Mapping):
        return struct_pb2.Value(struct_value=to_struct(value))
    if isinstance(value, (list, tuple, set, frozenset)):
        items = struct_pb2.ListValue(values=[_value(item) for item in value])
        return struct_pb2.Value(list_value=items)
    return struct_pb2.Value(string_value=str(value))


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Return the plain dict of a Struct; whole numbers come back as int.

    A Struct keeps no order, so keys come sorted, `name` first: the same answer always prints the same.
    """
    keys = sorted(struct.fields, key=lambda key: (key != "name", key))
    return {key: _plain(struct.fields[key]) for key in keys}


def _plain(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    if kind == "struct_value":
        return from_struct(value.struct_value)
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)


def to_message(values: Mapping[str, Any], message: _M) -> _M:
    """Fill a message from a dict and return it.

    Raises
    ------
    TypeError, ValueError
        A declared field holds a value of another type.
    """
    fields = message.DESCRIPTOR.fields_by_name
    more = {}
    for name, value in values.items():
        if value is None:
            continue
        if name not in fields or name == "more":
            more[name] = value
        else:
            _set(message, fields[name], value)
    if more:
        if "more" not in fields:
            raise ValueError(
                f"{message.DESCRIPTOR.full_name} has no field for {', '.join(sorted(more))}"
            )
        to_struct(more, message.more)
    return message


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    if field.is_repeated:
        target = getattr(message, field.name)
        if field.message_type is None:
            target.extend(value)
            return
        for item in value:
            _fill(target.add(), item)
    elif field.message_type is not None:
        submessage = getattr(message, field.name)
        submessage.SetInParent()
        _fill(submessage, value)
    else:
        setattr(message, field.name, value)


def _fill(message: Any, values: Mapping[str, Any]) -> None:
    if message.DESCRIPTOR.full_name == _STRUCT:
        to_struct(values, message)
    else:
        to_message(values, message)


def from_message(message: Message) -> dict[str, Any]:
    """Return the plain dict of a message: set fields, every repeated field, and what `more` holds."""
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.name == "more":
            values.update(from_struct(value))
        elif field.is_repeated:
            values[field.name] = [_read(item) for item in value]
        elif not field.has_presence or message.HasField(field.name):
            values[field.name] = _read(value)
    return values


def _read(value: Any) -> Any:
    if not isinstance(value, Message):
        return value
    return from_struct(value) if isinstance(value, struct_pb2.Struct) else from_message(value)
