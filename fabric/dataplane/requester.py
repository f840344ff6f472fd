"""The asking end of a request channel: calls, streamed replies, cancellation.

Thread-safe, no thread of its own: of the callers that wait, one reads the replies for all. A call goes to the
responder that the channel's policy prefers, or with the fewest calls of ours; to one that has room for another reply.
When that responder is lost, the call fails as `PeerLostError`, for it may have acted; on an `at_least_once` channel
another responder gets the request, unless part of a streamed reply had come. Replies are taken from one responder only;
those of calls that ended are discarded.
"""

from __future__ import annotations

import collections
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from fabric import errors, limits
from fabric.dataplane.calls import (
    FLAG_CANCEL,
    FLAG_ERROR,
    FLAG_STREAM_END,
    FLAG_STREAM_MORE,
    Call,
    remote_error,
)
from fabric.dataplane.deadlines import absolute_ns, left_s, monotonic_ns
from fabric.dataplane.naming import Named, name_channel
from fabric.dataplane.receiver import Receiver
from fabric.dataplane.sender import Sender, as_key

if TYPE_CHECKING:
    from fabric.dataplane.client import Port

M = TypeVar("M")
R = TypeVar("R")

_LEADER_NS: Final = 50_000_000  # a leading reader looks this often whether its own call is done


