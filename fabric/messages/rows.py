"""Split a message by the rows of its tensors, and put one together again.

Rows are the first dimension of every tensor field declared with the name `rows` there. Numpy takes and puts whole
parts; nothing runs per row. Pure; numpy is imported at use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fabric.errors import PeerProtocolError, TypeMismatchError
from fabric.messages.tensor import to_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fabric.messages.declare import MessageType
    from fabric.messages.tensor_check import TensorField

ROWS: Final = "rows"


class Part(NamedTuple):
    """Rows of one message that go to one target."""

    target: int  #: number among the targets
    rows: Any  #: int64 array of row numbers, ascending
    message: Any


def row_fields(type_: MessageType) -> list[TensorField]:
    """Return the tensor fields that are split by rows; `TypeMismatchError` when there is none."""
    fields = [f for f in type_.tensors if f.spec.dims[:1] == (ROWS,)]
    lists = [f.name for f in fields if f.spec.is_list]
    if lists or not fields:
        what = f"field {lists[0]!r} is a list" if lists else "no tensor field has 'rows' first"
        raise TypeMismatchError(
            f'{type_.schema.label} cannot be scattered: {what}; declare Tensor["rows ...", ...]'
        )
    return fields


def as_index(index: Any, count: int, wraps: bool) -> Any:
    """Return `index` as an int64 array of target numbers.

    Parameters
    ----------
    index : array of int64, shape [rows]
    count : int
        Targets there are.
    wraps : bool
        Whether numbers are taken modulo `count`, else each must be below it.

    Raises
    ------
    TypeMismatchError
        Not integers, not of rank 1, or out of range.
    """
    import numpy

    plain = isinstance(index, (list, tuple, numpy.ndarray))
    array = numpy.asarray(index) if plain else to_array(index)[1]
    if array.size == 0:
        array = array.astype(numpy.int64)
    if array.ndim != 1 or array.dtype not in (numpy.int64, numpy.int32):
        raise TypeMismatchError(
            f"index is {array.dtype.name}{list(array.shape)}: give int64 of shape [rows]"
        )
    array = array.astype(numpy.int64, copy=False)
    if wraps:
        return array % count
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < count:
        raise TypeMismatchError(
            f"index has numbers from {int(array.min())} to {int(array.max())}, there are {count} targets"
        )
    return array


def split(type_: MessageType, message: Any, index: Any, count: int, wraps: bool) -> list[Part]:
    """Return the parts of a message by target, none empty but for a message without rows: it is one part.

    Raises
    ------
    TypeMismatchError
        A tensor with rows has another number of them than `index`.
    """
    import numpy

    numbers = as_index(index, count, wraps)
    arrays = {}
    for field in row_fields(type_):
        value = getattr(message, field.name)
        if value is None and field.spec.optional:
            continue
        array = to_array(value)[1]
        if array.ndim == 0 or array.shape[0] != numbers.shape[0]:
            raise TypeMismatchError(
                f"field {field.name!r} has shape {list(array.shape)}, index has {numbers.shape[0]} rows",
                field=field.name,
            )
        arrays[field.name] = array
    order = numpy.argsort(numbers, kind="stable")
    used, first = numpy.unique(numbers[order], return_index=True)
    if not len(used):
        return [Part(0, order, _with(type_, message, {}))]
    pieces = numpy.split(order, first[1:])
    return [
        Part(int(target), rows, _with(type_, message, {n: a[rows] for n, a in arrays.items()}))
        for target, rows in zip(used, pieces, strict=True)
    ]


def _with(type_: MessageType, message: Any, replaced: dict[str, Any]) -> Any:
    values = {n: replaced[n] if n in replaced else getattr(message, n) for n in type_.names}
    return type_.cls(**values)


def combine(type_: MessageType, count: int, parts: Sequence[tuple[Any, Any]]) -> Any:
    """Return one message of `count` rows out of (row numbers, answer) pairs.

    Fields without rows are those of the answer for the first row. The message owns its memory.

    Raises
    ------
    PeerProtocolError
        An answer has another number of rows than its part, or tensors that do not fit those of the others.
    """
    import numpy

    named = {field.name for field in row_fields(type_)}
    _, lead = min(parts, key=lambda part: int(part[0][0]) if len(part[0]) else -1)
    values: dict[str, Any] = {}
    for name in type_.names:
        if name not in named:
            values[name] = _owned(getattr(lead, name))
            continue
        pieces = [(rows, getattr(answer, name)) for rows, answer in parts]
        if all(piece is None for _, piece in pieces):
            values[name] = None
            continue
        values[name] = _put(name, count, pieces, numpy)
    return type_.cls(**values)


def _put(name: str, count: int, pieces: list[tuple[Any, Any]], numpy: Any) -> Any:
    first = next(piece for _, piece in pieces if piece is not None)
    whole = numpy.empty((count, *first.shape[1:]), first.dtype)
    for number, (rows, piece) in enumerate(pieces, 1):
        if piece is None or piece.shape != (len(rows), *first.shape[1:]):
            found = "absent" if piece is None else list(piece.shape)
            raise PeerProtocolError(
                f"part {number} of {len(pieces)}: field {name!r} of the answer is {found}, "
                f"expected {[len(rows), *first.shape[1:]]}",
                field=name,
            )
        if piece.dtype != first.dtype or piece.dtype.metadata != first.dtype.metadata:
            raise PeerProtocolError(
                f"part {number} of {len(pieces)}: field {name!r} of the answer is {piece.dtype.name}, "
                f"the others have {first.dtype.name}",
                field=name,
            )
        whole[rows] = piece
    return whole


def _owned(value: Any) -> Any:
    """Return a value that outlives the answer it came in."""
    if isinstance(value, list) and value and hasattr(value[0], "dtype"):
        return [item.copy() for item in value]
    return value.copy() if hasattr(value, "dtype") else value
