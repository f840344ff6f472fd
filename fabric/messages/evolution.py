"""Which versions of a message type may meet on a channel, decided from their schemas alone. Pure.

A reader takes what a writer sends when every field of the reader's has a source: the writer's field of the same name,
or one that either side knows under a former name (`alias`), and each value that the source may hold fits; or else a
default. Fields that only the writer has are skipped. So a newer version may add fields with defaults, allow more
dtypes, sizes or enum values, rename with an alias, make optional what was required and leave fields out; what its
own messages hold beyond the older version is what an older reader cannot take, and is looked at where ends meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fabric.errors import TypeMismatchError
from fabric.messages.scalars import Tree, type_tree
from fabric.messages.schema import FieldSchema, Schema


class Finding(NamedTuple):
    """Why a reader does not take what a writer sends: the field, and a sentence without versions."""

    field: str
    what: str


def sources(
    writer: Sequence[FieldSchema], reader: Sequence[FieldSchema]
) -> dict[str, FieldSchema | None]:
    """Return for each field of a reader the field of the writer that it is read from; None: its default."""
    written = {field.name: field for field in writer}
    own = {field.name for field in reader}
    once = {alias: field for field in writer for alias in field.alias or ()}
    found: dict[str, FieldSchema | None] = {}
    for field in reader:
        former = [written[a] for a in field.alias or () if a in written and a not in own]
        later = once.get(field.name)
        former += [later] if later is not None and later.name not in own else []
        found[field.name] = written.get(field.name) or next(iter(former), None)
    return found


def unreadable(writer: Schema, reader: Schema) -> Finding | None:
    """Return the first reason why messages of `writer` are not read as `reader`; None when they all are."""
    if writer.name != reader.name:
        return Finding("", f"{writer.name!r} is another type than {reader.name!r}")
    return _fields(writer.fields, reader.fields)


def describe(finding: Finding, writer: Schema, reader: Schema) -> str:
    """Return a finding as one sentence naming the field and both versions."""
    if not finding.field:
        return f"{reader.label} does not read {writer.label}: {finding.what}"
    return f"{reader.label} does not read {writer.label}: field {finding.field!r} {finding.what}"


def explain_difference(declared: Schema, offered: Schema) -> str | None:
    """Return why two types are no versions of one another, naming the field; None when they may meet.

    The newer version must read the older one; two declarations of one version must read each other.

    Parameters
    ----------
    declared, offered : Schema
        The channel's type, and the one an endpoint brings.
    """
    if declared.text == offered.text:
        return None
    older, newer = (
        (offered, declared) if offered.version < declared.version else (declared, offered)
    )
    found = unreadable(older, newer)
    if found is not None:
        return describe(found, older, newer)
    back = unreadable(newer, older) if older.version == newer.version else None
    return describe(back, newer, older) if back is not None else None


def require_compatible(channel: str, declared: Schema, offered: Schema) -> None:
    """Raise `TypeMismatchError` naming channel, field and both versions unless one is a version of the other."""
    difference = explain_difference(declared, offered)
    if difference is not None:
        raise mismatch(channel, difference, declared, offered)


def mismatch(channel: str, difference: str, declared: Schema, offered: Schema) -> TypeMismatchError:
    """Return the error of two types that cannot meet on a channel."""
    return TypeMismatchError(
        f"channel {channel!r}: {difference}; use one declaration on both sides, or a newer version that "
        "reads the older: see fabricctl type compat",
        channel=channel,
        declared=declared.fingerprint,
        offered=offered.fingerprint,
    )


def _fields(writer: Sequence[FieldSchema], reader: Sequence[FieldSchema]) -> Finding | None:
    matched = sources(writer, reader)
    for field in reader:
        source = matched[field.name]
        if source is None:
            if not field.has_default:
                return Finding(field.name, f"({field}) is not in it and has no default")
            continue
        found = _values(source, field, type_tree_of(source), type_tree_of(field))
        if found is not None:
            return found
    return _agreement(reader, matched)


def type_tree_of(field: FieldSchema) -> Tree:
    """Return a field's type as a tree; the built-in bytes are a name of their own."""
    return field.type if field.type == "raw" else type_tree(field.type)


