"""The answering end of a request channel.

Iterate over requests, answer each with `reply`, `stream` or `fail`. A cancelled or expired request is dropped before it
is handed over; one being worked on sees `cancelled`. Thread-safe; a `Request` belongs to one thread at a time.
"""

from __future__ import annotations

import collections
import inspect
import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import msgspec

from fabric import errors
from fabric.dataplane.calls import FLAG_CANCEL, FLAG_ERROR, FLAG_STREAM_END, FLAG_STREAM_MORE
from fabric.dataplane.deadlines import absolute_ns, left_s, monotonic_ns
from fabric.dataplane.naming import Named
from fabric.dataplane.receiver import Receiver
from fabric.dataplane.sender import Sender
from fabric.messages.view import refuse

if TYPE_CHECKING:
    from fabric.dataplane.client import Port

log = logging.getLogger("fabric.responder")
M = TypeVar("M")
R = TypeVar("R")
_CANCELLED: Final = 9  # layout.hpp Reason::cancelled
_LOOK_AHEAD: Final = 64  # requests taken at once when looking for cancellations
_ITERATE_NS: Final = 1_000_000_000
_pack = msgspec.msgpack.Encoder().encode


class Request(Generic[M, R]):
    """One request to answer.

    Attributes
    ----------
    message : M
        The request's fields, a view; released when the request is answered.
    """

    def __init__(self, responder: Responder[M, R], message: Any) -> None:
        self.responder = responder
        self.message = message
        native = message._native
        # A request that was redelivered names the reply flow of the responder that was lost: ours goes by its flow.
        own = responder.reply_flow_of(native.flow)
        self._id = (native.producer, native.correlation, own or native.reply_flow)
        self.deadline_ns: int = native.expires_ns
        self._native = native
        self._is_cancelled = False
        self._is_answered = False

    @property
    def correlation(self) -> int:
        """The requester's number of this request."""
        return int(self._id[1])

    @property
    def cancelled(self) -> bool:
        """Whether the requester gave up: it cancelled, or its deadline passed. Looks at what has arrived."""
        if not self._is_cancelled:
            self.responder.look_for_cancellations()
        return self._is_cancelled or (0 < self.deadline_ns <= monotonic_ns())

    def left_s(self) -> float:
        """Return the seconds until the requester gives up; infinity where it set no deadline."""
        return left_s(self.deadline_ns) if self.deadline_ns else float("inf")

    def reply(self, message: R, *, may_wait: bool = True) -> None:
        """Answer with one message; the request ends here.

        Raises
        ------
        CancelledRequestError
            The requester gave up; nothing was sent.
        PeerLostError
            The requester is gone.
        TypeMismatchError
            The reply breaks its declaration; the request is still open.
        """
        self._send(message, 0, may_wait)
        self._finish()

    def send(self, message: R, *, may_wait: bool = True) -> None:
        """Send one message of a streamed reply; `end` closes the stream. Raises like `reply`."""
        self._send(message, FLAG_STREAM_MORE, may_wait)

    def end(self, *, may_wait: bool = True) -> None:
        """End a streamed reply; the request ends here. Raises like `reply`."""
        self._transmit(b"", [], FLAG_STREAM_END, may_wait)
        self._finish()

    def stream(self, messages: Iterable[R]) -> int:
        """Send every message as a streamed reply, then end it; returns how many were sent.

        A cancelled request stops the iteration between two messages (its generator is closed).
        """
        count = 0
        iterator = iter(messages)
        try:
            for message in iterator:
                self.send(message)
                count += 1
        finally:
            if inspect.isgenerator(iterator):
                iterator.close()
        self.end()
        return count

    def fail(self, error: BaseException) -> None:
        """Answer with an error, which `call` raises as `RemoteError`; never raises for a requester that is gone."""
        if self._is_answered:
            return
        report = errors.to_wire(error)
        report["context"] = {**report["context"], "error": type(error).__name__}
        try:
            self._transmit(_pack(report), [], FLAG_ERROR | FLAG_STREAM_END)
        except errors.FabricError:
            if not self.cancelled:
                self.responder.undelivered_count += 1
        self._finish()

    def release(self) -> None:
        """Give the request's slot back early; the message must not be read any more."""
        self.message.release()

    def mark_cancelled(self) -> None:
        """Note that the requester cancelled."""
        self._is_cancelled = True

    def _send(self, message: R, flags: int, may_wait: bool) -> None:
        meta, tensors = self.responder.replies.type.encode(message)
        self._transmit(meta, tensors, flags, may_wait)

    def _transmit(self, meta: bytes, tensors: list[Any], flags: int, may_wait: bool = True) -> None:
        if self._is_answered:
            raise errors.ClosedError("this request was answered already")
        if self.cancelled:
            self._finish()
            raise errors.CancelledRequestError(
                f"request {self.correlation} was cancelled", correlation=self.correlation
            )
        deadline_ns = (self.deadline_ns or absolute_ns(None)) if may_wait else 0
        self.responder.transmit(self._id, meta, tensors, flags, deadline_ns)

    def _finish(self) -> None:
        if not self._is_answered:
            self._is_answered = True
            self.responder.forget(self._id)
            self._native.ack()
            self.message.release()

    def __enter__(self) -> Request[M, R]:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            self.fail(error)
        elif not self._is_answered:
            self.fail(errors.InternalError("the responder left the request unanswered"))


