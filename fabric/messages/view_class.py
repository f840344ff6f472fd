"""Make the classes that receivers hand out: a message class with properties that read tensors where they lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from fabric.errors import TypeMismatchError
from fabric.messages.records import RecordField, count_in, record_property
from fabric.messages.tensor import TensorSpec
from fabric.messages.view import ViewMethods, list_property, tensor_property

if TYPE_CHECKING:
    from fabric.messages.schema import Schema

Count = Callable[[Any], int]


def view_class(
    cls: type,
    schema: Schema,
    specs: dict[str, TensorSpec],
    records: dict[str, RecordField],
    options: dict[str, Any],
    is_inner: bool = False,
) -> type:
    """Return the received class of a message class.

    `is_inner`: of a record within a message; its tensors begin at the number in ``_first``.
    """
    namespace, positions = _properties(cls, schema, specs, records, is_inner)

    def tensor_index(self: Any, field: str, item: int | None = None) -> int:
        if field not in positions:
            raise TypeMismatchError(f"{schema.label} has no tensor field {field!r}", field=field)
        count = len(cls.__dict__[field].__get__(self)) if specs[field].is_list else None
        if (item is None) != (count is None) or not 0 <= (item or 0) < (
            1 if count is None else count
        ):
            has = "is one tensor" if count is None else f"has items 0 to {count - 1}"
            raise TypeMismatchError(f"field {field!r} {has}, asked for item {item}", field=field)
        return positions[field](self) + (item or 0)

    namespace["tensor_index"] = tensor_index
    for name, value in vars(ViewMethods).items():
        if name != "tensor_index" and (
            not name.startswith("__") or name in ("__enter__", "__exit__")
        ):
            namespace[name] = value
    namespace["_raw"] = {name: cls.__dict__[name] for name in specs}
    private: list[tuple[str, Any, Any]] = [("_native", Any, None), ("_source", Any, None)]
    if is_inner:
        private.append(("_first", int, 0))
    suffix = "Record" if is_inner else "View"
    return msgspec.defstruct(
        f"{cls.__name__}{suffix}", private, bases=(cls,), namespace=namespace, **options
    )


def _properties(
    cls: type,
    schema: Schema,
    specs: dict[str, TensorSpec],
    records: dict[str, RecordField],
    is_inner: bool,
) -> tuple[dict[str, Any], dict[str, Count]]:
    """Return the properties of a received class, and of each tensor field what tells its place."""
    namespace: dict[str, Any] = {}
    positions: dict[str, Count] = {}
    fixed, varying = (
        0,
        list[Count](),
    )  # the tensors before a field: always there, or as many as there are
    for field in schema.fields:
        spec, record = specs.get(field.name), records.get(field.name)
        slot = cls.__dict__[field.name]
        place = _place(fixed, tuple(varying), is_inner)
        if record is not None and record.has_tensors:
            namespace[field.name] = record_property(slot, place, record)
            varying.append(_counter(slot, record))
        elif spec is not None and spec.is_list:
            namespace[field.name] = list_property(slot, place, field.name, spec)
            varying.append(_length(slot))
        elif spec is not None:
            known = place if varying or is_inner else fixed
            namespace[field.name] = tensor_property(slot, known, field.name, spec)
            fixed += 1
        if spec is not None:
            positions[field.name] = place
    return namespace, positions


def _place(fixed: int, varying: tuple[Count, ...], is_inner: bool) -> Count:
    def place(view: Any) -> int:
        first = view._first if is_inner else 0
        return fixed + sum(count(view) for count in varying) + int(first)

    return place


def _length(slot: Any) -> Count:
    return lambda view: len(slot.__get__(view))


def _counter(slot: Any, record: RecordField) -> Count:
    return lambda view: count_in(record, slot.__get__(view))
