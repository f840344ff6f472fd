"""`@fabric.message`: turn an annotated class into a message type.

The class becomes a slotted struct with a generated `__init__` and `__repr__`; beside it stands its view class, what
a receiver hands out. `MessageType` (in `__fabric_type__`) holds schema, codec and both classes.
"""

from __future__ import annotations

import copy
import functools
import sys
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import msgspec

from fabric import limits
from fabric.errors import TypeMismatchError
from fabric.messages import codec, loans, records, scalars, tensor_check
from fabric.messages.field_marks import MISSING, declared_field, default_of, field, spec_of
from fabric.messages.native_plan import DecodePlan, decode_plan
from fabric.messages.schema import FieldSchema, Schema
from fabric.messages.show import message_text
from fabric.messages.tensor import TensorSpec
from fabric.messages.view_class import view_class

if TYPE_CHECKING:
    from types import FrameType

C = TypeVar("C", bound=type)
_RESERVED = frozenset(
    {"ack", "nack", "release", "header", "as_torch", "copy_into", "tensor_index", "fds"}
)
_NOT_COPIED = frozenset(
    {
        "__dict__",
        "__weakref__",
        "__annotations__",
        "__annotate__",
        "__annotate_func__",
        "__annotations_cache__",
        "__slots__",
        "__module__",
        "__qualname__",
        "__static_attributes__",
        "__firstlineno__",
    }
)


_WIRE_LIST: Any = typing.Annotated[
    list[tuple[int, ...]], msgspec.Meta(max_length=limits.TENSORS_PER_MESSAGE_MAX)
]


class MessageType:
    """A declared message type: `schema`, message class `cls`, received class `view`, `encode`, `decode`.

    Attributes
    ----------
    schema : Schema
    cls, view, draft : type
        What users build; what receivers get (a subclass of `cls`); what a loan fills in.
    encode : callable
        ``encode(message) -> (meta, buffers)``.
    decode : callable
        ``decode(native_message, endpoint) -> view``.
    tensors : list of TensorField
    parts : dict
        Field → the enum or the message class that it is made of.
    records : dict of RecordField
    inner : type
        What stands for a record of this type in a received message.
    """

    def __init__(
        self,
        schema: Schema,
        specs: dict[str, TensorSpec],
        cls: type,
        options: dict[str, Any],
        parts: dict[str, Any],
    ) -> None:
        self.schema = schema
        self.cls = cls
        self.parts = parts
        self.records = records.record_fields(schema, parts)
        self.view = view = view_class(cls, schema, specs, self.records, options)
        names = [field.name for field in schema.fields]
        self.tensors = tensor_check.tensor_fields(names, specs)
        self.names = names
        self.scalar_names = [name for name in names if name not in specs]
        lowered = [(r.position, records.lower_field(r)) for r in self.records.values()]
        self.encode, self.native_plan = codec.make_encode(names, specs, view, lowered)
        self.inner = (
            view_class(cls, schema, specs, self.records, options, is_inner=True)
            if records.has_tensors(self)
            else cls
        )
        self.unpack: codec.Unpack = msgspec.msgpack.Decoder(view).decode
        self.decode = codec.make_decode(self)
        self.native_decode: DecodePlan | None = decode_plan(names, view, self.tensors)
        #: what native ends call per message; None where there is nothing to encode
        self.native_encode: codec.Encode | None = self.encode
        self.native_unpack: codec.Unpack | None = self.unpack
        self.draft = type(
            f"{cls.__name__}Draft",
            (),
            {
                "__slots__": tuple(names),
                "__module__": cls.__module__,
                "__doc__": f"A {schema.label} being written into a loan.",
                "__fabric_type__": self,
            },
        )

    def __repr__(self) -> str:
        return f"<MessageType {self.schema.label}>"

    def defaults(self) -> dict[str, Any]:
        """Return fresh default values of the fields that have one."""
        found = {}
        for each in msgspec.structs.fields(self.cls):
            if each.default is not msgspec.NODEFAULT:
                found[each.name] = each.default
            elif each.default_factory is not msgspec.NODEFAULT:
                found[each.name] = each.default_factory()
        return found

    def tensors_of(self, view: Any) -> list[Any]:
        """Return the tensors of a received message as buffers, in the order of the message."""
        return records.tensors_in(self, view)

    def read_natively(self, reader: type) -> None:
        """Let tensors of received messages be read by `reader`, which is `fabric._native.TensorField`. Idempotent.

        It is given and not imported: a message type needs no native module.
        """
        slots = vars(self.view)
        for tensor in self.tensors:
            found, slot = slots[tensor.name], vars(self.cls)[tensor.name]
            varying = [f.position for f in self.tensors if f.spec.is_list]
            varying += [r.position for r in self.records.values() if r.has_tensors]
            if isinstance(found, property) and tensor.position < min(varying, default=1 << 30):
                native = reader(found, slot, slots["_native"], tensor.ordinal)
                setattr(self.view, tensor.name, native)

    def plan_loan(self, shapes: dict[str, Any]) -> list[tuple[int, tuple[int, ...], int]]:
        """Return (dtype code, shape, bytes) per tensor of a loan; see `loans.plan_loan`."""
        return loans.plan_loan(self, shapes)


