"""The two hops of a chain over an attached port: received views in, encoded messages out.

Everything native or of the client is here, so that `stage_chain` stays plain. One thread per pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fabric.errors import PeerProtocolError, StaleHandleError, WouldBlock
from fabric.messages import MessageHeader, MessageType, message_type
from fabric.messages.envelope import is_envelope
from fabric.messages.view import refuse
from fabric.worker.kept_views import KeptViews

# layout.hpp Reason
EXPIRED = 1
CORRUPTED = 11
TRANSFORM_DROP = 13
TRANSFORM_ERROR = 14


class StageMessage:
    """A received view whose end is decided once; the slot is given back with it."""

    __slots__ = ("_inlet", "native", "value")

    def __init__(self, view: Any, inlet: StageInlet | None = None) -> None:
        self.value = view
        self.native = view._native
        self._inlet = inlet

    @property
    def header(self) -> MessageHeader:
        """The envelope, made when it is looked at."""
        header: MessageHeader = self.value.header
        return header

    @property
    def key(self) -> bytes | None:
        """The message's key."""
        key: bytes | None = self.native.key
        return key

    @property
    def expires_ns(self) -> int:
        """Absolute CLOCK_MONOTONIC, 0: none."""
        return int(self.native.expires_ns)

    @property
    def identity(self) -> tuple[int, int, int]:
        """Producer, its incarnation and sequence."""
        native = self.native
        return native.producer, native.producer_incarnation, native.sequence

    def ack(self) -> None:
        """End as delivered to the next hop."""
        self.native.ack()
        self._give_back()

    def drop(self, expired: bool = False) -> None:
        """End as dropped(transform_drop), or dropped(expired)."""
        self._refuse(EXPIRED if expired else TRANSFORM_DROP)

    def fail(self) -> None:
        """End as failed(transform_error)."""
        self._refuse(TRANSFORM_ERROR)

    def _refuse(self, reason: int) -> None:
        self.value.nack(reason)
        self._give_back()

    def _give_back(self) -> None:
        view, self.value = self.value, None
        if self._inlet is not None:
            self._inlet.kept.give_back(view)
        else:
            view.release()


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
        self.kept = KeptViews()
        self.type = receiver.type

    @property
    def type(self) -> MessageType:
        """What messages are decoded as; a reload may bring an equal type of its own."""
        return self._type

    @type.setter
    def type(self, type_: MessageType) -> None:
        self._type = type_
        self._type_id = type_.schema.type_id

    def receive_many(self, count: int, deadline_ns: int) -> Sequence[StageMessage]:
        """Return what is there, at most `count`; waits for the first until `deadline_ns`."""
        self.kept.sweep()
        decode, receiver = self._type.decode, self._receiver
        found = []
        for native in receiver.native.receive_many(count, deadline_ns):
            try:
                view = decode(native, receiver) if self._is_own(native) else self._decode(native)
            except PeerProtocolError:
                view = self._decode(native)
            found.append(StageMessage(view, self))
        return found

    def _is_own(self, native: Any) -> bool:
        return bool(native.type == self._type_id)

    def _decode(self, native: Any) -> Any:
        if not self._is_own(native):  # another version, which the receiver knows or refuses
            return self._receiver.decode(native)
        try:
            return self.type.decode(native, self._receiver)
        except PeerProtocolError:
            if is_envelope(native.meta):
                return self._receiver.decode(native)
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
        size = _size(meta, tensors)
        meta, tensors = self._sender.coded(meta, tensors)
        return Encoded(meta, tensors, size, source, value)

    def forward(self, source: Any) -> Encoded:
        """Take a received message as it is: its own bytes, its tensors from the slot."""
        view = source.value
        type_ = message_type(type(view))
        if source.native.type != type_.schema.type_id:  # its bytes are of another version
            return self.prepare(view, source)
        tensors = type_.tensors_of(view)
        meta, tensors = self._sender.coded(source.native.meta, tensors)
        return Encoded(meta, tensors, source.native.payload_bytes, source, view)

    def send_many(self, messages: Sequence[Encoded], expires_ns: int) -> int:
        """Send the first of `messages` with one doorbell, as many as go at once; returns how many.

        What cannot go so (a policy decides, memory is missing) is left to `send`.
        """
        sender = self._sender
        if sender.has_policy:
            return 0
        keys = []
        for message in messages:
            native = message.source.native
            if native.correlation or native.reply_flow:
                return 0
            keys.append(native.key)
        try:
            return int(
                sender.native.send_many(
                    [m.meta for m in messages],
                    [m.tensors for m in messages],
                    keys,
                    0,
                    expires_ns=expires_ns,
                )
            )
        except Exception:  # none was accepted: `send` meets the cause again and says what it is
            return 0

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
