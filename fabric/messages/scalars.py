"""Scalar fields: which annotations are allowed, their canonical text, and what the decoder enforces.

Allowed: str, int, float, bool, bytes, `fabric.Lease`, enums of str or int, message classes, `T | None`, `list[T]`,
`dict[str | int, T]` of those, nested at most `_DEPTH_MAX` deep. Floats must be finite, strings and bytes bounded;
both hold at send and at receive.
"""

from __future__ import annotations

import enum
import re
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta

from fabric import limits
from fabric.errors import TypeMismatchError
from fabric.messages.lease import Lease

_DEPTH_MAX: Final = 8
_PLAIN: Final[dict[Any, str]] = {
    str: "str",
    int: "int",
    float: "float",
    bool: "bool",
    bytes: "bytes",
    Lease: "lease",
}
_BY_NAME: Final = {name: kind for kind, name in _PLAIN.items()}
_WIRE: Final[dict[Any, Any]] = {
    str: Annotated[str, Meta(max_length=limits.STRING_BYTES_MAX)],
    bytes: Annotated[bytes, Meta(max_length=limits.STRING_BYTES_MAX)],
    float: Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)],
    int: int,
    bool: bool,
    Lease: Lease,
}
_PARTS: Final = ("enum", "record", "tensor")
_TOKEN: Final = re.compile(r"\s*([A-Za-z]+|[\[\],|])")


def scalar_text(field: str, annotation: Any, parts: list[Any] | None = None, depth: int = 0) -> str:
    """Return the canonical text of an annotation; `TypeMismatchError` names the field otherwise.

    An enum (or `Literal`) and a message class stand as ``enum`` and ``record``; they are appended to `parts`.
    """
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    parts = [] if parts is None else parts
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if is_enum(annotation) or hasattr(annotation, "__fabric_type__"):
        parts.append(annotation)
        return "enum" if is_enum(annotation) else "record"
    if depth < _DEPTH_MAX:
        if origin in (typing.Union, types.UnionType):
            rest = [argument for argument in arguments if argument is not type(None)]
            if len(rest) == 1 and len(arguments) == 2:
                return scalar_text(field, rest[0], parts, depth + 1) + " | None"
        if origin is list and len(arguments) == 1:
            return f"list[{scalar_text(field, arguments[0], parts, depth + 1)}]"
        if origin is dict and len(arguments) == 2 and arguments[0] in (str, int):
            return f"dict[{_PLAIN[arguments[0]]}, {scalar_text(field, arguments[1], parts, depth + 1)}]"
    raise TypeMismatchError(
        f"field {field!r}: {annotation!r} cannot be a field; use str, int, float, bool, bytes, an Enum of str or int, "
        f"a message class, T | None, list[T], dict[str, T] of those, or fabric.Tensor[...]",
        field=field,
    )


def is_enum(annotation: Any) -> bool:
    """Tell whether an annotation is an Enum (or a `Literal`) whose values are all str or all int."""
    values = enum_values(annotation)
    return bool(values) and any({type(value) for value in values} == {kind} for kind in (str, int))


def enum_values(annotation: Any) -> list[Any]:
    """Return the values of an Enum class or a `Literal`, in order; none of anything else."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [member.value for member in annotation]
    return list(typing.get_args(annotation)) if typing.get_origin(annotation) is Literal else []


Tree: TypeAlias = str | tuple[Any, ...]


def type_tree(text: str) -> Tree:
    """Return a canonical text as a tree: a name, ``("opt", T)``, ``("list", T)`` or ``("dict", key, T)``.

    Raises
    ------
    TypeMismatchError
        It is no such text.
    """
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text.replace(" ", "") or len(tokens) > 64:
        raise TypeMismatchError(f"{text[:100]!r} is no scalar type")
    found = _union(tokens)
    if tokens:
        raise TypeMismatchError(f"{text[:100]!r} is no scalar type")
    return found


def wire_type(text: str, part: Any = None) -> Any:
    """Return the type that the decoder enforces for a canonical text; `TypeMismatchError` if it is none.

    `part` is what ``enum`` or ``record`` stands for.
    """
    return _wire(type_tree(text), part)


def _wire(tree: Tree, part: Any) -> Any:
    if isinstance(tree, str):
        if tree in _PARTS:
            if part is None or tree == "tensor":
                raise TypeMismatchError(f"it is not said what {tree} stands for here")
            return part
        return _WIRE[_BY_NAME[tree]]
    if tree[0] == "opt":
        return typing.Optional[_wire(tree[1], part)]  # noqa: UP045 - built at run time
    if tree[0] == "list":
        return list[_wire(tree[1], part)]  # type: ignore[misc]
    return dict[_wire(tree[1], None), _wire(tree[2], part)]  # type: ignore[misc]


def _union(tokens: list[str]) -> Tree:
    found = _atom(tokens)
    while tokens[:1] == ["|"]:
        if tokens[1:2] != ["None"]:
            raise TypeMismatchError("a union can only be with None")
        del tokens[:2]
        found = found if found[0] == "opt" else ("opt", found)
    return found


def _atom(tokens: list[str]) -> Tree:
    word = tokens.pop(0) if tokens else ""
    if word in _BY_NAME or word in _PARTS:
        return word
    if word == "list" and tokens[:1] == ["["]:
        del tokens[:1]
        item = _union(tokens)
        _expect(tokens, "]")
        return ("list", item)
    if word == "dict" and tokens[:1] == ["["]:
        del tokens[:1]
        key = _atom(tokens)
        if key not in ("int", "str"):
            raise TypeMismatchError("a dict's keys are str or int")
        _expect(tokens, ",")
        item = _union(tokens)
        _expect(tokens, "]")
        return ("dict", key, item)
    raise TypeMismatchError(f"{word!r} is no scalar type")


def _expect(tokens: list[str], word: str) -> None:
    if tokens[:1] != [word]:
        raise TypeMismatchError(f"expected {word!r} in a scalar type")
    del tokens[0]


def map_leaves(tree: Tree, value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Return a value of a type with `leaf` applied to what its innermost name stands for; None stays."""
    if isinstance(tree, str):
        return leaf(value)
    if tree[0] == "opt":
        return None if value is None else map_leaves(tree[1], value, leaf)
    if tree[0] == "list":
        return [map_leaves(tree[1], item, leaf) for item in value]
    return {key: map_leaves(tree[2], item, leaf) for key, item in value.items()}


def leaf_name(tree: Tree) -> str:
    """Return the innermost name of a type."""
    while not isinstance(tree, str):
        tree = tree[-1]
    return tree
