"""The canonical schema of a message type: one text per type, its fingerprint, and what differs between two.

Pure values. The daemon keeps and compares the text; it never needs the class. Two types connect when their
fingerprints are equal; otherwise `explain_difference` names the field.
"""

from __future__ import annotations

import hashlib
import re
from functools import cached_property

import msgspec

from fabric import limits
from fabric.errors import TypeMismatchError
from fabric.messages.tensor import DTYPE_CODES

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


class FieldSchema(msgspec.Struct, frozen=True, omit_defaults=True):
    """One field: a scalar `type` such as ``str``, ``list[int]``, ``float | None``, or a tensor's dims and dtypes.

    `type` of a tensor field is ``tensor``, ``tensor | None`` or ``list[tensor]``.
    """

    name: str
    type: str
    dims: list[str | int] | None = None
    dtypes: list[str] | None = None
    has_default: bool = False

    def __str__(self) -> str:
        text = self.type
        if self.dims is not None:
            words = " ".join(str(dim) for dim in self.dims)
            text = text.replace("tensor", f'Tensor["{words}", "{" | ".join(self.dtypes or [])}"]')
        return text + (" with a default" if self.has_default else "")


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    version: int
    fields: list[FieldSchema]


_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder(_Body).decode


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
        return _encode(_Body(self.name, self.version, self.fields)).decode()

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


def explain_difference(declared: Schema, offered: Schema) -> str | None:
    """Return one sentence naming the first difference, or None when the types are equal.

    Parameters
    ----------
    declared, offered : Schema
        The channel's type, and the one an endpoint brings.
    """
    if declared.text == offered.text:
        return None
    if declared.name != offered.name:
        return f"the channel carries {declared.label}, this endpoint uses {offered.label}"
    if declared.version != offered.version:
        return f"type {declared.name!r}: the channel carries version {declared.version}, not {offered.version}"
    ours = {field.name: field for field in declared.fields}
    theirs = {field.name: field for field in offered.fields}
    for name, field in ours.items():
        if name not in theirs:
            return f"type {declared.label}: field {name!r} ({field}) is missing in this endpoint's type"
        if str(field) != str(theirs[name]):
            return f"type {declared.label}: field {name!r} is {field} in the channel, {theirs[name]} here"
    for name, field in theirs.items():
        if name not in ours:
            return f"type {declared.label}: field {name!r} ({field}) is not in the channel's type"
    moved = next(
        a.name for a, b in zip(declared.fields, offered.fields, strict=True) if a.name != b.name
    )
    return f"type {declared.label}: field {moved!r} stands at another place"


def require_equal(channel: str, declared: Schema, offered: Schema) -> None:
    """Raise `TypeMismatchError` naming channel and field unless the types are equal."""
    difference = explain_difference(declared, offered)
    if difference is not None:
        raise TypeMismatchError(
            f"channel {channel!r}: {difference}; use the same declaration on both sides",
            channel=channel,
            declared=declared.fingerprint,
            offered=offered.fingerprint,
        )


def _check(schema: Schema) -> None:
    if not _NAME.match(schema.name) or len(schema.name) > limits.NAME_BYTES_MAX:
        raise TypeMismatchError(
            f"message type name {schema.name[:200]!r}: use letters, digits, . _ - (at most {limits.NAME_BYTES_MAX})"
        )
    if type(schema.version) is not int or not 0 <= schema.version < 1 << 31:
        raise TypeMismatchError(
            f"message type {schema.name!r}: version {schema.version!r} is no small natural number"
        )
    if not 1 <= len(schema.fields) <= limits.FIELDS_PER_TYPE_MAX:
        raise TypeMismatchError(
            f"message type {schema.name!r} has {len(schema.fields)} fields, allowed 1 to {limits.FIELDS_PER_TYPE_MAX}"
        )
    names = [field.name for field in schema.fields]
    if len(set(names)) != len(names):
        raise TypeMismatchError(f"message type {schema.name!r} names a field twice")
    tensors = [field for field in schema.fields if field.dims is not None]
    if len(tensors) > limits.TENSORS_PER_MESSAGE_MAX:
        raise TypeMismatchError(
            f"message type {schema.name!r} has {len(tensors)} tensors, "
            f"TENSORS_PER_MESSAGE_MAX is {limits.TENSORS_PER_MESSAGE_MAX}"
        )
    for field in schema.fields:
        _check_field(schema, field)


def _check_field(schema: Schema, field: FieldSchema) -> None:
    if not _FIELD.match(field.name) or len(field.name) > limits.NAME_BYTES_MAX:
        raise TypeMismatchError(
            f"message type {schema.name!r}: field name {field.name[:200]!r} is not allowed",
            field=field.name,
        )
    is_tensor = field.type in ("tensor", "tensor | None", "list[tensor]")
    if is_tensor != (field.dims is not None) or is_tensor != bool(field.dtypes):
        raise TypeMismatchError(
            f"message type {schema.name!r}: field {field.name!r} is half a tensor", field=field.name
        )
    if any(name not in DTYPE_CODES for name in field.dtypes or ()):
        raise TypeMismatchError(
            f"message type {schema.name!r}: field {field.name!r} has an unknown dtype",
            field=field.name,
        )
