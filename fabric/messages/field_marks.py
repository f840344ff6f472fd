"""What one field of a message class declares: annotation, default, former names, whether it may be shown. Pure."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec

from fabric.errors import TypeMismatchError
from fabric.messages import scalars
from fabric.messages.schema import FieldSchema, RecordSchema
from fabric.messages.tensor_spec import TensorSpec

T = TypeVar("T")


class _Mark(enum.Enum):
    missing = 0
    redacted = 1


MISSING: Final = _Mark.missing
#: ``Redacted[str]``: a field whose values `tap`, `channel echo`, traces and ``repr`` do not show.
Redacted = Annotated[T, _Mark.redacted]


class FieldOptions(NamedTuple):
    """What `field` says."""

    default: Any
    default_factory: Callable[[], Any] | None
    alias: tuple[str, ...]
    redacted: bool


def field(
    *,
    default: Any = MISSING,
    default_factory: Callable[[], Any] | None = None,
    alias: str | Sequence[str] = (),
    redacted: bool = False,
) -> Any:
    """Say more about a field of a message class than its annotation does.

    Parameters
    ----------
    default : optional
        What a message that does not hold the field has, also one of an older version.
    default_factory : callable, optional
        Makes the default; it is called once, at the declaration, and copied for each message.
    alias : str or sequence of str
        Names that the field had in earlier versions.
    redacted : bool
        Its values are not shown by `fabricctl channel echo`, taps, traces and ``repr``; they travel as others do.

    Examples
    --------
    ``tokens: int = fabric.field(default=0, alias="token_count")``
    """
    names = (alias,) if isinstance(alias, str) else tuple(alias)
    return FieldOptions(default, default_factory, names, redacted)


class Declared(NamedTuple):
    """One field as declared: its schema, its tensor or inner type if it has one, its default or `MISSING`."""

    schema: FieldSchema
    spec: TensorSpec | None
    part: Any
    default: Any


def declared_field(name: str, annotation: Any, given: Any) -> Declared:
    """Return what an annotation and the value of the class attribute say (`MISSING`: there is none).

    Raises
    ------
    TypeMismatchError
        The annotation does not travel, or there are two defaults; names the field.
    """
    options = given if isinstance(given, FieldOptions) else FieldOptions(given, None, (), False)
    annotation, is_marked = _unmarked(annotation)
    default = options.default
    if options.default_factory is not None:
        if default is not MISSING:
            raise TypeMismatchError(
                f"field {name!r} has a default and a default_factory: give one", field=name
            )
        default = options.default_factory()
    more: dict[str, Any] = {
        "has_default": default is not MISSING,
        "default": None if default is MISSING else _as_json(default),
        "alias": list(options.alias) or None,
        "redacted": is_marked or options.redacted,
    }
    spec = _tensor_spec(annotation)
    if spec is not None:
        return Declared(tensor_schema(name, spec, more), spec, None, default)
    parts: list[Any] = []
    text = scalars.scalar_text(name, annotation, parts)
    part = parts[0] if parts else None
    if part is not None:
        more |= _described(part)
    return Declared(FieldSchema(name, text, **more), None, part, default)


def tensor_schema(name: str, spec: TensorSpec, more: dict[str, Any]) -> FieldSchema:
    """Return the schema of a tensor field."""
    kind = "tensor | None" if spec.optional else "list[tensor]" if spec.is_list else "tensor"
    more = {**more, "default": None}  # absent or empty: no tensor stands in a schema
    return FieldSchema(
        name,
        kind,
        spec.words(),
        list(spec.dtypes),
        devices=list(spec.devices) or None,
        layout=spec.layout,
        **more,
    )


def spec_of(field_: FieldSchema) -> TensorSpec | None:
    """Return the declaration that the schema of a tensor field stands for."""
    if field_.dims is None:
        return None
    return TensorSpec(
        tuple(field_.dims), tuple(field_.dtypes or ()), field_.type.endswith("None"),
        field_.type.startswith("list"), tuple(field_.devices or ()), field_.layout,
    )  # fmt: skip


def default_of(field_: FieldSchema, wire: Any) -> Any:
    """Return the default that a schema says; `wire` is the type of its values.

    Raises
    ------
    TypeMismatchError
        It says one of another type.
    """
    if field_.dims is not None:
        return [] if field_.type.startswith("list") else None
    if field_.default is None:
        return None
    try:
        return msgspec.convert(field_.default, wire, str_keys=True)
    except msgspec.ValidationError as error:
        raise TypeMismatchError(
            f"field {field_.name!r}: its default is none of {field_}: {error}", field=field_.name
        ) from error


def _described(part: Any) -> dict[str, Any]:
    if scalars.is_enum(part):
        return {"values": scalars.enum_values(part)}
    schema = part.__fabric_type__.schema
    return {"record": RecordSchema(schema.name, schema.version, schema.fields)}


def _as_json(value: Any) -> Any:
    """Return a default as it stands in a schema; None for what does not."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError):
        return None  # the class refuses it when a message is sent


def _unmarked(annotation: Any) -> tuple[Any, bool]:
    """Return an annotation without its mark of redaction, and whether it had one."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [each for each in typing.get_args(annotation) if each is not type(None)]
        inner, is_marked = _unmarked(rest[0])
        return (inner | None, True) if is_marked and len(rest) == 1 else (annotation, is_marked)
    if typing.get_origin(annotation) is not Annotated:
        return annotation, False
    base, *marks = typing.get_args(annotation)
    rest = [mark for mark in marks if mark is not _Mark.redacted]
    return (Annotated[(base, *rest)] if rest else base), len(rest) < len(marks)


def _tensor_spec(annotation: Any) -> TensorSpec | None:
    if isinstance(annotation, TensorSpec):
        return annotation
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is list and isinstance(arguments[0], TensorSpec):
        return arguments[0].as_list()
    for argument in arguments:
        if isinstance(argument, TensorSpec):
            # Annotated[list[numpy.ndarray], Tensor[...]] is the spelling that any checker takes.
            if typing.get_origin(arguments[0]) is list:
                return argument.as_list()
            return argument | None if type(None) in arguments else argument
    return None
