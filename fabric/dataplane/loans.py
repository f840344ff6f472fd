"""A loan as its writer sees it: arrays over one slot, and a draft that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabric import limits
from fabric.dataplane.naming import Named
from fabric.errors import ClosedError, LoanLimitError, TypeMismatchError
from fabric.messages.tensor import DTYPES, FP8, as_fp8

if TYPE_CHECKING:
    from fabric.dataplane.sender import Sender


class DraftLoan:
    """A slot being written: `draft` has every field, its tensors are writable arrays over the slot."""

    def __init__(self, type_: Any, native: Any, plan: list[Any], shapes: dict[str, Any]) -> None:
        self.native = native
        self.type = type_
        self.draft = type_.draft()
        self._given: dict[str, Any] = {}
        for name, value in type_.defaults().items():
            setattr(self.draft, name, value)
        tensors = iter([_array(native, index, *item) for index, item in enumerate(plan)])
        for field in type_.tensors:
            if field.spec.is_list:
                self._given[field.name] = tuple(next(tensors) for _ in shapes[field.name])
                setattr(self.draft, field.name, list(self._given[field.name]))
            else:
                self._given[field.name] = next(tensors)
                setattr(self.draft, field.name, self._given[field.name])

    def encode(self) -> tuple[bytes, list[Any]]:
        """Return (meta, arrays) of the draft; `TypeMismatchError` when a tensor was replaced, not written."""
        for name, given in self._given.items():
            now = getattr(self.draft, name, None)
            if isinstance(given, tuple):
                same = isinstance(now, list) and len(now) == len(given)
                same = same and all(a is b for a, b in zip(now, given, strict=True))  # type: ignore[arg-type]
            else:
                same = now is given
            if not same:
                raise TypeMismatchError(
                    f"field {name!r} of a loan was replaced; write in place: m.{name}[...] = values",
                    field=name,
                )
        found: tuple[bytes, list[Any]] = self.type.encode(self.draft)
        return found


def take_loan(sender: Sender[Any], shapes: dict[str, Any], deadline_ns: int) -> DraftLoan:
    """Take one slot for tensors of `shapes`; waits for arena memory until the deadline.

    Raises
    ------
    TypeMismatchError
        A shape is missing, unknown, or breaks the declaration.
    LoanLimitError
        Larger than `limits.SEGMENT_BYTES_MAX`.
    ClosedError, DeadlineExceeded, CapacityError
    """
    if sender.is_closed:
        raise ClosedError(f"the sender of {sender.channel!r} was closed")
    plan = sender.type.plan_loan(shapes)
    sizes = [size for _, _, size in plan]
    if sum(sizes) > limits.SEGMENT_BYTES_MAX:
        raise LoanLimitError(
            f"a loan of {sum(sizes)} bytes, SEGMENT_BYTES_MAX is {limits.SEGMENT_BYTES_MAX}",
            limit="SEGMENT_BYTES_MAX",
        )
    while True:
        try:
            with Named(sender.channel):
                return DraftLoan(sender.type, sender.native.loan(sizes), plan, shapes)
        except sender.need_segment as need:
            sender.provide(need, deadline_ns)


def _array(native: Any, index: int, code: int, shape: tuple[int, ...], _: int) -> Any:
    """Return the writable array over tensor `index`; None for one that is absent."""
    import numpy

    if not code:
        return None
    array = numpy.frombuffer(native.tensor(index), DTYPES[code][1]).reshape(shape)
    name = DTYPES[code][0]
    return as_fp8(array, name) if name in FP8 else array
