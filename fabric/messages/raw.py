"""The built-in type of plain bytes: a channel of it carries any buffer, without fields and without encoding.

Where a class of a message is asked for, the class `bytes` stands for it. On the wire a short payload is the message's
meta itself; a longer one, and an empty one, is its only tensor beside a meta of one byte. A received message is a view
(`fabric._native.BytesMessage`): buffer protocol, ``len()``, ``bytes()``; it holds its slot, if it has one.
"""

from __future__ import annotations

from typing import Any, Final

from fabric import limits
from fabric.errors import CapacityError, PeerProtocolError, TypeMismatchError
from fabric.messages.declare import MessageType
from fabric.messages.schema import FieldSchema, Schema

TAG: Final = b"\x01"  # bind/bytes_message.hpp kBytesTag
#: bind/bytes_message.hpp kPlainBytesMax: what is left of the inline part behind its head
PLAIN_BYTES_MAX: Final = limits.INLINE_BYTES_MAX - 8
_FIELD: Final = FieldSchema("data", "raw")  # no declared field can have this type


class BytesType(MessageType):
    """What stands for `bytes` where other types have a `MessageType`."""

    def __init__(self) -> None:
        self.schema = Schema("bytes", 1, [_FIELD])
        self.cls = self.view = self.draft = bytes
        self.names: list[str] = []
        self.scalar_names: list[str] = []
        self.tensors = []
        self.parts, self.records = {}, {}
        self.encode = _encode
        self.decode = _decode
        self.native_encode = self.native_unpack = self.native_plan = self.native_decode = None

    def defaults(self) -> dict[str, Any]:
        """Return nothing: there are no fields."""
        return {}

    def tensors_of(self, view: Any) -> list[Any]:
        """Return the buffer of a received message, unless its meta is all that there is."""
        return [view] if is_apart(view) else []

    def plan_loan(self, shapes: dict[str, Any]) -> list[tuple[int, tuple[int, ...], int]]:
        """Refuse: a sender of bytes lends by size."""
        raise TypeMismatchError("a channel of bytes has no tensor fields: write loan(size)")


def is_apart(data: Any) -> bool:
    """Tell whether a payload travels as a tensor."""
    return not 0 < len(data) <= PLAIN_BYTES_MAX


def view_bytes(message: Any) -> memoryview:
    """Return the bytes of a buffer as they will travel.

    Raises
    ------
    TypeMismatchError
        No buffer, or one that is not contiguous.
    CapacityError
        Longer than `limits.MESSAGE_BYTES_MAX`.
    """
    try:
        view = memoryview(message)
        if view.nbytes == 0:
            return memoryview(b"")
        data = view.cast("B") if view.ndim != 1 or view.format != "B" else view
        if not data.contiguous:
            raise TypeError("it is not contiguous; send a copy: bytes(…)")
    except (TypeError, ValueError) as error:
        raise TypeMismatchError(
            f"this channel carries bytes, the message is {type(message).__name__}: {error}"
        ) from error
    if data.nbytes > limits.MESSAGE_BYTES_MAX:
        raise CapacityError(
            f"a message of {data.nbytes} bytes, MESSAGE_BYTES_MAX is {limits.MESSAGE_BYTES_MAX}",
            limit="MESSAGE_BYTES_MAX", value=data.nbytes,
        )  # fmt: skip
    return data


def _encode(message: Any) -> tuple[bytes, list[Any]]:
    data = view_bytes(message)
    return (TAG, [data]) if is_apart(data) else (bytes(data), [])


def _decode(native: Any, source: Any) -> Any:
    """Return the view of a native message; raises `PeerProtocolError` on one that is no message of bytes."""
    from fabric._native import BytesMessage

    try:
        return BytesMessage(native, source.provide)
    except PeerProtocolError as error:
        raise PeerProtocolError(f"not a message of the built-in bytes type: {error}") from error


BYTES: Final = BytesType()
