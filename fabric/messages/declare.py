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
from fabric.messages import codec, loans, scalars
from fabric.messages.native_plan import DecodePlan, decode_plan
from fabric.messages.schema import FieldSchema, Schema
from fabric.messages.tensor import DTYPES, TensorSpec, numpy_codes
from fabric.messages.view import ViewMethods, list_property, tensor_property

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
    """

    def __init__(self, schema: Schema, specs: dict[str, TensorSpec], cls: type, view: type) -> None:
        self.schema = schema
        self.cls = cls
        self.view = view
        names = [field.name for field in schema.fields]
        self.tensors = codec.tensor_fields(names, specs)
        self.names = names
        self.scalar_names = [name for name in names if name not in specs]
        self.encode, self.native_plan = codec.make_encode(names, specs, view)
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
        for field in msgspec.structs.fields(self.cls):
            if field.default is not msgspec.NODEFAULT:
                found[field.name] = field.default
            elif field.default_factory is not msgspec.NODEFAULT:
                found[field.name] = field.default_factory()
        return found

    def tensors_of(self, view: Any) -> list[Any]:
        """Return the tensors of a received message as buffers, in the order of the message."""
        found: list[Any] = []
        for field in self.tensors:
            value = getattr(view, field.name)
            found += value if field.spec.is_list else [b"" if value is None else value]
        return found

    def read_natively(self, field: type) -> None:
        """Let tensors of received messages be read by `field`, which is `fabric._native.TensorField`. Idempotent.

        It is given and not imported: a message type needs no native module.
        """
        slots = vars(self.view)
        for tensor in self.tensors:
            found, slot = slots[tensor.name], vars(self.cls)[tensor.name]
            if isinstance(found, property) and all(
                not before.spec.is_list for before in self.tensors[: tensor.ordinal + 1]
            ):
                native = field(found, slot, slots["_native"], tensor.ordinal)
                setattr(self.view, tensor.name, native)

    def plan_loan(self, shapes: dict[str, Any]) -> list[tuple[int, tuple[int, ...], int]]:
        """Return (dtype code, shape, bytes) per tensor of a loan; see `loans.plan_loan`."""
        return loans.plan_loan(self, shapes)


@dataclass_transform()
def message(name: str, version: int = 1) -> Callable[[C], C]:
    """Declare a class as a message type.

    Parameters
    ----------
    name : str
        Cluster-wide name, e.g. ``"kv.layer"``.
    version : int
        Version of the declaration; endpoints connect when name, version and fields are equal.

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
        fields, specs, defaults = [], {}, {}
        for field, annotation in hints.items():
            if field.startswith("_") or field in _RESERVED:
                raise TypeMismatchError(
                    f"message type {name!r}: the field name {field!r} is reserved", field=field
                )
            spec = _tensor_spec(annotation)
            if field in cls.__dict__:
                defaults[field] = cls.__dict__[field]
            if spec is None:
                text = scalars.scalar_text(field, annotation)
                fields.append(FieldSchema(field, text, has_default=field in defaults))
            else:
                specs[field] = spec
                kind = "list[tensor]" if spec.is_list else "tensor"
                kind = "tensor | None" if spec.optional else kind
                fields.append(
                    FieldSchema(field, kind, list(spec.dims), list(spec.dtypes), field in defaults)
                )
        return typing.cast(C, build(Schema(name, version, fields), specs, defaults, cls).cls)

    return declare


