"""A loan as its writer sees it: memory of one slot, and the block in which it is written, whose end sends it."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from fabric import limits
from fabric.dataplane.deadlines import absolute_ns
from fabric.dataplane.naming import Named
from fabric.errors import ClosedError, LoanLimitError, TypeMismatchError
from fabric.messages.tensor import DTYPES, FP8, as_fp8

if TYPE_CHECKING:
    from fabric.dataplane.sender import Sender


class Lent(Protocol):
    """A slot being written."""

    native: Any
    draft: Any  #: what the writer gets

    def encode(self) -> tuple[bytes, list[Any]]:
        """Return (meta, buffers) of what was written."""


class Lending:
    """What `Sender.loan` gives: entering it takes a slot, leaving it sends what was written there.

    Each step is also a method that does not wait, for the asyncio face: it raises the sender's `need_segment` or
    `WouldBlock`, and may be called again.
    """

    def __init__(
        self,
        sender: Sender[Any],
        take: Callable[[], Lent],
        key: bytes | None,
        deadline: float | None,
    ) -> None:
        self.sender = sender
        self.key = key
        self._take = take
        self._deadline = sender.deadline_s if deadline is None else deadline
        self.deadline_ns = self.expires_ns = 0
        self._lent: Lent | None = None

    def begin(self) -> None:
        """Start the clock."""
        self.deadline_ns = absolute_ns(self._deadline)
        self.expires_ns = self.deadline_ns if self._deadline is not None else 0
        if self.sender.is_closed:
            raise ClosedError(f"the sender of {self.sender.channel!r} was closed")

    def take(self) -> Any:
        """Take a slot; returns the draft to write."""
        with Named(self.sender.channel):
            self._lent = self._take()
        return self._lent.draft

    @property
    def draft(self) -> Any:
        """What the writer was given."""
        assert self._lent is not None
        return self._lent.draft

    def encode(self) -> tuple[bytes, list[Any]]:
        """Return (meta, buffers) of what was written."""
        assert self._lent is not None
        return self._lent.encode()

    def send(self, meta: bytes, flow: int, deadline_ns: int) -> int:
        """Send what was written, waiting until `deadline_ns` at the longest."""
        assert self._lent is not None
        with Named(self.sender.channel):
            sent: int = self.sender.native.send_loan(
                self._lent.native,
                meta,
                self.key,
                deadline_ns,
                flow=flow,
                expires_ns=self.expires_ns,
            )
        return sent

    def sending(self, meta: bytes, tensors: list[Any]) -> Callable[[int], int]:
        """Return what sends it on a flow without waiting: the slot itself, or what a codec made of it."""
        coded, parts = self.sender.coded(meta, tensors, self.expires_ns)
        if coded is meta:
            return lambda flow: self.send(meta, flow, 0)

        def send(flow: int) -> int:
            native, expires_ns = self.sender.native, self.expires_ns
            sent = int(native.send(coded, parts, self.key, 0, flow=flow, expires_ns=expires_ns))
            self.discard()
            return sent

        return send

    def discard(self) -> None:
        """Give the slot back unsent; nothing happens to one that was sent."""
        if self._lent is not None:
            self._lent.native.discard()

    def __enter__(self) -> Any:
        self.begin()
        return self._providing(self.take)

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            meta, tensors = self.encode()
            if self.sender.has_codec and self._sent_coded(meta, tensors):
                return
            flow = self.sender.choose(self.draft, self.key, meta, tensors)
            others = self.sender.other_flows(self.draft, self.key, meta, tensors, flow)
            while not self._sent(meta, flow):
                flow = next(others)
        except BaseException:
            self.discard()
            raise

    def _sent_coded(self, meta: bytes, tensors: list[Any]) -> bool:
        """Send what was written encoded, from memory of its own, where a codec says so."""
        coded = self.sender.coded(meta, tensors, self.expires_ns)
        if coded[0] is meta:
            return False
        flow = self.sender.choose(self.draft, self.key, meta, tensors)
        self.sender.send_encoded(
            self.draft, *coded, self.key, self.deadline_ns, flow, self.expires_ns
        )
        self.discard()
        return True

    def _sent(self, meta: bytes, flow: int) -> bool:
        """Send on a flow; False when it is gone."""
        try:
            self._providing(lambda: self.send(meta, flow, self.deadline_ns))
        except self.sender.flow_gone:
            if not flow:
                raise
            return False
        return True

    def _providing(self, attempt: Callable[[], Any]) -> Any:
        while True:
            try:
                return attempt()
            except self.sender.need_segment as need:
                self.sender.provide(need, self.deadline_ns)


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


def lend(sender: Sender[Any], shapes: dict[str, Any]) -> DraftLoan:
    """Take one slot for tensors of `shapes`; raises the sender's `need_segment` where there is none.

    Raises
    ------
    TypeMismatchError
        A shape is missing, unknown, or breaks the declaration.
    LoanLimitError
        Larger than `limits.SEGMENT_BYTES_MAX`.
    """
    plan = sender.type.plan_loan(shapes)
    sizes = [size for _, _, size in plan]
    refuse_beyond_limit(sum(sizes))
    return DraftLoan(sender.type, sender.native.loan(sizes), plan, shapes)


def refuse_beyond_limit(size: int) -> None:
    """Raise `LoanLimitError` for what no slot can hold."""
    if size > limits.SEGMENT_BYTES_MAX:
        raise LoanLimitError(
            f"a loan of {size} bytes, SEGMENT_BYTES_MAX is {limits.SEGMENT_BYTES_MAX}",
            limit="SEGMENT_BYTES_MAX",
        )


def _array(native: Any, index: int, code: int, shape: tuple[int, ...], _: int) -> Any:
    """Return the writable array over tensor `index`; None for one that is absent."""
    import numpy

    if not code:
        return None
    array = numpy.frombuffer(native.tensor(index), DTYPES[code][1]).reshape(shape)
    name = DTYPES[code][0]
    return as_fp8(array, name) if name in FP8 else array
