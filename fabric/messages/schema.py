"""The canonical schema of a message type: one text per type, and its fingerprint.

Pure values. The daemon keeps and compares the text; it never needs the class. Which types may meet on a channel:
`fabric.messages.evolution`.
"""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from typing import Any

import msgspec

from fabric import limits
from fabric.errors import TypeMismatchError
from fabric.messages.scalars import leaf_name, type_tree
from fabric.messages.tensor_spec import DTYPE_CODES, parse_dims

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


class FieldSchema(msgspec.Struct, frozen=True, omit_defaults=True):
    """One field: a scalar `type` such as ``str``, ``list[int]``, ``float | None``, or a tensor's dims and dtypes.

    `type` of a tensor field is ``tensor``, ``tensor | None`` or ``list[tensor]``; ``enum`` and ``record`` in a type
    stand for `values` and `record`. `default` is the default as JSON has it, left out for None. `alias` are names that
    the field has had. `redacted`: its values are not shown.
    """

    name: str
    type: str
    dims: list[str | int] | None = None
    dtypes: list[str] | None = None
    has_default: bool = False
    default: Any = None
    alias: list[str] | None = None
    values: list[str | int] | None = None
    record: RecordSchema | None = None
    devices: list[str] | None = None
    layout: str = ""
    redacted: bool = False

    def __str__(self) -> str:
        text = self.type
        if self.dims is not None:
            words = " ".join(str(dim) for dim in self.dims)
            place = " ".join(filter(None, (" | ".join(self.devices or ()), self.layout)))
            place = f', "{place}"' if place else ""
            dtypes = " | ".join(self.dtypes or ())
            text = text.replace("tensor", f'Tensor["{words}", "{dtypes}"{place}]')
        if self.values is not None:
            text = text.replace("enum", f"enum[{', '.join(map(str, self.values))}]")
        if self.record is not None:
            text = text.replace("record", f"{self.record.name}@{self.record.version}")
        text += " with a default" if self.has_default else ""
        text += f", once {' or '.join(self.alias)}" if self.alias else ""
        return text + (", redacted" if self.redacted else "")


class RecordSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message type inside another one, and what a canonical text holds."""

    name: str
    version: int
    fields: list[FieldSchema]


_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder(RecordSchema).decode


class Schema:
    """A message type as a value: name, version, fields in order.

    Attributes
    ----------
    text : str
        Canonical JSON; equal types have equal text.
    fingerprint : str
        SHA-256 of the text, hex.
    type_id : int
        Low 32 bits of the fingerprint; stands in every record.
    """

    def __init__(self, name: str, version: int, fields: list[FieldSchema]) -> None:
        self.name = name
        self.version = version
        self.fields = fields
        _check(self)

    @classmethod
    def parse(cls, text: str | bytes) -> Schema:
        """Read a canonical text from a peer; raises `TypeMismatchError` on anything else."""
        if len(text) > limits.SCHEMA_BYTES_MAX:
            raise TypeMismatchError(
                f"a schema of {len(text)} bytes, SCHEMA_BYTES_MAX is {limits.SCHEMA_BYTES_MAX}"
            )
        try:
            body = _decode(text)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            raise TypeMismatchError(f"not a message schema: {error}") from error
        return cls(body.name, body.version, body.fields)

    @cached_property
    def text(self) -> str:
        return _encode(RecordSchema(self.name, self.version, self.fields)).decode()

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def type_id(self) -> int:
        return int(self.fingerprint[-8:], 16)

    @property
    def label(self) -> str:
        """Name and version, as shown: ``kv.layer@1``."""
        return f"{self.name}@{self.version}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"<Schema {self.label} {self.fingerprint[:12]}>"


def _check(schema: Schema) -> None:
    if not _NAME.match(schema.name) or len(schema.name) > limits.NAME_BYTES_MAX:
        raise TypeMismatchError(
            f"message type name {schema.name[:200]!r}: use letters, digits, . _ - (at most {limits.NAME_BYTES_MAX})"
        )
    if type(schema.version) is not int or not 0 <= schema.version < 1 << 31:
        raise TypeMismatchError(
            f"message type {schema.name!r}: version {schema.version!r} is no small natural number"
        )
    count = _count_fields(schema.name, schema.fields, 0)
    if not 1 <= count <= limits.FIELDS_PER_TYPE_MAX or not schema.fields:
        raise TypeMismatchError(
            f"message type {schema.name!r} has {count} fields, allowed 1 to {limits.FIELDS_PER_TYPE_MAX}"
        )
    names = [name for field in schema.fields for name in (field.name, *(field.alias or ()))]
    if len(set(names)) != len(names):
        raise TypeMismatchError(
            f"message type {schema.name!r} names a field twice (a former name is a name, too)"
        )
    tensors = [field for field in schema.fields if field.dims is not None]
    if len(tensors) > limits.TENSORS_PER_MESSAGE_MAX:
        raise TypeMismatchError(
            f"message type {schema.name!r} has {len(tensors)} tensors, "
            f"TENSORS_PER_MESSAGE_MAX is {limits.TENSORS_PER_MESSAGE_MAX}"
        )
    for field in schema.fields:
        _check_field(schema, field)
    _check_sizes(schema.name, tensors)


def _count_fields(name: str, fields: list[FieldSchema], depth: int) -> int:
    """Return how many fields there are, those of inner records included."""
    if depth > limits.RECORD_DEPTH_MAX:
        raise TypeMismatchError(
            f"message type {name!r}: records lie deeper than RECORD_DEPTH_MAX ({limits.RECORD_DEPTH_MAX})"
        )
    inner = (_count_fields(name, f.record.fields, depth + 1) for f in fields if f.record)
    return len(fields) + sum(inner)


def _check_field(schema: Schema, field: FieldSchema) -> None:
    for name in (field.name, *(field.alias or ())):
        if not _FIELD.match(name) or len(name) > limits.NAME_BYTES_MAX:
            raise TypeMismatchError(
                f"message type {schema.name!r}: field name {name[:200]!r} is not allowed",
                field=name,
            )
    is_tensor = field.type in ("tensor", "tensor | None", "list[tensor]")
    if is_tensor != (field.dims is not None) or is_tensor != bool(field.dtypes):
        raise TypeMismatchError(
            f"message type {schema.name!r}: field {field.name!r} is half a tensor", field=field.name
        )
    parse_dims(" ".join(str(dim) for dim in field.dims or ()))
    if any(name not in DTYPE_CODES for name in field.dtypes or ()):
        raise TypeMismatchError(
            f"message type {schema.name!r}: field {field.name!r} has an unknown dtype",
            field=field.name,
        )
    leaf = leaf_name(type_tree(field.type)) if field.type != "raw" else ""
    if (leaf == "enum") != bool(field.values) or (leaf == "record") != (field.record is not None):
        raise TypeMismatchError(
            f"message type {schema.name!r}: field {field.name!r} is half an enum or record",
            field=field.name,
        )
    if field.record is not None:
        Schema(field.record.name, field.record.version, field.record.fields)


def _check_sizes(name: str, tensors: list[FieldSchema]) -> None:
    """Refuse one dimension with two sizes: no message could hold it."""
    sizes: dict[str, str] = {}
    for field in tensors:
        for dim in field.dims or ():
            word, _, size = str(dim).partition("=")
            if size and sizes.setdefault(word, size) != size:
                raise TypeMismatchError(
                    f"message type {name!r}: field {field.name!r}: dimension {word!r} is {size} here and "
                    f"{sizes[word]} before; one name has one size within a message",
                    field=field.name,
                )