@dataclass_transform(field_specifiers=(field,))
def message(name: str, version: int = 1) -> Callable[[C], C]:
    """Declare a class as a message type.

    Parameters
    ----------
    name : str
        Cluster-wide name, e.g. ``"kv.layer"``.
    version : int
        Version of the declaration; a newer one must read what the older one sends, see docs/messages.md.

    Returns
    -------
    decorator
        Replaces the class by a slotted one with ``__init__`` (fields in order, positional or by name) and ``__repr__``;
        methods are kept.

    Raises
    ------
    TypeMismatchError
        At decoration: a field of a type that does not travel, a reserved name, a base class.

    Notes
    -----
    Works under ``from __future__ import annotations`` and inside functions.
    """
    if not isinstance(name, str):
        raise TypeMismatchError('write @fabric.message("your.name", version=1)')

    def declare(cls: C) -> C:
        hints = _hints(cls, sys._getframe(1))
        fields, specs, defaults, parts = [], {}, {}, {}
        for each, annotation in hints.items():
            if each.startswith("_") or each in _RESERVED:
                raise TypeMismatchError(
                    f"message type {name!r}: the field name {each!r} is reserved", field=each
                )
            found = declared_field(each, annotation, cls.__dict__.get(each, MISSING))
            fields.append(found.schema)
            if found.spec is not None:
                specs[each] = found.spec
            if found.part is not None:
                parts[each] = found.part
            if found.default is not MISSING:
                defaults[each] = found.default
        schema = Schema(name, version, fields)
        return typing.cast(C, build(schema, specs, defaults, parts, cls).cls)

    return declare


def build(
    schema: Schema,
    specs: dict[str, TensorSpec],
    defaults: dict[str, Any],
    parts: dict[str, Any],
    origin: type | None,
) -> MessageType:
    """Make the classes of a type; `origin` is the decorated class, or None for a type known by schema only."""
    namespace = (
        {
            k: v
            for k, v in vars(origin).items()
            if k not in _NOT_COPIED and k not in schema_names(schema)
        }
        if origin
        else {}
    )
    bases = [base.__name__ for base in origin.__bases__ if base is not object] if origin else []
    if "__init__" in namespace or bases:
        culprit = "its own __init__" if "__init__" in namespace else f"the base class {bases[0]}"
        raise TypeMismatchError(
            f"message type {schema.name!r} cannot have {culprit}; use fields and methods only"
        )
    class_name = origin.__name__ if origin else schema.name.replace(".", "_").replace("-", "_")
    module = origin.__module__ if origin else __name__
    namespace.setdefault("__repr__", message_text)
    options: dict[str, Any] = {"array_like": True, "eq": not specs, "module": module}
    definition = [_struct_field(each, specs, defaults, parts) for each in schema.fields]
    try:
        cls = msgspec.defstruct(class_name, definition, namespace=namespace, **options)
    except TypeError as error:
        raise TypeMismatchError(f"message type {schema.name!r}: {error}") from error
    type_ = MessageType(schema, specs, cls, options, parts)
    if origin is not None:
        cls.__qualname__ = origin.__qualname__
        cls.__doc__ = origin.__doc__
    for made in (cls, type_.view, type_.inner):
        made.__fabric_type__ = type_  # type: ignore[attr-defined]
    return type_


