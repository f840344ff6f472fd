"""Scalar fields: which annotations are allowed, their canonical text, and what the decoder enforces.

Allowed: str, int, float, bool, bytes, `fabric.Lease`, `T | None`, `list[T]`, `dict[str | int, T]` of those, nested
at most `_DEPTH_MAX` deep. Floats must be finite, strings and bytes bounded; both hold at send and at receive.
"""

from __future__ import annotations

import re
import sys
import types
import typing
from typing import Annotated, Any, Final

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
_TOKEN: Final = re.compile(r"\s*([A-Za-z]+|[\[\],|])")


def scalar_text(field: str, annotation: Any, depth: int = 0) -> str:
    """Return the canonical text of an annotation; `TypeMismatchError` names the field otherwise."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if depth < _DEPTH_MAX:
        if origin in (typing.Union, types.UnionType):
            rest = [argument for argument in arguments if argument is not type(None)]
            if len(rest) == 1 and len(arguments) == 2:
                return scalar_text(field, rest[0], depth + 1) + " | None"
        if origin is list and len(arguments) == 1:
            return f"list[{scalar_text(field, arguments[0], depth + 1)}]"
        if origin is dict and len(arguments) == 2 and arguments[0] in (str, int):
            return f"dict[{_PLAIN[arguments[0]]}, {scalar_text(field, arguments[1], depth + 1)}]"
    raise TypeMismatchError(
        f"field {field!r}: {annotation!r} cannot be a field; use str, int, float, bool, bytes, "
        f"T | None, list[T], dict[str, T] of those, or fabric.Tensor[...]",
        field=field,
    )


def wire_type(text: str) -> Any:
    """Return the type that the decoder enforces for a canonical text; `TypeMismatchError` if it is none."""
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text.replace(" ", "") or len(tokens) > 64:
        raise TypeMismatchError(f"{text[:100]!r} is no scalar type")
    found = _union(tokens)
    if tokens:
        raise TypeMismatchError(f"{text[:100]!r} is no scalar type")
    return found


def _union(tokens: list[str]) -> Any:
    found = _atom(tokens)
    while tokens[:1] == ["|"]:
        if tokens[1:2] != ["None"]:
            raise TypeMismatchError("a union can only be with None")
        del tokens[:2]
        found = typing.Optional[found]  # noqa: UP045 - built at run time
    return found


def _atom(tokens: list[str]) -> Any:
    word = tokens.pop(0) if tokens else ""
    if word in _BY_NAME:
        return _WIRE[_BY_NAME[word]]
    if word == "list" and tokens[:1] == ["["]:
        del tokens[:1]
        item = _union(tokens)
        _expect(tokens, "]")
        return list[item]  # type: ignore[valid-type]
    if word == "dict" and tokens[:1] == ["["]:
        del tokens[:1]
        key = _atom(tokens)
        if key not in (int, _WIRE[str]):
            raise TypeMismatchError("a dict's keys are str or int")
        _expect(tokens, ",")
        item = _union(tokens)
        _expect(tokens, "]")
        return dict[key, item]  # type: ignore[valid-type]
    raise TypeMismatchError(f"{word!r} is no scalar type")


def _expect(tokens: list[str], word: str) -> None:
    if tokens[:1] != [word]:
        raise TypeMismatchError(f"expected {word!r} in a scalar type")
    del tokens[0]
