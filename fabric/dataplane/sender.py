"""The sending end of a channel.

Thread-safe. A message is accepted when `send` returns; how it ended is in `stats`. Waits (for credit, for a slot, for
a receiver) end at the deadline with an error that names what was full.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from fabric import limits
from fabric.dataplane.coding.calls import CodecCalls
from fabric.dataplane.deadlines import DEFAULT_NS, absolute_ns, left_s, monotonic_ns
from fabric.dataplane.loans import Lending, lend
from fabric.dataplane.naming import Named, name_channel
from fabric.dataplane.routed_calls import RoutedCalls
from fabric.errors import (
    BrokenError,
    CapacityError,
    DeadlineExceeded,
    FabricError,
    RejectedError,
    StaleHandleError,
    TypeMismatchError,
    WouldBlock,
)
from fabric.messages import MessageType

if TYPE_CHECKING:
    from fabric.dataplane.client import Port

M = TypeVar("M")
ENDS: Final = ("none", "delivered", "dropped", "failed")
REASONS: Final = (
    "none", "expired", "overflow_oldest", "overflow_newest", "rejected", "consumer_error", "peer_lost",
    "outcome_unknown", "path_broken", "cancelled", "closed", "corrupted", "no_target", "transform_drop",
    "transform_error", "sender_lost",
)  # fmt: skip
#: says that the flow a policy chose is no more; nothing was sent
FLOW_GONE: Final = (StaleHandleError, BrokenError)
_SLOT_WAIT_S: Final = 0.02  # between asking for arena memory again; progress is made while waiting


def as_key(key: str | bytes | None) -> bytes | None:
    """Return a key as bytes.

    Raises
    ------
    TypeMismatchError
        Neither text nor bytes.
    CapacityError
        Above `limits.KEY_BYTES_MAX`.
    """
    if key is None or (type(key) is bytes and len(key) <= limits.KEY_BYTES_MAX):
        return key
    if not isinstance(key, (str, bytes, bytearray, memoryview)):
        raise TypeMismatchError(
            f"a key of type {type(key).__name__}: give str or bytes, e.g. str({key!r:.40})"
        )
    try:
        data = key.encode() if isinstance(key, str) else bytes(key)
    except UnicodeEncodeError as error:
        raise TypeMismatchError(f"a key that is no text: {error}; give bytes") from error
    if len(data) > limits.KEY_BYTES_MAX:
        raise CapacityError(
            f"a key of {len(data)} bytes, KEY_BYTES_MAX is {limits.KEY_BYTES_MAX}",
            limit="KEY_BYTES_MAX",
        )
    return data


class Sender(RoutedCalls, CodecCalls, Generic[M]):
    """Sends messages of one type on one channel; made by `Port.sender`.

    Attributes
    ----------
    channel : str
    type : MessageType
    native
        The native endpoint, for stages and benchmarks.
    """

    flow_gone = FLOW_GONE

    def __init__(
        self, port: Port, channel: str, type_: MessageType, native: Any, answer: dict[str, Any]
    ) -> None:
        self._port = port
        self.channel = channel
        self.type = type_
        self.native = native
        self.endpoint: int = answer["endpoint"]
        self.klass = str(answer.get("klass", "token"))
        self.delivery = str(answer.get("delivery", "at_most_once"))
        #: of a send that names none (the channel's `deadline`); None leaves the fabric's default
        self.deadline_s: float | None = answer.get("deadline_s") or None
        self._encode = type_.encode
        self._native_send = native.send
        self.need_segment: type[Exception] = port.need_segment
        rows = [flow["row"] for flow in port.flows_of(self.endpoint) if flow.get("row")]
        self.set_route(answer.get("route"), rows)
        self.set_codecs(answer.get("codecs"))
        self.is_closed = False

    def send(
        self, message: M, key: str | bytes | None = None, deadline: float | None = None
    ) -> int:
        """Send one message; tensors are copied once, so it may be reused at once.

        Parameters
        ----------
        message : M
            Of the channel's type; a received message may be sent on.
        key : str or bytes, optional
            Messages of one key stay in order and go to one consumer (`stream`); policies see it.
        deadline : float, optional
            Seconds. Bounds the wait for room, and the message's life: not consumed by then, it is dropped(expired).
            Default: wait 30 s, live without bound. 0: do not wait.

        Returns
        -------
        int
            Sequence number, growing by one per accepted message.

        Raises
        ------
        TypeMismatchError
            A field breaks the declaration; named. Nothing was sent.
        DeadlineExceeded
            No room in time (names credit, consumer or memory). Nothing was sent.
        WouldBlock
            No room and ``deadline=0``.
        RejectedError
            No room, and the channel's overflow policy is ``reject``. Nothing was sent.
        CapacityError
            A limit was reached, or the message is larger than a whole arena; names both sizes.
        ClosedError, BrokenError

        Notes
        -----
        Interrupting this call (KeyboardInterrupt) leaves open whether the message was accepted.
        """
        meta, tensors = self._encode(message)
        deadline = self.deadline_s if deadline is None else deadline
        deadline_ns = monotonic_ns() + DEFAULT_NS if deadline is None else absolute_ns(deadline)
        expires_ns = deadline_ns if deadline is not None else 0
        if key is not None:
            key = as_key(key)
        flow = self.choose(message, key, meta, tensors) if self._pins is not None else 0
        if self.has_codec:
            meta, tensors = self.coded(meta, tensors, expires_ns)
        try:
            if not flow and not expires_ns:
                sent: int = self._native_send(meta, tensors, key, deadline_ns)
            else:
                sent = self._native_send(
                    meta, tensors, key, deadline_ns, flow=flow, expires_ns=expires_ns
                )
            return sent
        except self.need_segment:
            pass
        except FabricError as error:
            if not flow or not isinstance(error, FLOW_GONE):
                name_channel(error, self.channel)
                raise
        return self.send_encoded(message, meta, tensors, key, deadline_ns, flow, expires_ns)

    def send_many(
        self,
        messages: Sequence[M],
        keys: Iterable[str | bytes | None] | None = None,
        deadline: float | None = None,
    ) -> int:
        """Send several messages with one doorbell; returns how many were accepted, in order, before the deadline.

        Raises
        ------
        TypeMismatchError
            A message breaks its declaration; nothing was sent.
        RejectedError
            No room for the first one, and the overflow policy is ``reject``.
        """
        deadline = self.deadline_s if deadline is None else deadline
        deadline_ns = absolute_ns(deadline)
        encoded, named = self.encode_many(messages, keys)
        if self._pins is not None:
            return self._send_each(messages, named, deadline, deadline_ns)
        expires_ns = deadline_ns if deadline is not None else 0
        metas, tensors = [meta for meta, _ in encoded], [buffers for _, buffers in encoded]
        done = 0
        while done < len(encoded):
            try:
                sent = int(self.native.send_many(
                    metas[done:], tensors[done:], named[done:], deadline_ns, expires_ns=expires_ns
                ))  # fmt: skip
            except self.need_segment as need:
                self.provide(need, deadline_ns)
                continue
            except FabricError as error:
                if done and isinstance(error, (DeadlineExceeded, WouldBlock, RejectedError)):
                    return done
                name_channel(error, self.channel)
                raise
            done += sent
            if sent == 0 or monotonic_ns() >= deadline_ns:
                break
        return done

    def loan(
        self, *, key: str | bytes | None = None, deadline: float | None = None, **shapes: Any
    ) -> Lending:
        """Write a message in place; leaving the block sends it, an exception inside discards it.

        Parameters
        ----------
        **shapes
            Tensor field → shape, or ``(shape, dtype name)``, or an array-like to take both from; the dtype is
            otherwise the first declared.

        Returns
        -------
        context manager
            Gives a draft that has every field: tensors are writable arrays over the slot (bf16 as uint16), scalars
            are assigned.

        Raises
        ------
        TypeMismatchError, DeadlineExceeded, LoanLimitError
        """
        return Lending(self, lambda: lend(self, shapes), as_key(key), deadline)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every accepted message has ended.

        Raises
        ------
        DeadlineExceeded
            Some are still out after `timeout` seconds (default 30); the message says how many.
        """
        deadline_ns = absolute_ns(timeout)
        with Named(self.channel):
            done = self.native.flush(deadline_ns)
        if not done:
            self.fail_flush()

    def fail_flush(self) -> None:
        """Raise the `DeadlineExceeded` of a flush."""
        out = sum(flow["outstanding"] for flow in self.native.flows())
        raise DeadlineExceeded(
            f"channel {self.channel!r}: {out} messages sent have not ended (not consumed or not acknowledged)",
            channel=self.channel, outstanding=out,
        )  # fmt: skip

    def cancel(self, sequence: int) -> bool:
        """Take back a message that waits for a consumer; False if it is on its way."""
        return bool(self.native.cancel(sequence))

    def stats(self) -> dict[str, Any]:
        """Return messages by end, ``{"delivered": n, "dropped(expired)": n, …}``, delivered bytes and flows."""
        counts = {
            ENDS[end] if end == 1 else f"{ENDS[end]}({REASONS[reason]})": count
            for (end, reason), count in self.native.counts().items()
            if count
        }
        return {
            **counts,
            "delivered_bytes": self.native.delivered_bytes(),
            "flows": self.native.flows(),
        }

    def close(self) -> None:
        """Close this end: no more sends; what was accepted still ends. Idempotent."""
        if not self.is_closed:
            self.is_closed = True
            self.native.close()
            self._port.closed_endpoint(self.endpoint)

    def __enter__(self) -> Sender[M]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- for the port and the asyncio face

    def send_at_once(self, message: M, key: str | bytes | None, /) -> int | None:
        """Send where neither waiting nor Python is needed; None: nothing was done, here it always is."""
        return None

    def send_many_at_once(self, messages: Sequence[M], /) -> int:
        """Return how many of `messages` were sent so."""
        return 0

    def provide(self, need: Exception, deadline_ns: int) -> None:
        """Get the arena memory that a native call lacked; waits for a slot where a limit is reached."""
        try:
            self._port.provide(need, deadline_ns)
        except CapacityError as full:
            if full.context.get("size_bytes", 0) > full.context.get("limit_bytes", math.inf):
                name_channel(full, self.channel)
                raise  # it would not fit if everything were free
            if left_s(deadline_ns) <= 0:
                raise DeadlineExceeded(
                    f"channel {self.channel!r}: no arena slot came free: {full}"
                ) from full
            # Progress while waiting: slots come back through the return rings.
            self.native.flush(min(deadline_ns, monotonic_ns() + int(_SLOT_WAIT_S * 1e9)))

    def encode_many(
        self, messages: Sequence[M], keys: Iterable[str | bytes | None] | None
    ) -> tuple[list[tuple[bytes, list[Any]]], list[bytes | None]]:
        """Encode all messages and keys before any is sent; raises like `send_many`."""
        encoded = [self._encode(message) for message in messages]
        if self.has_codec:
            encoded = [self.coded(meta, tensors) for meta, tensors in encoded]
        named: list[bytes | None] = [None] * len(encoded)
        if keys is not None:
            named = [as_key(key) for key in keys]
        if len(named) != len(encoded):
            raise TypeMismatchError(f"{len(encoded)} messages and {len(named)} keys")
        return encoded, named

    def send_encoded(
        self, message: M, meta: bytes, tensors: list[Any], key: bytes | None, deadline_ns: int, flow: int,
        expires_ns: int,
    ) -> int:  # fmt: skip
        """Send what was encoded, getting memory for it, and on other flows where the chosen one is gone."""
        others = self.other_flows(message, key, meta, tensors, flow)
        while True:
            try:
                return int(
                    self.native.send(
                        meta, tensors, key, deadline_ns, flow=flow, expires_ns=expires_ns
                    )
                )
            except self.need_segment as need:
                self.provide(need, deadline_ns)
            except FabricError as error:
                if not flow or not isinstance(error, FLOW_GONE):
                    name_channel(error, self.channel)
                    raise
                flow = next(others)
