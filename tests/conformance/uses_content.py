"""What the use seam carries: plain bytes in and out, whether the channel's type is a declared message or `bytes`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

import fabric
from fabric import limits
from fabric.messages.raw import PLAIN_BYTES_MAX

MIB: Final = 1 << 20


@fabric.message("uses.parcel")
class Parcel:
    size: int
    data: fabric.Tensor["n", "u8"]


class Typed:
    """A message of one scalar and one tensor."""

    name = "typed"
    type: Any = Parcel
    #: sizes between which the way of a payload changes: absent, in the record, in a slot, in a segment of its own
    edges = (0, 1, limits.INLINE_BYTES_MAX - 64, limits.INLINE_BYTES_MAX, 2 * MIB + 1)

    @staticmethod
    def message(value: bytes) -> Any:
        return Parcel(len(value), np.frombuffer(value, np.uint8))

    @staticmethod
    def value(view: Any) -> bytes:
        data = view.data.tobytes()
        assert len(data) == view.size
        return data

    @staticmethod
    def lend(sender: Any, size: int, **options: Any) -> Any:
        """Return the block of a loan, of a synchronous or an asyncio sender."""
        return sender.loan(data=(size,), **options)

    @staticmethod
    def fill(draft: Any, value: bytes) -> None:
        draft.size = len(value)
        draft.data[...] = np.frombuffer(value, np.uint8)


class Plain:
    """The built-in type."""

    name = "bytes"
    type: Any = bytes
    edges = (0, 1, PLAIN_BYTES_MAX, PLAIN_BYTES_MAX + 1, 2 * MIB + 1)

    @staticmethod
    def message(value: bytes) -> Any:
        return value

    @staticmethod
    def value(view: Any) -> bytes:
        return bytes(view)

    @staticmethod
    def lend(sender: Any, size: int, **options: Any) -> Any:
        return sender.loan(size, **options)

    @staticmethod
    def fill(draft: Any, value: bytes) -> None:
        draft[:] = value


CONTENTS: Final = {content.name: content for content in (Typed, Plain)}
