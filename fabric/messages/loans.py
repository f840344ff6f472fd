"""What a loan of a message type needs: dtype, shape and size of every tensor, checked before a slot is taken. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fabric import limits
from fabric.errors import CapacityError, TypeMismatchError
from fabric.messages import tensor_check
from fabric.messages.tensor import DTYPE_CODES, DTYPES, FP8, fp8_name, numpy_codes

if TYPE_CHECKING:
    from fabric.messages.declare import MessageType

Plan = list[tuple[int, tuple[int, ...], int]]


def plan_loan(type_: MessageType, shapes: dict[str, Any]) -> Plan:
    """Return (dtype code, shape, bytes) per tensor, in the order of the message's tensors.

    Parameters
    ----------
    shapes : dict
        Field → shape, or (shape, dtype name), or an array-like whose shape and dtype are taken; of a list field, a
        list of these.

    Raises
    ------
    TypeMismatchError
        A tensor is missing, unknown, or breaks its declaration.
    CapacityError
        More tensors than `limits.TENSORS_PER_MESSAGE_MAX`.
    """
    unknown = set(shapes) - {field.name for field in type_.tensors}
    if unknown or not type_.tensors:
        raise TypeMismatchError(
            f"{type_.schema.label} has no tensor field {', '.join(sorted(unknown)) or 'at all'}"
        )
    plan: Plan = []
    values: list[Any] = [None] * len(type_.names)
    for field in type_.tensors:
        if field.name not in shapes and field.spec.optional:
            plan.append((0, (), 0))
        elif field.name not in shapes:
            raise TypeMismatchError(
                f"loan: give the shape of {field.name!r} ({field.spec!r})", field=field.name
            )
        elif field.spec.is_list:
            plan += [_planned(field, given) for given in _items(field, shapes[field.name])]
        else:
            plan.append(_planned(field, shapes[field.name]))
            values[field.position] = (plan[-1][0], *plan[-1][1])
    for pair in tensor_check.shared_axes(type_.tensors):
        tensor_check.check_shared(values, *pair)
    if len(plan) > limits.TENSORS_PER_MESSAGE_MAX:
        raise CapacityError(
            f"a loan of {len(plan)} tensors, TENSORS_PER_MESSAGE_MAX is {limits.TENSORS_PER_MESSAGE_MAX}",
            limit="TENSORS_PER_MESSAGE_MAX",
        )
    return plan


def _planned(field: tensor_check.TensorField, given: Any) -> tuple[int, tuple[int, ...], int]:
    if field.spec.devices and "cpu" not in field.spec.devices:
        raise TypeMismatchError(
            f"loan: {field.name!r} is {field.spec!r}, a loan lies on the host: send() it",
            field=field.name,
        )
    code, shape = _shape_of(field, given)
    tensor_check.check_tensor(field, code, shape)
    return code, shape, math.prod(shape) * DTYPES[code][2]


def _items(field: tensor_check.TensorField, given: Any) -> list[Any]:
    if not isinstance(given, list):
        raise TypeMismatchError(
            f"loan: {field.name!r} is {field.spec!r}: give a list of shapes", field=field.name
        )
    return given


def _shape_of(field: tensor_check.TensorField, given: Any) -> tuple[int, tuple[int, ...]]:
    if hasattr(given, "shape") and hasattr(given, "dtype"):
        code = _code_of(field, given)
        shape: Any = given.shape
    elif isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], str):
        shape, code = given[0], next((c for c, d in DTYPES.items() if d[0] == given[1]), 0)
    else:
        shape, code = given, next(c for c, d in DTYPES.items() if d[0] == field.spec.dtypes[0])
    try:
        shape = (int(shape),) if isinstance(shape, int) else tuple(int(n) for n in shape)
    except (TypeError, ValueError) as error:
        raise TypeMismatchError(
            f"loan: {given!r:.200} is no shape for {field.name!r}", field=field.name
        ) from error
    if code == 0 or any(n < 0 for n in shape):
        raise TypeMismatchError(
            f"loan: {given!r:.200} is no shape and dtype for {field.name!r}", field=field.name
        )
    return code, shape


def _code_of(field: tensor_check.TensorField, given: Any) -> int:
    """Return the dtype code of an array-like: numpy's, or torch's by its name; 0 for one that does not travel."""
    fp8 = fp8_name(given)
    if fp8 is not None:
        return DTYPE_CODES[fp8]
    code = numpy_codes().get(given.dtype, 0)
    if code:
        return field.bytes_as if code == DTYPE_CODES["u8"] else code
    name = str(given.dtype).replace("torch.", "")
    by_name = {d[1]: c for c, d in reversed(DTYPES.items())} | {"bfloat16": DTYPE_CODES["bf16"]}
    by_name |= {long: DTYPE_CODES[short] for short, long in FP8.items()}
    return by_name.get(name, 0)
