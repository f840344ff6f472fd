"""What the use seam carries: plain bytes in and out, whether the channel's type is a declared message or `bytes`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    @contextmanager
    def loaned(sender: Any, value: bytes, **options: Any) -> Iterator[None]:
        """Write `value` into memory lent by `sender`, a synchronous or an asyncio one; leaving sends it."""
        with sender.loan(data=(len(value),), **options) as draft:
            draft.size = len(value)
            draft.data[...] = np.frombuffer(value, np.uint8)
            yield


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
    @contextmanager
    def loaned(sender: Any, value: bytes, **options: Any) -> Iterator[None]:
        with sender.loan(len(value), **options) as memory:
            memory[:] = value
            yield


CONTENTS: Final = {content.name: content for content in (Typed, Plain)}