def build(
    schema: Schema, specs: dict[str, TensorSpec], defaults: dict[str, Any], origin: type | None
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
    namespace.setdefault("__repr__", _repr)
    options: dict[str, Any] = {"array_like": True, "eq": not specs, "module": module}
    definition = [_struct_field(field, specs, defaults) for field in schema.fields]
    try:
        cls = msgspec.defstruct(class_name, definition, namespace=namespace, **options)
    except TypeError as error:
        raise TypeMismatchError(f"message type {schema.name!r}: {error}") from error
    view = _view_class(cls, schema, specs, options)
    type_ = MessageType(schema, specs, cls, view)
    if origin is not None:
        cls.__qualname__ = origin.__qualname__
        cls.__doc__ = origin.__doc__
    for made in (cls, view):
        made.__fabric_type__ = type_  # type: ignore[attr-defined]
    return type_


def class_from_schema(schema: Schema) -> type:
    """Return a message class for a type that is known by its schema alone (channel tools, pass-through stages)."""
    from fabric.messages.raw import BYTES  # which is made of what stands here

    if schema == BYTES.schema:
        return bytes
    specs = {
        field.name: TensorSpec(
            tuple(field.dims),
            tuple(field.dtypes or ()),
            field.type.endswith("None"),
            field.type.startswith("list"),
        )
        for field in schema.fields
        if field.dims is not None
    }
    return build(schema, specs, {}, None).cls


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
    return {field.name for field in schema.fields}


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


def _struct_field(
    field: FieldSchema, specs: dict[str, TensorSpec], defaults: dict[str, Any]
) -> tuple[Any, ...]:
    # A tensor stands for its descriptor on the wire: a tuple, so that it can be looked up as it is.
    spec = specs.get(field.name)
    if spec is None:
        wire: Any = scalars.wire_type(field.type)
    else:
        wire = _WIRE_LIST if spec.is_list else tuple[int, ...] | None
    if field.name not in defaults:
        return field.name, wire
    default = defaults[field.name]
    if isinstance(default, (list, dict)):
        return (
            field.name,
            wire,
            msgspec.field(default_factory=functools.partial(copy.deepcopy, default)),
        )
    return field.name, wire, default


def _view_class(
    cls: type, schema: Schema, specs: dict[str, TensorSpec], options: dict[str, Any]
) -> type:
    namespace: dict[str, Any] = {}
    positions: dict[str, Callable[[Any], int]] = {}
    lists: list[Any] = []  # of the list fields before this one
    for index, (name, spec) in enumerate(specs.items()):
        positions[name] = _position(index, tuple(lists))
        slot = cls.__dict__[name]
        if spec.is_list:
            namespace[name] = list_property(slot, positions[name], name, spec)
            lists.append(slot.__get__)
        else:
            place = positions[name] if lists else index
            namespace[name] = tensor_property(slot, place, name, spec)

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
    private = [("_native", Any, None), ("_source", Any, None)]
    return msgspec.defstruct(
        f"{cls.__name__}View", private, bases=(cls,), namespace=namespace, **options
    )


def _position(index: int, lists: tuple[Any, ...]) -> Callable[[Any], int]:
    """Return what tells a field's first tensor among all: lists before it have as many as they have."""

    def position(view: Any) -> int:
        return index - len(lists) + sum(len(read(view)) for read in lists)

    return position


def _repr(self: Any) -> str:
    type_ = self.__fabric_type__
    raw = getattr(type(self), "_raw", {})
    shown = []
    for name in type_.names:
        value = raw[name].__get__(self) if name in raw else getattr(self, name)
        shown.append(f"{name}={_show(value, name in {t.name for t in type_.tensors})}")
    return f"{type_.cls.__name__}({', '.join(shown)})"


def _show(value: Any, is_tensor: bool) -> str:
    if not is_tensor or value is None:
        text = repr(value)
        return text if len(text) <= 80 else text[:77] + "..."
    if isinstance(value, list):
        items = [_show(item, True) for item in value[:4]] + ["..."] * (len(value) > 4)
        return f"[{', '.join(items)}]"
    if isinstance(value, tuple):
        return f"{DTYPES.get(value[0] if value else 0, ('?',))[0]}{list(value[1:])}"
    code = numpy_codes().get(getattr(value, "dtype", None))
    return f"{DTYPES[code][0] if code else getattr(value, 'dtype', '?')}{list(getattr(value, 'shape', ()))}"
