"""The ends of a join over an attached port: received parts whose end is decided once, outputs encoded once.

Everything of the client is here, so that `join_host` stays plain. An input may be ended by another thread than the one
that received it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from fabric.messages import MessageHeader, message_type

# layout.hpp Reason
EXPIRED: Final = 1
TRANSFORM_DROP: Final = 13
TRANSFORM_ERROR: Final = 14


class InputMessage:
    """A received view; its slot is given back with its end."""

    __slots__ = ("header", "value")

    def __init__(self, view: Any) -> None:
        self.value = view
        self.header: MessageHeader = view.header

    def ack(self) -> None:
        """End as delivered."""
        self.value.ack()
        self.value.release()

    def drop(self, expired: bool = False) -> None:
        """End as dropped(transform_drop), or dropped(expired)."""
        self.value.nack(EXPIRED if expired else TRANSFORM_DROP)
        self.value.release()

    def fail(self) -> None:
        """End as failed(transform_error)."""
        self.value.nack(TRANSFORM_ERROR)
        self.value.release()

    def release(self) -> None:
        """Give the slot back without an end: a newer copy of the message is to have it."""
        self.value.release()


class Encoded(NamedTuple):
    """One output as its sender takes it."""

    value: Any
    meta: bytes
    tensors: list[Any]
    key: bytes
    expires_ns: int


class Output:
    """The sending end of a join. `accepted` counts as the sender's ledger does: what was rejected, too."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self.endpoint: int = sender.endpoint
        self.accepted = 0

    def prepare(self, value: Any, key: bytes, expires_ns: int) -> Encoded:
        """Encode a message; it has the key of its request and the earliest expiry of its parts (0: none)."""
        meta, tensors = message_type(type(value)).encode(value)
        meta, tensors = self._sender.coded(meta, tensors, expires_ns)
        return Encoded(value, meta, tensors, key, expires_ns)

    def send(self, output: Encoded, deadline_ns: int) -> None:
        """Send, waiting for room until `deadline_ns`; raises as `Sender.send` does."""
        sender = self._sender
        value, meta, tensors, key, expires_ns = output
        flow = sender.choose(value, key, meta, tensors) if sender.has_policy else 0
        sender.send_encoded(value, meta, tensors, key, deadline_ns, flow, expires_ns)
        self.accepted += 1

    def rejected(self) -> None:
        """Count a message that the channel's overflow policy rejected: its ledger has it, as failed."""
        self.accepted += 1