class Responder(Generic[M, R]):
    """Receives requests of type `M`, answers with type `R`; made by `Port.responder`. Iterates over requests."""

    def __init__(self, port: Port, requests: Receiver[M], replies: Sender[R]) -> None:
        self._port = port
        self.requests = requests
        self.replies = replies
        self.channel = requests.channel
        self.endpoint = requests.endpoint
        self._lock = threading.Lock()
        self._queue: collections.deque[Any] = collections.deque()
        self._open: weakref.WeakValueDictionary[tuple[int, int, int], Request[M, R]] = (
            weakref.WeakValueDictionary()
        )
        self._named = Named(requests.channel)
        self.is_closed = False
        self.undelivered_count = 0

    def receive(self, timeout: float | None = None) -> Request[M, R] | None:
        """Return the next request, or None after `timeout` seconds (default 30); raises like `Receiver.receive`."""
        return self.receive_until(absolute_ns(timeout))

    def receive_until(self, deadline_ns: int) -> Request[M, R] | None:
        """Like `receive`, with an absolute deadline; 0 looks only."""
        while True:
            with self._lock:
                while self._queue:
                    request = self._accept(self._queue.popleft())
                    if request is not None:
                        return request
            with self._named:
                native = self.requests.native.receive(deadline_ns)
            if native is None:
                return None
            with self._lock:
                self._sort(native)

    def serve(self, handler: Callable[[Any], Any]) -> None:
        """Answer requests until closed: `handler(message)` returns a reply, or a generator of replies.

        What it raises is reported to the requester; the loop goes on.
        """
        for request in self:
            try:
                answer: Any = handler(request.message)
                if inspect.isgenerator(answer):
                    request.stream(cast(Iterable[R], answer))
                else:
                    request.reply(answer)
            except (errors.CancelledRequestError, errors.PeerLostError):
                continue  # nobody waits for this one any more
            except Exception as error:  # the requester's to know; the next request is not concerned
                log.warning("channel %s: the handler raised", self.channel, exc_info=True)
                request.fail(error)

    def pending(self) -> int:
        """Return how many requests wait here."""
        return len(self._queue) + self.requests.pending()

    def look_for_cancellations(self) -> None:
        """Take what has arrived off the endpoint, marking cancelled requests; the rest waits in order."""
        try:
            natives = (
                self.requests.native.receive_many(_LOOK_AHEAD, 0)
                if len(self._queue) < _LOOK_AHEAD
                else []
            )
        except errors.FabricError:
            return  # closed: every request is about to end
        with self._lock:
            for native in natives:
                self._sort(native)

    def transmit(
        self,
        identity: tuple[int, int, int],
        meta: bytes,
        tensors: list[Any],
        flags: int,
        deadline_ns: int,
    ) -> None:
        """Send one part of a reply to the requester that `identity` names; without a deadline it does not wait."""
        _, correlation, reply_flow = identity
        need_segment = self._port.need_segment
        while True:
            try:
                with self._named:
                    self.replies.native.send(
                        meta,
                        tensors,
                        None,
                        deadline_ns,
                        flow=reply_flow,
                        correlation=correlation,
                        flags=flags,
                    )
                return
            except need_segment as need:
                if not deadline_ns:
                    raise
                self.replies.provide(need, deadline_ns)
            except (errors.StaleHandleError, errors.BrokenError) as error:
                raise errors.PeerLostError(
                    f"channel {self.channel!r}: the requester of {correlation} is gone",
                    channel=self.channel,
                ) from error

    def reply_flow_of(self, flow: int) -> int:
        """Return the flow on which requests of an incoming flow are answered; 0 when it is not known."""
        return int(self._port.flow_in(flow).get("reply_flow") or 0)

    def forget(self, identity: tuple[int, int, int]) -> None:
        """Stop watching a request for its cancellation."""
        with self._lock:
            self._open.pop(identity, None)

    def close(self) -> None:
        """Close both directions; requests that wait end as failed(closed). Idempotent."""
        self.is_closed = True
        self.requests.close()
        self.replies.close()

    def __iter__(self) -> Iterator[Request[M, R]]:
        return self

    def __next__(self) -> Request[M, R]:
        while True:
            if self.is_closed or self._port.is_closed:
                raise StopIteration
            try:
                request = self.receive_until(monotonic_ns() + _ITERATE_NS)
            except errors.ClosedError:
                if self.is_closed or self._port.is_closed:
                    raise StopIteration from None
                raise
            if request is not None:
                return request

    def __enter__(self) -> Responder[M, R]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sort(self, native: Any) -> None:
        """Queue a request, or apply a cancellation; lock held."""
        if not native.flags & FLAG_CANCEL:
            self._queue.append(native)
            return
        producer, correlation = native.producer, native.correlation
        native.ack()
        native.release()
        for identity, request in list(self._open.items()):
            if identity[:2] == (producer, correlation):
                request.mark_cancelled()
        for waiting in list(self._queue):
            if (waiting.producer, waiting.correlation) == (producer, correlation):
                self._queue.remove(waiting)
                refuse(waiting, _CANCELLED)
                waiting.release()

    def _accept(self, native: Any) -> Request[M, R] | None:
        """Make the request of a native message; None when it expired while it waited; lock held."""
        if 0 < native.expires_ns <= monotonic_ns():
            refuse(native, _EXPIRED)
            native.release()
            return None
        request: Request[M, R] = Request(self, self.requests.decode(native))
        self._open[request._id] = request
        return request


_EXPIRED: Final = 1  # layout.hpp Reason::expired