def _values(writer: FieldSchema, reader: FieldSchema, written: Tree, read: Tree) -> Finding | None:
    """Compare what one part of a field may hold."""
    if not isinstance(read, str) and read[0] == "opt":
        inner = written[1] if not isinstance(written, str) and written[0] == "opt" else written
        return _values(writer, reader, inner, read[1])
    if not isinstance(written, str) and written[0] == "opt":
        return Finding(reader.name, f"may be absent there ({writer}), and must not be here")
    if isinstance(written, str) and isinstance(read, str):
        return _leaves(writer, reader, written, read)
    if isinstance(written, str) or isinstance(read, str) or written[:-1] != read[:-1]:
        return Finding(reader.name, f"is {writer} there and {reader} here")
    return _values(writer, reader, written[-1], read[-1])


def _leaves(writer: FieldSchema, reader: FieldSchema, written: str, read: str) -> Finding | None:
    if written == "enum":
        return _enums(writer, reader, read)
    if written != read:
        return Finding(reader.name, f"is {writer} there and {reader} here")
    if read == "tensor":
        return _tensors(writer, reader)
    if writer.record is not None and reader.record is not None:
        inner = _fields(writer.record.fields, reader.record.fields)
        if writer.record.name != reader.record.name:
            inner = Finding("", f"is {writer} there and {reader} here")
        return inner and Finding(".".join(filter(None, (reader.name, inner.field))), inner.what)
    return None


def _enums(writer: FieldSchema, reader: FieldSchema, read: str) -> Finding | None:
    values = writer.values or []
    if read == ("int" if isinstance(values[0], int) else "str"):
        return None
    if read != "enum":
        return Finding(reader.name, f"is {writer} there and {reader} here")
    more = [str(value) for value in values if value not in (reader.values or ())]
    return Finding(reader.name, f"may be {', '.join(more)} there, not here") if more else None


def _tensors(writer: FieldSchema, reader: FieldSchema) -> Finding | None:
    more = [name for name in writer.dtypes or () if name not in (reader.dtypes or ())]
    if more:
        return Finding(
            reader.name,
            f"may be {' or '.join(more)} there, here only {' | '.join(reader.dtypes or ())}",
        )
    if not _shapes_fit(writer.dims or [], reader.dims or []):
        return Finding(reader.name, f"has other dimensions: {writer} there, {reader} here")
    return None


def _shapes_fit(written: list[str | int], read: list[str | int]) -> bool:
    """Tell whether every shape of one declaration is one of the other."""
    if "..." not in read:
        return (
            "..." not in written
            and len(written) == len(read)
            and all(size_of(r) in (None, size_of(w)) for w, r in zip(written, read, strict=True))
        )
    if len(written) - ("..." in written) < len(read) - 1:
        return False
    return all(
        size is None or size == size_of(axis_of(written, read, axis))
        for axis, size in ((axis, size_of(dim)) for axis, dim in enumerate(read))
    )


def size_of(dim: str | int | None) -> int | None:
    """Return the size that a dimension must have, None for any."""
    if isinstance(dim, str):
        _, _, size = dim.partition("=")
        return int(size) if size else None
    return dim


def axis_of(written: list[str | int], read: list[str | int], axis: int) -> str | int | None:
    """Return the writer's dimension at an axis of the reader's; None where it does not say."""
    at = read.index("...") if "..." in read else len(read)
    ends = written.index("...") if "..." in written else len(written)
    if axis < at:
        return written[axis] if axis < ends else None
    back = len(read) - axis  # counted from the end, both ways
    return written[-back] if back <= len(written) - ends - 1 or "..." not in written else None


def _agreement(
    reader: Sequence[FieldSchema], matched: dict[str, FieldSchema | None]
) -> Finding | None:
    """Look whether dimensions that the reader wants equal are equal in what the writer may send."""
    first: dict[str, tuple[FieldSchema, str | int | None]] = {}
    for field in reader:
        source = matched[field.name]
        if field.dims is None or source is None or field.type.startswith("list"):
            continue
        for axis, dim in enumerate(field.dims):
            name = str(dim).partition("=")[0]
            if not isinstance(dim, str) or name in ("...", "_"):
                continue
            there = axis_of(source.dims or [], field.dims, axis)
            if name not in first:
                first[name] = (field, there)
            elif not _same(first[name][1], there):
                other = first[name][0].name
                return Finding(
                    field.name, f"must agree with {other!r} in {name!r} here, and need not there"
                )
    return None


def _same(left: str | int | None, right: str | int | None) -> bool:
    if left is None or right is None:
        return False
    if size_of(left) is not None and size_of(left) == size_of(right):
        return True
    names = [str(dim).partition("=")[0] for dim in (left, right)]
    is_named = isinstance(left, str) and isinstance(right, str)
    return is_named and names[0] == names[1] and names[0] not in ("_", "...")
