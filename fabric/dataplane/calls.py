"""One request in flight, and what its records say: flags, and the report of a responder that failed."""

from __future__ import annotations

import collections
from typing import Any, Final

import msgspec

from fabric import errors

# layout.hpp RecordFlag
FLAG_STREAM_END: Final = 1 << 2
FLAG_STREAM_MORE: Final = 1 << 3
FLAG_ERROR: Final = 1 << 4
FLAG_CANCEL: Final = 1 << 5
_unpack = msgspec.msgpack.Decoder().decode


class Call:
    """One request in flight. States: waiting → (replies)* → done; `error` set when it ended badly."""

    __slots__ = (
        "correlation", "deadline_ns", "error", "flow", "is_done", "lost", "lost_flow", "preferred", "replies",
        "reply_flow", "sequence", "source",
    )  # fmt: skip

    def __init__(self, correlation: int, deadline_ns: int) -> None:
        self.correlation = correlation
        self.deadline_ns = deadline_ns
        self.flow = 0  # 0: not sent, or sent again to whom only the native sender knows
        self.preferred = 0  # the flow that the channel's policy gives it; 0: none
        self.reply_flow = 0
        self.lost_flow = 0  # reply flow of the responder that was lost
        self.source = 0  # reply flow of the first reply; no other is listened to
        self.sequence = 0
        self.is_done = False
        self.error: Exception | None = None
        self.lost: Exception | None = None  # the responder is gone; replies may still be queued
        self.replies: collections.deque[Any] = collections.deque()


def remote_error(meta: bytes) -> errors.FabricError:
    """Return what the responder reported."""
    try:
        fields = _unpack(meta)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        fields = None
    found = errors.from_wire(fields)
    if isinstance(found, errors.CancelledRequestError):
        return found
    context = {k: v for k, v in found.context.items() if k not in ("code", "message")}
    context.setdefault("error", type(found).__name__)
    return errors.RemoteError(f"the responder failed: {found.message}", **context)
