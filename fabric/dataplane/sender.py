"""The sending end of a channel.

Thread-safe. A message is accepted when `send` returns; how it ended is in `stats`. Waits (for credit, for a slot, for
a receiver) end at the deadline with an error that names what was full.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from fabric import limits
from fabric.dataplane.deadlines import DEFAULT_NS, absolute_ns, left_s, monotonic_ns
from fabric.dataplane.loans import Lending, lend
from fabric.dataplane.naming import Named, name_channel
from fabric.dataplane.routes import RoutePins, header_fields
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


class Sender(Generic[M]):
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
        self._route: str | None = None
        self._pins: RoutePins | None = None
        self.set_route(answer.get("route"))
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
        return self._send_on(message, meta, tensors, key, deadline_ns, flow, expires_ns)

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

    @property
    def has_policy(self) -> bool:
        """Whether a custom routing policy chooses the flow."""
        return self._pins is not None

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
        named: list[bytes | None] = [None] * len(encoded)
        if keys is not None:
            named = [as_key(key) for key in keys]
        if len(named) != len(encoded):
            raise TypeMismatchError(f"{len(encoded)} messages and {len(named)} keys")
        return encoded, named

    def set_route(self, route: str | None) -> None:
        """Let another policy choose from the next message on; pins of the one before are forgotten."""
        if (route or None) != self._route:
            self._route = route or None
            self._pins = RoutePins(self._ask_route) if route else None

    def forget_flow(self, flow: int) -> None:
        """Unpin a flow that is gone."""
        pins = self._pins
        if pins is not None:
            pins.forget_flow(flow)

    def _send_each(
        self, messages: Sequence[M], keys: list[bytes | None], deadline: float | None, deadline_ns: int
    ) -> int:  # fmt: skip
        """A routing policy may have to be asked for every message."""
        for count, (message, key) in enumerate(zip(messages, keys, strict=True)):
            left = left_s(deadline_ns)
            if count and deadline_ns and not left:
                return count
            try:
                self.send(message, key, left if deadline is not None else None)
            except (DeadlineExceeded, WouldBlock, RejectedError):
                if count:
                    return count
                raise
        return len(messages)

    def _send_on(
        self, message: M, meta: bytes, tensors: list[Any], key: bytes | None, deadline_ns: int, flow: int,
        expires_ns: int,
    ) -> int:  # fmt: skip
        """Send after an attempt that found no memory, or that the chosen flow is gone."""
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

    def other_flows(
        self, message: Any, key: bytes | None, meta: bytes, tensors: list[Any], flow: int
    ) -> Iterator[int]:
        """Yield what to try instead of a flow that is gone: the policy's next choice, then the endpoint's own."""
        self.forget_flow(flow)
        other = self.choose(message, key, meta, tensors)
        if other != flow:
            yield other
            self.forget_flow(other)
        yield 0

    def pinned(self, key: bytes | None) -> int:
        """Return the flow that the channel's policy chose for `key` before; 0: `choose` has to ask."""
        return self._pins.pinned(key) if self._pins is not None else 0

    def choose(self, message: Any, key: bytes | None, meta: bytes, tensors: list[Any]) -> int:
        """Return the flow that the channel's policy gives this message; 0 where it did not answer."""
        pins = self._pins
        if pins is None:
            return 0

        def header() -> dict[str, Any]:
            size = len(meta) + sum(memoryview(tensor).nbytes for tensor in tensors)
            fields = header_fields(message, self.type.scalar_names)
            return {
                "channel": self.channel,
                "key": key,
                "klass": self.klass,
                "size": size,
                "fields": fields,
            }

        return pins.flow_for(key, header)

    def _ask_route(self, header: dict[str, Any]) -> tuple[int, float]:
        answer, _ = self._port.request("route_ask", header, limits.ROUTE_ASK_S)
        return int(answer.get("flow") or 0), float(answer.get("ttl_s") or 0.0)
