"""Messages as json objects and back, for a type that is known by its schema alone.

Out: scalars as they are, a tensor as ``{"dtype": "f32", "shape": [2, 3]}``. In: a tensor is a nested
list, or ``{"shape": [2, 3], "dtype": "f32", "fill": 0}`` for one of a constant.
A record is an object, an enum its value; what is redacted comes out as ``"[redacted]"``.
Plain bytes are ``{"data": BASE64}`` both ways; ``{"text": "…"}`` is taken, too.
"""

from __future__ import annotations

import binascii
from functools import partial
from typing import Any

import msgspec

from fabric import errors, limits
from fabric.messages import MessageType, Schema, class_from_schema, message_type
from fabric.messages.scalars import map_leaves
from fabric.messages.show import REDACTED
from fabric.messages.tensor import DTYPES, FP8, as_fp8, fp8_name, numpy_codes

_NUMPY_OF = {name: numpy_name for name, numpy_name, _ in DTYPES.values()}


def class_of(text: str) -> type:
    """Return a message class for a canonical schema text."""
    return class_from_schema(Schema.parse(text))


def to_line(view: Any) -> str:
    """Return a received message as one line of json."""
    type_ = message_type(view)
    if type_ is message_type(bytes):
        return msgspec.json.encode({"data": bytes(view)}).decode()
    return msgspec.json.encode(_row(type_, view), enc_hook=str).decode()


def _row(type_: MessageType, view: Any) -> dict[str, Any]:
    """Return a message as an object; inner records are objects, too."""
    tensors = {field.name for field in type_.tensors}
    row: dict[str, Any] = {}
    for field in type_.schema.fields:
        value = None if field.redacted else getattr(view, field.name)
        record = type_.records.get(field.name)
        if field.redacted:
            value = REDACTED
        elif field.name in tensors:
            value = _summary(value)
        elif record is not None:
            value = map_leaves(record.tree, value, partial(_row, record.type))
        row[field.name] = value
    return row


def _summary(array: Any) -> Any:
    if array is None:
        return None
    if isinstance(array, list):
        return [_summary(item) for item in array]
    code = numpy_codes().get(array.dtype)
    fp8 = fp8_name(array)
    return {
        "dtype": fp8 or DTYPES[code][0] if code else str(array.dtype),
        "shape": list(array.shape),
    }


def from_line(cls: type, line: str, place: str) -> Any:
    """Return the message that a line of json describes.

    Raises
    ------
    TypeMismatchError
        It is no json object, a field is unknown or missing, or a value does not fit; names `place` and field.
    """
    try:
        row = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise errors.TypeMismatchError(f"{place}: not json: {error}") from error
    type_ = message_type(cls)
    if not isinstance(row, dict):
        raise errors.TypeMismatchError(
            f"{place}: expected an object with the fields {', '.join(type_.names or ['data'])}"
        )
    if type_ is message_type(bytes):
        return _plain_bytes(row, place)
    unknown = set(row) - set(type_.names)
    missing = [
        field.name
        for field in type_.schema.fields
        if field.name not in row and not field.has_default and not _has_absence(field.type)
    ]
    if unknown or missing:
        words = [f"unknown: {', '.join(sorted(unknown))}"] if unknown else []
        words += [f"missing: {', '.join(missing)}"] if missing else []
        raise errors.TypeMismatchError(f"{place}: {type_.schema.label}: {'; '.join(words)}")
    return _message(type_, row, place)


def _message(type_: MessageType, row: Any, place: str) -> Any:
    """Return the message of an object whose fields are known; inner records are made of objects."""
    tensors = {field.name: field for field in type_.tensors}
    values = {f.name: None for f in type_.schema.fields if not f.has_default}
    try:
        for name, value in row.items():
            record = type_.records.get(name)
            if name in tensors:
                value = _tensor(name, tensors[name].spec, value, place)
            elif record is not None:
                value = map_leaves(record.tree, value, partial(_message, record.type, place=place))
            values[name] = value
        return type_.cls(**values)
    except (TypeError, AttributeError) as error:
        raise errors.TypeMismatchError(f"{place}: {type_.schema.label}: {error}") from error


def _plain_bytes(row: dict[str, Any], place: str) -> bytes:
    if list(row) == ["text"] and isinstance(row["text"], str):
        return row["text"].encode()
    if list(row) != ["data"] or not isinstance(row["data"], str):
        raise errors.TypeMismatchError(
            f'{place}: a channel of bytes takes {{"data": "BASE64"}} or {{"text": "…"}}'
        )
    try:
        return binascii.a2b_base64(row["data"], strict_mode=True)
    except binascii.Error as error:
        raise errors.TypeMismatchError(f"{place}: field 'data' is not base64: {error}") from error


def _has_absence(type_text: str) -> bool:
    return type_text.endswith("| None")


def _tensor(name: str, spec: Any, given: Any, place: str) -> Any:
    if not spec.is_list:
        return _array(name, spec.dtypes, given, place)
    if not isinstance(given, list):
        raise errors.TypeMismatchError(f"{place}: field '{name}' is a list of tensors")
    return [_array(name, spec.dtypes, item, place) for item in given]


def _array(name: str, dtypes: tuple[str, ...], given: Any, place: str) -> Any:
    import numpy

    if given is None:
        return None
    is_described = isinstance(given, dict)
    dtype = given.get("dtype", dtypes[0]) if is_described else dtypes[0]
    if dtype not in dtypes:
        raise errors.TypeMismatchError(
            f"{place}: field '{name}': dtype {dtype!r} is not one of {', '.join(dtypes)}"
        )
    try:
        if is_described:
            _check_size(name, given["shape"], place)
            made = numpy.full(given["shape"], given.get("fill", 0), dtype=_NUMPY_OF[dtype])
        else:
            made = numpy.asarray(given, dtype=_NUMPY_OF[dtype])
        return as_fp8(made, dtype) if dtype in FP8 else made
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise errors.TypeMismatchError(f"{place}: field '{name}' is no tensor: {error}") from error


def _check_size(name: str, shape: Any, place: str) -> None:
    count = 1
    for size in shape:
        count *= int(size)
    if count > limits.MESSAGE_BYTES_MAX:
        raise errors.TypeMismatchError(
            f"{place}: field '{name}' of shape {shape} is larger than a message may be"
        )
