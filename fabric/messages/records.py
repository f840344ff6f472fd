"""Records within messages: a message class as the type of a field, also in lists, maps and optional fields.

On the wire a record is an array of its fields; its tensors stand among those of the message, in the order of fields.
Dimensions agree by name within one record. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from fabric.errors import TypeMismatchError
from fabric.messages.scalars import Tree, map_leaves, type_tree
from fabric.messages.tensor_check import (
    TensorField,
    check_shared,
    describe,
    describe_list,
    shared_axes,
)

if TYPE_CHECKING:
    from fabric.messages.declare import MessageType
    from fabric.messages.schema import Schema

Lower = Callable[[Any, list[Any]], Any]


class RecordField(NamedTuple):
    """A field that holds records."""

    position: int  #: among all fields
    name: str
    tree: Tree
    type: MessageType

    @property
    def has_tensors(self) -> bool:
        """Whether there are any in it, however deep."""
        return has_tensors(self.type)


def record_fields(schema: Schema, parts: dict[str, Any]) -> dict[str, RecordField]:
    """Return the record fields of a type, by name; `parts` are the classes of its fields."""
    return {
        field.name: RecordField(
            position, field.name, type_tree(field.type), parts[field.name].__fabric_type__
        )
        for position, field in enumerate(schema.fields)
        if field.record is not None
    }


def has_tensors(type_: MessageType) -> bool:
    """Tell whether messages of a type hold tensors, those of inner records included."""
    return bool(type_.tensors) or any(r.has_tensors for r in type_.records.values())


def lower_field(record: RecordField) -> Lower:
    """Return ``lower(value, buffers)``: what stands in the meta for a record field; its tensors go to `buffers`."""
    inner = lower_message(record.type)

    def lower(value: Any, buffers: list[Any]) -> Any:
        try:
            return map_leaves(record.tree, value, lambda leaf: inner(leaf, buffers))
        except TypeMismatchError as error:
            raise TypeMismatchError(
                f"field {record.name!r}: {error.message}", field=record.name
            ) from error
        except (TypeError, AttributeError) as error:
            shown = type(value).__name__
            raise TypeMismatchError(
                f"field {record.name!r} is {shown}, declared with records of {record.type.schema.label}",
                field=record.name,
            ) from error

    return lower


def lower_message(type_: MessageType) -> Lower:
    """Return ``lower(message, buffers)``: the list of a record's fields as they stand in the meta."""
    from fabric.messages.codec import check_class  # which is made of what stands here

    steps: list[tuple[int, Lower]] = [(f.position, _lower_tensor(f)) for f in type_.tensors]
    steps += [(record.position, lower_field(record)) for record in type_.records.values()]
    steps.sort(key=lambda step: step[0])  # buffers stand in the order of fields
    shared, names = shared_axes(type_.tensors), type_.names

    def lower(message: Any, buffers: list[Any]) -> list[Any]:
        check_class(message, type_.view)
        values = [getattr(message, name) for name in names]
        for position, step in steps:
            values[position] = step(values[position], buffers)
        for pair in shared:
            check_shared(values, *pair)
        return values

    return lower


def _lower_tensor(field: TensorField) -> Lower:
    known: dict[Any, tuple[int, ...]] = {}

    def lower(value: Any, buffers: list[Any]) -> Any:
        if field.spec.is_list:
            return describe_list(field, value, known, buffers)
        if value is None and field.spec.optional:
            buffers.append(b"")
            return None
        descriptor, array = describe(field, value, known)
        buffers.append(array)
        return descriptor

    return lower


def leaves(tree: Tree, value: Any) -> Iterator[Any]:
    """Yield the records of a record field's value, in order."""
    if isinstance(tree, str):
        yield value
    elif tree[0] != "opt":
        for item in value.values() if tree[0] == "dict" else value:
            yield from leaves(tree[-1], item)
    elif value is not None:
        yield from leaves(tree[1], value)


def count_tensors(type_: MessageType, view: Any) -> int:
    """Return how many tensors stand in the message for one received record."""
    slots = vars(type_.cls)
    count = 0
    for field in type_.tensors:
        count += len(slots[field.name].__get__(view)) if field.spec.is_list else 1
    for record in type_.records.values():
        count += count_in(record, slots[record.name].__get__(view))
    return count


def count_in(record: RecordField, value: Any) -> int:
    """Return how many tensors stand in the message for the value of a record field."""
    if not record.has_tensors:
        return 0
    return sum(count_tensors(record.type, leaf) for leaf in leaves(record.tree, value))


def record_property(slot: Any, place: Callable[[Any], int], record: RecordField) -> property:
    """Return the property that tells received records where their tensors are, before it hands them out.

    `place` tells of a view where the first of them stands among all tensors of the message.
    """
    read_slot: Callable[[Any], Any] = slot.__get__

    def read(self: Any) -> Any:
        value = read_slot(self)
        at = place(self)
        for leaf in leaves(record.tree, value):
            if not hasattr(leaf, "_first") or leaf._native is not None:
                break  # told before, or set by whoever made this message
            leaf._native, leaf._source, leaf._first = self._native, self._source, at
            at += count_tensors(record.type, leaf)
        return value

    return property(read, doc=f"Records of {record.type.schema.label}.")


def tensors_in(type_: MessageType, message: Any) -> list[Any]:
    """Return the tensors of a message as buffers, in the order in which they travel."""
    specs = {field.name: field.spec for field in type_.tensors}
    found: list[Any] = []
    for name in type_.names:
        spec, record = specs.get(name), type_.records.get(name)
        if spec is not None:
            value = getattr(message, name)
            found += value if spec.is_list else [b"" if value is None else value]
        elif record is not None and record.has_tensors:
            for leaf in leaves(record.tree, getattr(message, name)):
                found += tensors_in(record.type, leaf)
    return found


def owned(type_: MessageType, message: Any) -> Any:
    """Return a record that outlives the message it came in: its tensors are copied."""
    values = {}
    for name in type_.names:
        value, record = getattr(message, name), type_.records.get(name)
        if record is not None:
            value = map_leaves(record.tree, value, lambda leaf, r=record: owned(r.type, leaf))  # type: ignore[misc]
        elif isinstance(value, list) and value and hasattr(value[0], "dtype"):
            value = [item.copy() for item in value]
        elif hasattr(value, "dtype"):
            value = value.copy()
        values[name] = value
    return type_.cls(**values)
