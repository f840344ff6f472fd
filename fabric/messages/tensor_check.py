"""Check tensors against the fields that hold them; what was checked once is known by dtype and shape. Thread-safe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from fabric import limits
from fabric.errors import CapacityError, TypeMismatchError
from fabric.messages.tensor import (
    DTYPE_CODES,
    DTYPES,
    FP8,
    TensorSpec,
    device_of,
    numpy_codes,
    to_array,
)

_DESCRIPTORS_MAX = 256  # per field: shapes whose check is remembered


class TensorField(NamedTuple):
    """A tensor field as the closures want it."""

    position: int  #: among all fields
    ordinal: int  #: among the tensors
    name: str
    spec: TensorSpec
    codes: frozenset[int]
    rank: int  #: -1 = any
    is_plain: bool  #: neither fixed sizes nor `...`: the rank is all there is to check
    bytes_as: (
        int  #: what plain uint8 stands for: u8, or the one fp8 type allowed; 0: it cannot be told
    )
    is_byte: bool  #: u8 or fp8 is allowed: an array may say in its metadata which of them it holds


def tensor_fields(names: Sequence[str], specs: dict[str, TensorSpec]) -> list[TensorField]:
    """Return the tensor fields in declaration order."""
    fields: list[TensorField] = []
    for position, name in enumerate(names):
        spec = specs.get(name)
        if spec is not None:
            any_rank = "..." in spec.dims
            fields.append(
                TensorField(
                    position,
                    len(fields),
                    name,
                    spec,
                    frozenset(DTYPE_CODES[d] for d in spec.dtypes),
                    -1 if any_rank else len(spec.dims),
                    not any_rank and not spec.sizes and not any(type(d) is int for d in spec.dims),
                    _bytes_as(spec),
                    "u8" in spec.dtypes or any(name in FP8 for name in spec.dtypes),
                )
            )
    return fields


def _bytes_as(spec: TensorSpec) -> int:
    fp8 = [DTYPE_CODES[name] for name in spec.dtypes if name in FP8]
    if "u8" in spec.dtypes or not fp8:
        return DTYPE_CODES["u8"]
    return fp8[0] if len(fp8) == 1 else 0


def shared_axes(fields: list[TensorField]) -> list[tuple[str, TensorField, int, TensorField, int]]:
    """Return the pairs of axes that bear the same name and so must be equal within a message."""
    first: dict[str, tuple[TensorField, int]] = {}  # lists name no axes: theirs are their own
    pairs = []
    for field in fields:
        for name, axis in field.spec.named_axes():
            if name in first:
                pairs.append((name, *first[name], field, axis))
            else:
                first[name] = (field, axis)
    return pairs


def _recall(
    field: TensorField, value: Any, known: dict[Any, tuple[int, ...]]
) -> tuple[int, ...] | None:
    """Return the descriptor of an array like one that was checked before, else None."""
    try:
        found = known.get((value.dtype, value.shape)) if value.flags.c_contiguous else None
        # Equal dtypes may differ in their metadata, where an fp8 array says what it is.
        return None if found is not None and field.is_byte and value.dtype.metadata else found
    except (AttributeError, TypeError):  # not a numpy array
        return None


def describe_list(
    field: TensorField, values: Any, known: dict[Any, tuple[int, ...]], buffers: list[Any]
) -> list[tuple[int, ...]]:
    """Check every tensor of a list field; appends its buffers, returns its descriptors."""
    if not isinstance(values, (list, tuple)):
        raise TypeMismatchError(
            f"field {field.name!r} is {type(values).__name__}, declared {field.spec!r}: give a list",
            field=field.name,
        )
    if len(values) > limits.TENSORS_PER_MESSAGE_MAX:
        raise CapacityError(
            f"field {field.name!r} has {len(values)} tensors, TENSORS_PER_MESSAGE_MAX is "
            f"{limits.TENSORS_PER_MESSAGE_MAX}; stack them or send several messages",
            limit="TENSORS_PER_MESSAGE_MAX",
            value=len(values),
        )
    found = []
    for index, value in enumerate(values):
        descriptor = _recall(field, value, known)
        if descriptor is None:
            named = field._replace(name=f"{field.name}[{index}]")
            descriptor, value = describe(named, value, known)
        found.append(descriptor)
        buffers.append(value)
    return found


def describe(
    field: TensorField, value: Any, known: dict[Any, tuple[int, ...]]
) -> tuple[tuple[int, ...], Any]:
    """Check a tensor, and remember the check for its dtype and shape; returns (descriptor, contiguous array)."""
    code, value = _coerce(field, value)
    check_tensor(field, code, value.shape)
    if len(known) >= _DESCRIPTORS_MAX:
        known.clear()
    plain = numpy_codes().get(value.dtype)
    devices = field.spec.devices
    if devices and "cpu" not in devices:  # an array of the host would be taken for it the next time
        return (code, *value.shape), value
    if (field.bytes_as if plain == DTYPE_CODES["u8"] else plain) == code:
        known[value.dtype, value.shape] = (code, *value.shape)
    return (code, *value.shape), value


def _coerce(field: TensorField, value: Any) -> tuple[int, Any]:
    """Slow path: other libraries, other layouts, other byte orders."""
    import numpy

    _check_place(field, value)
    try:
        code, array = to_array(value)
    except TypeMismatchError as error:
        raise TypeMismatchError(
            f"field {field.name!r}: {error.message}", field=field.name
        ) from error
    if code == DTYPE_CODES["u8"]:
        code = field.bytes_as
        if code == 0:
            raise TypeMismatchError(
                f"field {field.name!r}: uint8 may be either of {field.spec!r}; say which with fabric.as_fp8",
                field=field.name,
            )
    if field.spec.layout and not array.flags.c_contiguous:
        raise _not_contiguous(field)
    # ascontiguousarray turns rank 0 into rank 1, so shape is restored.
    return code, array if array.flags.c_contiguous else numpy.ascontiguousarray(array).reshape(
        array.shape
    )


def _check_place(field: TensorField, value: Any) -> None:
    """Refuse a tensor that lies elsewhere than declared: no copy between devices happens unseen."""
    spec = field.spec
    if spec.devices and device_of(value) not in spec.devices:
        raise TypeMismatchError(
            f"field {field.name!r} lies on {device_of(value)}, declared {spec!r}: move it there before",
            field=field.name,
            device=device_of(value),
        )
    is_contiguous = getattr(value, "is_contiguous", None) if spec.layout else None
    if callable(is_contiguous) and not is_contiguous():
        raise _not_contiguous(field)


def _not_contiguous(field: TensorField) -> TypeMismatchError:
    return TypeMismatchError(
        f"field {field.name!r} is not contiguous, declared {field.spec!r}: give a contiguous copy",
        field=field.name,
    )


def check_tensor(field: TensorField, code: int, shape: tuple[int, ...]) -> None:
    """Raise `TypeMismatchError` naming the field unless dtype, rank, fixed sizes and total size hold."""
    if code not in field.codes:
        raise TypeMismatchError(
            f"field {field.name!r} is {DTYPES[code][0]}, declared {field.spec!r}",
            field=field.name,
            dtype=DTYPES[code][0],
        )
    field.spec.check_shape(field.name, shape)
    if len(shape) > limits.TENSOR_RANK_MAX:
        raise TypeMismatchError(
            f"field {field.name!r} has rank {len(shape)}, TENSOR_RANK_MAX is {limits.TENSOR_RANK_MAX}"
        )
    size = math.prod(shape) * DTYPES[code][2]
    if size > limits.MESSAGE_BYTES_MAX:
        raise CapacityError(
            f"field {field.name!r} takes {size} bytes, MESSAGE_BYTES_MAX is {limits.MESSAGE_BYTES_MAX}",
            limit="MESSAGE_BYTES_MAX",
            value=size,
        )


def check_shared(
    values: list[Any], name: str, a: TensorField, a_axis: int, b: TensorField, b_axis: int
) -> None:
    """Raise unless one named dimension has the same size in both places (descriptors stand in `values`)."""
    left, right = values[a.position], values[b.position]
    if left is None or right is None:
        return
    ours = left[a_axis + 1 if a_axis >= 0 else a_axis]
    theirs = right[b_axis + 1 if b_axis >= 0 else b_axis]
    if ours != theirs:
        raise TypeMismatchError(
            f"dimension {name!r} is {ours} in field {a.name!r} and {theirs} in field {b.name!r}",
            field=b.name,
            dimension=name,
        )
