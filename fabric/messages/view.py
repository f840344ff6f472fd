"""A received message: scalars decoded, tensors made on first access over the slot that holds them.

A view is an instance of its message class. It keeps the slot until released, collected, or the port closes; arrays
taken from it keep it alive, but an explicit `release` ends them too. One thread at a time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fabric import limits
from fabric.errors import ClosedError, ConfigError, PeerProtocolError, TypeMismatchError
from fabric.messages.tensor import DTYPES, FP8, TensorSpec, as_fp8, as_torch

if TYPE_CHECKING:
    from collections.abc import Callable

_CHECKED_MAX = 256  # descriptors per field whose check is remembered
CONSUMER_ERROR = 5  #: layout.hpp Reason::consumer_error
REASON_COUNT = 16  #: layout.hpp Reason::count


class Source(Protocol):
    """What a view needs from the endpoint that received it."""

    def provide(self, need: Exception) -> None:
        """Map the segment that `need` (a native NeedSegment) names; raises if it cannot."""


class MessageHeader(NamedTuple):
    """What travels with a message beside its fields."""

    key: bytes | None
    sequence: int
    producer: int
    producer_incarnation: int
    redelivered: bool
    expires_ns: int  #: absolute CLOCK_MONOTONIC, 0 = none
    payload_bytes: int
    correlation: int


def refuse(native: Any, reason: int) -> None:
    """End a native message as failed or dropped for `reason`; one that has ended stays as it ended."""
    try:
        native.nack(reason)
    except ValueError:  # acknowledged, refused before, or at_most_once: handing it over was its end
        return


class ViewMethods:
    """What a received message can do; mixed into the view class of every message type."""

    __slots__ = ()
    _native: Any
    _source: Any

    @property
    def header(self) -> MessageHeader:
        """Key, sequence, producer and the rest of the envelope."""
        native = self._native
        if native is None:
            raise ClosedError("this message was released; take its header before")
        return MessageHeader(
            native.key,
            native.sequence,
            native.producer,
            native.producer_incarnation,
            native.redelivered,
            native.expires_ns,
            native.payload_bytes,
            native.correlation,
        )

    def ack(self) -> None:
        """Acknowledge: an `at_least_once` message ends as delivered. Idempotent; no effect on `at_most_once`."""
        if self._native is not None:
            self._native.ack()

    def nack(self, reason: int = CONSUMER_ERROR) -> None:
        """Refuse: an `at_least_once` message ends as failed(consumer_error). No effect on one that has ended.

        Raises
        ------
        ConfigError
            `reason` is no reason number.
        """
        if type(reason) is not int or not 0 < reason < REASON_COUNT:
            raise ConfigError(f"nack for {reason!r:.100}: reasons are 1 to {REASON_COUNT - 1}")
        if self._native is not None:
            refuse(self._native, reason)

    def release(self) -> None:
        """Give the slot back; arrays taken from this message must not be read afterwards. Acknowledges nothing.

        Idempotent. Scalars stay readable; `ack` after `release` still works.
        """
        if self._native is not None:
            self._native.release()

    def as_torch(self, field: str) -> Any:
        """Return tensor `field` as a torch tensor over the slot (bf16, fp8 as such); do not write to it.

        A list of tensors gives a list.
        """
        value = getattr(self, field)
        if isinstance(value, list):
            return [as_torch(item) for item in value]
        return None if value is None else as_torch(value)

    def copy_into(self, field: str, target: Any, item: int | None = None) -> int:
        """Copy tensor `field` into a writable buffer with one copy, checked before and after; return the bytes.

        `item` is the index in a list of tensors.
        """
        index = self.tensor_index(field, item)
        while True:
            try:
                return int(self._native.copy_into(index, target))
            except Exception as need:
                if type(need).__name__ != "NeedSegment":
                    raise
                self._source.provide(need)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        if self._native is not None:
            self._native.release()

    def tensor_index(self, field: str, item: int | None = None) -> int:
        """Return the position of a tensor field (of one item of a list) among the tensors of the message."""
        raise NotImplementedError


def tensor_property(
    slot: Any, place: int | Callable[[Any], int], field: str, spec: TensorSpec
) -> property:
    """Return the property that turns the wire descriptor in `slot` into a read-only array, once.

    `place` is the tensor's index in the message, or what tells it of a view.
    """
    read_slot: Callable[[Any], Any] = slot.__get__
    write_slot: Callable[[Any, Any], None] = slot.__set__
    allowed = frozenset(spec.dtypes)
    checked: dict[Any, tuple[str, tuple[int, ...]]] = {}
    fixed = place if isinstance(place, int) else None
    has_fp8 = not allowed.isdisjoint(FP8)

    def read(self: Any) -> Any:
        raw = read_slot(self)
        if type(raw) is not tuple:
            if raw is None and spec.optional:
                return None
            if hasattr(raw, "dtype"):
                return raw
            raise PeerProtocolError(
                f"field {field!r}: the message holds {type(raw).__name__}, not a tensor"
            )
        try:
            numpy_name, shape = checked[raw]
        except (KeyError, TypeError):  # not seen before, or no flat list
            numpy_name, shape = check_descriptor(field, spec, allowed, raw)
            if len(checked) >= _CHECKED_MAX:
                checked.clear()
            checked[raw] = numpy_name, shape
        index = fixed if fixed is not None else place(self)  # type: ignore[operator]
        try:
            array = self._native.tensor(index, numpy_name, shape)
        except Exception as first:
            array = _materialise(self, first, index, numpy_name, shape)
        if has_fp8:
            array = _tagged(array, raw[0])
        write_slot(self, array)
        return array

    return property(read, doc=f"{spec!r}, read-only.")


def list_property(slot: Any, place: Callable[[Any], int], field: str, spec: TensorSpec) -> property:
    """Return the property that turns the wire descriptors in `slot` into read-only arrays, once."""
    read_slot: Callable[[Any], Any] = slot.__get__
    write_slot: Callable[[Any, Any], None] = slot.__set__
    allowed = frozenset(spec.dtypes)

    def read(self: Any) -> Any:
        raws = read_slot(self)
        if type(raws) is not list or not raws or type(raws[0]) is not tuple:
            return raws
        first = place(self)
        arrays = []
        for item, raw in enumerate(raws):
            numpy_name, shape = check_descriptor(f"{field}[{item}]", spec, allowed, raw)
            try:
                array = self._native.tensor(first + item, numpy_name, shape)
            except Exception as error:
                array = _materialise(self, error, first + item, numpy_name, shape)
            arrays.append(_tagged(array, raw[0]))
        write_slot(self, arrays)
        return arrays

    return property(read, doc=f"{spec!r}, read-only.")


def _tagged(array: Any, code: int) -> Any:
    """Let an array of fp8 bit patterns say so, that it can be sent on or given to torch."""
    name = DTYPES[code][0]
    return as_fp8(array, name) if name in FP8 else array


def check_descriptor(
    field: str, spec: TensorSpec, allowed: frozenset[str], raw: tuple[Any, ...]
) -> tuple[str, tuple[int, ...]]:
    """Range-check a descriptor from the wire; return (numpy dtype name, shape)."""
    code, shape = (raw[0] if raw else None), raw[1:]
    known = DTYPES.get(code) if type(code) is int else None
    if known is None or known[0] not in allowed:
        raise PeerProtocolError(
            f"field {field!r}: dtype code {code!r} in the message, declared {spec!r}"
        )
    if len(shape) > limits.TENSOR_RANK_MAX or any(type(n) is not int or n < 0 for n in shape):
        raise PeerProtocolError(
            f"field {field!r}: impossible shape {list(shape)[:20]} in the message"
        )
    if math.prod(shape) * known[2] > limits.MESSAGE_BYTES_MAX:
        raise PeerProtocolError(
            f"field {field!r}: shape {list(shape)} is larger than MESSAGE_BYTES_MAX"
        )
    try:
        spec.check_shape(field, shape)
    except TypeMismatchError as error:
        raise PeerProtocolError(f"the message breaks its type: {error.message}") from error
    return known[1], shape


def _materialise(
    view: Any, error: Exception, index: int, numpy_name: str, shape: tuple[int, ...]
) -> Any:
    """Go on after `error`: map the segment that was missing and try again, else raise it."""
    native = view._native
    if native is None:
        raise ClosedError("this message holds no payload")
    while True:
        # Native exceptions are matched by name so that a message type needs no native module.
        if type(error).__name__ != "NeedSegment":
            raise error
        view._source.provide(error)
        try:
            return native.tensor(index, numpy_name, shape)
        except Exception as again:
            error = again
