"""The two hops of a chain over an attached port: received views in, encoded messages out.

Everything native or of the client is here, so that `stage_chain` stays plain. One thread per pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fabric.errors import PeerProtocolError, StaleHandleError, WouldBlock
from fabric.messages import MessageHeader, message_type
from fabric.messages.view import refuse

# layout.hpp Reason
EXPIRED = 1
CORRUPTED = 11
TRANSFORM_DROP = 13
TRANSFORM_ERROR = 14


class StageMessage:
    """A received view whose end is decided once; the slot is given back with it."""

    __slots__ = ("header", "native", "value")

    def __init__(self, view: Any) -> None:
        self.value = view
        self.native = view._native
        self.header: MessageHeader = view.header

    def ack(self) -> None:
        """End as delivered to the next hop."""
        self.value.ack()
        self.value.release()

    def drop(self, expired: bool = False) -> None:
        """End as dropped(transform_drop), or dropped(expired)."""
        self._refuse(EXPIRED if expired else TRANSFORM_DROP)

    def fail(self) -> None:
        """End as failed(transform_error)."""
        self._refuse(TRANSFORM_ERROR)

    def _refuse(self, reason: int) -> None:
        self.value.nack(reason)
        self.value.release()


class Encoded(NamedTuple):
    """One message as the native sender takes it."""

    meta: bytes
    tensors: list[Any]
    payload_bytes: int
    source: StageMessage
    value: Any


class StageInlet:
    """Receives on hop `stage`; `receiver` is the client's."""

    def __init__(self, receiver: Any) -> None:
        self._receiver = receiver
        self.type = receiver.type

    def receive_many(self, count: int, deadline_ns: int) -> Sequence[StageMessage]:
        """Return what is there, at most `count`; waits for the first until `deadline_ns`."""
        receiver = self._receiver
        natives = receiver.native.receive_many(count, deadline_ns)
        return [StageMessage(self._decode(native)) for native in natives]

    def _decode(self, native: Any) -> Any:
        try:
            return self.type.decode(native, self._receiver)
        except PeerProtocolError:
            refuse(native, CORRUPTED)
            native.release()
            raise


class StageOutlet:
    """Sends on hop `stage + 1`; `sender` is the client's."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender

    def prepare(self, value: Any, source: Any) -> Encoded:
        """Encode a message that the transform made."""
        meta, tensors = message_type(type(value)).encode(value)
        return Encoded(meta, tensors, _size(meta, tensors), source, value)

    def forward(self, source: Any) -> Encoded:
        """Take a received message as it is: its own bytes, its tensors from the slot."""
        view = source.value
        tensors = message_type(type(view)).tensors_of(view)
        return Encoded(source.native.meta, tensors, source.header.payload_bytes, source, view)

    def send(self, message: Any, deadline_ns: int) -> None:
        """Send with the key, expiry, correlation and reply flow of the input."""
        native = message.source.native
        options = {
            "correlation": native.correlation,
            "reply_flow": native.reply_flow,
            "expires_ns": native.expires_ns,
        }
        flow = self._choose(message)
        for _ in range(3):  # a segment may be taken by another sender of the port before the retry
            try:
                self._sender.native.send(
                    message.meta, message.tensors, native.key, deadline_ns, flow=flow, **options
                )
                return
            except StaleHandleError:
                if not flow:
                    raise
                self._sender.forget_flow(flow)  # the receiver it was pinned to is gone
                flow = 0
            except Exception as need:
                if type(need).__name__ != "NeedSegment":
                    raise
                self._sender.provide(need, deadline_ns)
        raise WouldBlock(f"no arena slot for {message.payload_bytes} bytes")

    def _choose(self, message: Encoded) -> int:
        """Ask the channel's policy; on the last hop it chooses among the receivers."""
        if not self._sender.has_policy:
            return 0
        value, native = message.value, message.source.native
        return int(self._sender.choose(value, native.key, message.meta, message.tensors))


def _size(meta: bytes, tensors: list[Any]) -> int:
    return len(meta) + sum(t.nbytes if hasattr(t, "nbytes") else len(t) for t in tensors)