class Requester(Generic[M, R]):
    """Sends requests of type `M` and returns replies of type `R`; made by `Port.requester`."""

    def __init__(self, port: Port, sender: Sender[M], replies: Receiver[R]) -> None:
        self._port = port
        self.sender = sender
        self.replies = replies
        self.channel = sender.channel
        self.endpoint = sender.endpoint
        self.need_segment: type[Exception] = port.need_segment
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._has_leader = False
        self._calls: dict[int, Call] = {}
        self._numbers = itertools.count(1)
        self._named = Named(sender.channel)
        self._is_closed = False
        self._again = sender.delivery == "at_least_once"

    def call(
        self, message: M, key: str | bytes | None = None, deadline: float | None = None
    ) -> Any:
        """Ask and return the answer.

        Parameters
        ----------
        message : M
        key : str or bytes, optional
            For routing policies.
        deadline : float, optional
            Seconds for everything (default 30): finding a responder, room, the answer. The responder sees it too.

        Returns
        -------
        R
            A view, as from `Receiver.receive`.

        Raises
        ------
        RemoteError
            The responder raised; ``context["error"]`` names the class.
        PeerLostError
            The responder died; whether it acted is unknown. On an ``at_least_once`` channel only when a streamed
            reply was interrupted.
        DeadlineExceeded
            No answer in time; the responder is told to stop.
        TypeMismatchError, ClosedError

        Notes
        -----
        KeyboardInterrupt cancels the request.
        """
        call = self.begin(message, key, deadline)
        try:
            return self.result(call)
        finally:
            self.finish(call)

    def stream(
        self, message: M, key: str | bytes | None = None, deadline: float | None = None
    ) -> Iterator[Any]:
        """Ask and iterate over the replies as they come; leaving early cancels the request.

        `deadline` bounds the whole stream. Raises like `call`, from the iterator.
        """
        call = self.begin(message, key, deadline)
        return self._iterate(call)

    def cancel(self, correlation: int) -> None:
        """Tell the responder to stop, and end the call with `CancelledRequestError`. Unknown calls are ignored."""
        with self._lock:
            call = self._calls.get(correlation)
            if call is None or call.is_done:
                return
            self._end(
                call,
                errors.CancelledRequestError(
                    f"request {correlation} was cancelled", correlation=correlation
                ),
            )
        self._send_cancel(call)

    def in_flight(self) -> list[int]:
        """Return the correlations of the calls that wait."""
        with self._lock:
            return list(self._calls)

    def close(self) -> None:
        """Close both directions; waiting calls get `ClosedError`. Idempotent."""
        with self._lock:
            self._is_closed = True
            for call in self._calls.values():
                self._end(call, errors.ClosedError(f"the requester of {self.channel!r} was closed"))
        self.sender.close()
        self.replies.close()

    def __enter__(self) -> Requester[M, R]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- parts of a call; the asyncio face uses them too

    def begin(self, message: M, key: str | bytes | None, deadline: float | None) -> Call:
        """Register a call and send its request; raises like `call`."""
        deadline_ns = absolute_ns(self.sender.deadline_s if deadline is None else deadline)
        call = Call(self.next_correlation(), deadline_ns or monotonic_ns())
        self.register(call)
        try:
            meta, tensors = self.sender.type.encode(message)
            asked = as_key(key)
            call.preferred = self.sender.preferred(message, asked, meta, tensors)
            self.send_request(call, meta, tensors, asked, deadline_ns)
        except BaseException:
            self.finish(call, cancel=False)
            raise
        return call

    def register(self, call: Call) -> None:
        """Take a call into the table of those whose replies are kept."""
        with self._lock:
            if self._is_closed:
                raise errors.ClosedError(f"the requester of {self.channel!r} was closed")
            if len(self._calls) >= limits.REQUESTS_IN_FLIGHT_MAX:
                raise errors.CapacityError(
                    f"{len(self._calls)} requests in flight, REQUESTS_IN_FLIGHT_MAX is {limits.REQUESTS_IN_FLIGHT_MAX}",
                    limit="REQUESTS_IN_FLIGHT_MAX",
                )
            self._calls[call.correlation] = call

    def next_correlation(self) -> int:
        """Return the number of a new call."""
        return next(self._numbers)

    def send_request(
        self,
        call: Call,
        meta: bytes,
        tensors: list[Any],
        key: bytes | None,
        wait_ns: int,
        may_provide: bool = True,
    ) -> None:
        """Send a call's request to a responder; tries others when one closes meanwhile."""
        need_segment = self._port.need_segment
        while True:
            self._choose(call, wait_ns)
            try:
                if self.send_to(call, meta, tensors, key, wait_ns):
                    return
            except need_segment as need:
                if not may_provide:
                    raise
                self.sender.provide(need, call.deadline_ns)

    def send_to(
        self, call: Call, meta: bytes, tensors: list[Any], key: bytes | None, wait_ns: int
    ) -> bool:
        """Send a call's request on the flow that was taken for it; False when that flow is gone."""
        try:
            call.sequence = self.sender.native.send(
                meta, tensors, key, wait_ns, flow=call.flow, correlation=call.correlation,
                reply_flow=call.reply_flow, expires_ns=call.deadline_ns,
            )  # fmt: skip
        except (errors.StaleHandleError, errors.BrokenError) as error:
            if not any(f["flow"] == call.flow for f in self._port.flows_of(self.endpoint)):
                return False
            name_channel(error, self.channel)
            raise
        except errors.FabricError as error:
            name_channel(error, self.channel)
            raise
        return True

    def begin_at(self, message: M, endpoint: int, deadline_ns: int) -> Call:
        """Send a request to one responder, by endpoint; `PeerLostError` when it is not there."""
        call = Call(self.next_correlation(), deadline_ns)
        self.register(call)
        try:
            meta, tensors = self.sender.type.encode(message)
            while True:
                flow = next((f for f in self.targets() if f["target_endpoint"] == endpoint), None)
                if flow is None:
                    raise errors.PeerLostError(f"channel {self.channel!r}: the responder is gone")
                with self._lock:
                    has_room = self.take_flow(call, flow)
                    if not has_room:
                        self._news.wait(min(left_s(deadline_ns), 0.1))
                if has_room:
                    try:
                        if self.send_to(call, meta, tensors, None, deadline_ns):
                            return call
                    except self.need_segment as need:
                        self.sender.provide(need, deadline_ns)
                elif monotonic_ns() >= deadline_ns:
                    self.expire(call)
        except BaseException:
            self.finish(call, cancel=False)
            raise

    def result(self, call: Call) -> Any:
        """Wait for the answer of a call that `begin` or `begin_at` sent; `finish` it afterwards. Raises like `call`."""
        reply = self._next(call)
        if reply is None:
            raise errors.RemoteError(
                f"channel {self.channel!r}: the responder answered with an empty stream"
            )
        return reply

    def targets(self) -> list[dict[str, Any]]:
        """Return the flows to responders that are there and awake, by endpoint."""
        flows = [f for f in self._port.flows_of(self.endpoint) if f["reply_flow"]]
        self._port.check()
        return sorted(
            (f for f in flows if not f.get("suspect")), key=lambda f: int(f["target_endpoint"])
        )

    def take_flow(self, call: Call, flow: dict[str, Any]) -> bool:
        """Reserve room for the reply of `call` on a flow; False while there is none. Lock held, or one thread only."""
        busy = sum(c.flow == flow["flow"] and not c.is_done for c in self._calls.values())
        if call.flow != flow["flow"] and busy >= self._reply_room(flow):
            return False
        call.flow, call.reply_flow = flow["flow"], flow["reply_flow"]
        return True

    def wait(self, calls: Sequence[Call], until_ns: int) -> None:
        """Wait until one of `calls` has something, at the longest until `until_ns`; reads for all callers."""
        with self._lock:
            while not any(c.replies or c.is_done for c in calls) and monotonic_ns() < until_ns:
                if self._has_leader or not calls:
                    self._news.wait(min(left_s(until_ns), 1.0))
                else:
                    self._lead(calls, until_ns)
                    return

    def take_ready(self) -> bool:
        """Read one reply without waiting and hand it to its call; False when there was none."""
        native = self.replies.native.receive(0)
        if native is None:
            return False
        with self._lock:
            self._deliver(native)
        return True

    def take_from(self, call: Call) -> tuple[bool, Any]:
        """Return (True, reply or None at the end) when `call` has something, else (False, None); raises its error."""
        if call.replies:
            return True, call.replies.popleft()
        if call.is_done:
            if call.error is not None:
                raise call.error
            return True, None
        return False, None

    def finish(self, call: Call, cancel: bool = True) -> None:
        """Forget a call; one that is not done is cancelled at the responder."""
        with self._lock:
            self._calls.pop(call.correlation, None)
            unfinished = not call.is_done
            call.is_done = True
        for reply in call.replies:
            reply.release()
        call.replies.clear()
        if unfinished and cancel:
            self._send_cancel(call)
        with self._lock:
            self._news.notify_all()  # there is room for another reply

    def expire(self, call: Call) -> None:
        """Raise the `DeadlineExceeded` of a call."""
        where = "the responder" if call.flow else "a responder"
        raise errors.DeadlineExceeded(
            f"channel {self.channel!r}: waited for {where} to answer request {call.correlation}",
            channel=self.channel,
        )

    def lose_flow(self, flow: int, reason: str) -> None:
        """A responder is gone: its calls fail once the replies that did arrive are read. Control thread."""
        with self._lock:
            for call in self._calls.values():
                if call.flow == flow and not call.is_done:
                    call.lost = errors.PeerLostError(
                        f"channel {self.channel!r}: the responder was lost ({reason}); it may have acted on "
                        f"request {call.correlation}",
                        channel=self.channel,
                        outcome="unknown",
                    )
                    call.flow, call.lost_flow = 0, call.reply_flow
            self._news.notify_all()

    def count_calls(self, flow: int, counts: list[int]) -> None:
        """Add the number of calls on `flow` whose answer is not whole: their reply flow is needed. Control thread."""
        with self._lock:
            counts.append(sum(c.flow == flow and not c.is_done for c in self._calls.values()))

    def fail_if_lost(self, call: Call) -> None:
        """End a call whose responder is gone and whose replies are all read."""
        with self._lock:
            self._settle_lost(call)

    def wake(self) -> None:
        """Let waiting callers look again (a responder came or went). Control thread."""
        with self._lock:
            self._news.notify_all()

    # ---- inside

    def _iterate(self, call: Call) -> Iterator[Any]:
        try:
            while (reply := self._next(call)) is not None:
                yield reply
        finally:
            self.finish(call)

    def _next(self, call: Call) -> Any:
        """Wait for the next reply of `call`; one of the waiting threads reads for all."""
        with self._lock:
            while True:
                found, reply = self.take_from(call)
                if found:
                    return reply
                if monotonic_ns() >= call.deadline_ns:
                    self.expire(call)
                if self._has_leader:
                    self._news.wait(min(left_s(call.deadline_ns), 1.0))
                    continue
                self._lead([call], call.deadline_ns)

    def _lead(self, calls: Sequence[Call], until_ns: int) -> None:
        """Read one reply with the lock released; called with the lock held, returns with it held."""
        self._has_leader = True
        self._lock.release()
        native = None
        lost = [call for call in calls if call.lost is not None]
        until = 0 if lost else min(until_ns, monotonic_ns() + _LEADER_NS)
        try:
            with self._named:
                native = self.replies.native.receive(until)
        finally:
            self._lock.acquire()
            self._has_leader = False
            if native is not None:
                self._deliver(native)
            else:
                for call in lost:
                    self._settle_lost(call)
            self._news.notify_all()

    def _settle_lost(self, call: Call) -> None:
        """Decide on a call whose responder is gone and whose replies are all read; lock held."""
        if call.lost is None or call.is_done:
            return
        if self._again and (not call.source or call.source != call.lost_flow):
            call.lost = None  # the native sender gives the request to another responder
        else:
            self._end(call, call.lost)

    def _deliver(self, native: Any) -> None:
        """Hand a reply to its call; lock held."""
        call = self._calls.get(native.correlation)
        flags = native.flags
        meta = self._meta(native)
        if call is None or call.is_done or call.source not in (0, native.flow):
            native.ack()
            native.release()
            return
        self._listen(call, native.flow)
        try:
            if flags & FLAG_ERROR:
                self._end(call, remote_error(meta))
            elif not (flags & FLAG_STREAM_END and not meta):
                if len(call.replies) >= limits.STREAM_REPLIES_QUEUED_MAX:
                    raise errors.CapacityError(
                        f"{len(call.replies)} unread replies, STREAM_REPLIES_QUEUED_MAX is reached",
                        limit="STREAM_REPLIES_QUEUED_MAX",
                    )
                call.replies.append(self.replies.decode(native))
            if not flags & FLAG_STREAM_MORE:
                self._end(call, call.error)
        except errors.FabricError as error:
            self._end(call, error)
        native.ack()
        if flags & FLAG_ERROR or not meta:
            native.release()
        self._news.notify_all()

    def _listen(self, call: Call, reply_flow: int) -> None:
        """Take replies of a call from this flow only: another responder's would be mixed into them; lock held."""
        if not call.source and not call.flow:
            flows = self._port.flows_of(self.endpoint)
            call.flow = next((f["flow"] for f in flows if f["reply_flow"] == reply_flow), 0)
            call.reply_flow = reply_flow
        call.source = reply_flow

    def _reply_room(self, flow: dict[str, Any]) -> int:
        """Return how many replies the responder of a flow may send before we read one."""
        granted = self._port.flow_in(flow["reply_flow"]).get("messages", 0)
        return int(granted) or limits.CREDIT_MESSAGES

    def _meta(self, native: Any) -> bytes:
        while True:
            try:
                return bytes(native.meta)
            except self._port.need_segment as need:
                self.replies.provide(need)

    def _end(self, call: Call, error: Exception | None) -> None:
        call.is_done = True
        call.error = error
        self._news.notify_all()

    def _choose(self, call: Call, wait_ns: int) -> None:
        """Take the flow that the policy prefers, or of the responder with the fewest calls of ours; waits for room."""
        while True:
            flows = self.targets()
            with self._lock:
                if call.is_done:
                    raise call.error or errors.ClosedError(f"request {call.correlation} has ended")
                if flows:
                    busy = collections.Counter(
                        c.flow for c in self._calls.values() if not c.is_done
                    )
                    flows.sort(key=lambda f: (f["flow"] != call.preferred, busy[f["flow"]]))
                    if any(self.take_flow(call, flow) for flow in flows[:2]):
                        return  # taken under the lock: the next chooser sees this one
                lack = (
                    "every responder has its room for replies in use"
                    if flows
                    else "no responder is there"
                )
                if not wait_ns:
                    raise errors.WouldBlock(
                        f"channel {self.channel!r}: {lack}", channel=self.channel
                    )
                if monotonic_ns() >= wait_ns:
                    raise errors.DeadlineExceeded(
                        f"channel {self.channel!r}: waited for a responder: {lack}",
                        channel=self.channel,
                    )
                self._news.wait(min(left_s(wait_ns), 0.1))

    def _send_cancel(self, call: Call) -> None:
        """Best effort: a responder that cannot be told sees its deadline pass."""
        if not call.sequence:
            return
        flows = [call.flow]
        try:
            if self._again and not call.flow:  # whoever has it, or got it again
                if self.sender.native.cancel(call.sequence):
                    return
                flows = [f["flow"] for f in self._port.flows_of(self.endpoint)]
            for flow in filter(None, flows):
                self.sender.native.send(
                    b"", [], None, 0, flow=flow, correlation=call.correlation, flags=FLAG_CANCEL,
                    expires_ns=monotonic_ns() + int(limits.CLOSE_S * 1e9),
                )  # fmt: skip
        except (errors.FabricError, self._port.need_segment):
            return