def class_from_schema(schema: Schema) -> type:
    """Return a message class for a type that is known by its schema alone (channel tools, pass-through stages)."""
    from fabric.messages.raw import BYTES  # which is made of what stands here

    if schema == BYTES.schema:
        return bytes
    specs: dict[str, TensorSpec] = {}
    parts: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for each in schema.fields:
        if (spec := spec_of(each)) is not None:
            specs[each.name] = spec
        if each.values:
            parts[each.name] = typing.Literal[tuple(each.values)]
        elif each.record is not None:
            inner = each.record
            parts[each.name] = class_from_schema(Schema(inner.name, inner.version, inner.fields))
        if each.has_default:
            defaults[each.name] = default_of(each, _wire(each, specs, parts))
    return build(schema, specs, defaults, parts, None).cls


def message_type(cls: Any) -> MessageType:
    """Return the `MessageType` of a class or message; `TypeMismatchError` if it was not declared.

    That of `bytes`, and of any bytes, is the built-in type of plain bytes.
    """
    found = getattr(cls, "__fabric_type__", None)
    if (
        cls is bytes
        or isinstance(cls, (bytes, bytearray, memoryview))
        or cls in (bytearray, memoryview)
    ):
        from fabric.messages.raw import BYTES  # which is made of what stands here

        return BYTES
    if not isinstance(found, MessageType):
        shown = cls.__name__ if isinstance(cls, type) else repr(cls)
        raise TypeMismatchError(
            f'{shown} is no message type; decorate the class with @fabric.message("name")'
        )
    return found


def schema_names(schema: Schema) -> set[str]:
    return {each.name for each in schema.fields}


def _hints(cls: type, frame: FrameType) -> dict[str, Any]:
    """Resolve annotations, also textual ones of a class made inside a function."""
    module = sys.modules.get(cls.__module__)
    scope = vars(module) if module else {}
    try:
        hints = typing.get_type_hints(
            cls, {**frame.f_globals, **scope}, dict(frame.f_locals), include_extras=True
        )
    except NameError as error:
        raise TypeMismatchError(
            f"message class {cls.__name__}: {error}; import it above the class"
        ) from error
    return {
        name: hint for name, hint in hints.items() if typing.get_origin(hint) is not typing.ClassVar
    }


def _wire(each: FieldSchema, specs: dict[str, TensorSpec], parts: dict[str, Any]) -> Any:
    # A tensor stands for its descriptor on the wire: a tuple, so that it can be looked up as it is.
    spec, part = specs.get(each.name), parts.get(each.name)
    if spec is not None:
        return _WIRE_LIST if spec.is_list else tuple[int, ...] | None
    if each.record is not None and part is not None:
        part = part.__fabric_type__.inner
    return scalars.wire_type(each.type, part)


def _struct_field(
    each: FieldSchema,
    specs: dict[str, TensorSpec],
    defaults: dict[str, Any],
    parts: dict[str, Any],
) -> tuple[Any, ...]:
    wire = _wire(each, specs, parts)
    if each.name not in defaults:
        return each.name, wire
    default = defaults[each.name]
    if isinstance(default, (list, dict, msgspec.Struct)):
        copied = functools.partial(copy.deepcopy, default)
        return each.name, wire, msgspec.field(default_factory=copied)
    return each.name, wire, default
