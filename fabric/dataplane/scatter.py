"""The asking end of a scatter channel: rows go to many consumers, the answers come back as one message.

Every part is a request with an explicit flow; the room for its reply is reserved before it goes. Parts are sent and
answers read in turns, so that neither waits for the other. A part whose consumer is lost goes to another one
(`at_least_once`: the native sender's redelivery) or fails the call, which then cancels the other parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from fabric import errors, limits
from fabric.dataplane.calls import Call
from fabric.dataplane.deadlines import absolute_ns, monotonic_ns
from fabric.dataplane.requester import Requester
from fabric.messages.rows import Part, combine, row_fields, split

if TYPE_CHECKING:
    from fabric.messages import MessageType

M = TypeVar("M")
R = TypeVar("R")
_SLICE_NS: Final = 50_000_000  # a wait for room is broken off this often, to read answers


class ScatterPart:
    """One part on its way: unsent → sent → answered."""

    __slots__ = ("answer", "call", "is_sent", "meta", "part", "target", "tensors")

    def __init__(
        self, part: Part, call: Call, target: int, encoded: tuple[bytes, list[Any]]
    ) -> None:
        self.part = part
        self.call = call
        self.target = target  # endpoint of the consumer it was meant for
        self.meta, self.tensors = encoded
        self.is_sent = False
        self.answer: Any = None


class ScatterCall:
    """One call: `step` does what can be done without waiting; `close` forgets it, cancelling what is open."""

    def __init__(self, requester: Requester[Any, Any], deadline_ns: int) -> None:
        self.requester = requester
        self.deadline_ns = deadline_ns
        self.row_count = 0
        self.parts: list[ScatterPart] = []

    def begin(self, message: Any, index: Any, targets: Sequence[int] | None) -> bool:
        """Split and encode; False while no consumer is there. Nothing is sent yet."""
        requester = self.requester
        live = [int(flow["target_endpoint"]) for flow in requester.targets()]
        chosen = live if targets is None else [int(target) for target in targets]
        if not live or not chosen:
            return False
        type_ = requester.sender.type
        parts = split(type_, message, index, len(chosen), wraps=targets is None)
        if len(parts) > limits.REQUESTS_IN_FLIGHT_MAX:
            raise errors.CapacityError(
                f"{len(parts)} parts, REQUESTS_IN_FLIGHT_MAX is {limits.REQUESTS_IN_FLIGHT_MAX}",
                limit="REQUESTS_IN_FLIGHT_MAX",
            )
        self.row_count = sum(len(part.rows) for part in parts)
        encoded = [type_.encode(part.message) for part in parts]  # all, before the first is sent
        for part, data in zip(parts, encoded, strict=True):
            call = Call(requester.next_correlation(), self.deadline_ns)
            requester.register(call)
            self.parts.append(ScatterPart(part, call, chosen[part.target], data))
        return True

    @property
    def unsent(self) -> list[ScatterPart]:
        """The parts that found no room yet."""
        return [part for part in self.parts if not part.is_sent]

    @property
    def calls(self) -> list[Call]:
        """The calls whose answers are awaited."""
        return [part.call for part in self.parts if part.is_sent and part.answer is None]

    def step(self) -> bool:
        """Send what has room and take the answers that are there; True when all came.

        Raises what a part failed with, naming it, and the native NeedSegment.
        """
        for part in self.unsent:
            self._send(part, 0)
        for number, part in enumerate(self.parts, 1):
            if part.is_sent and part.answer is None:
                try:
                    found, answer = self.requester.take_from(part.call)
                except errors.FabricError as error:
                    raise self._named(error, number, part) from error
                if found and answer is None:
                    empty = errors.RemoteError("the consumer answered with an empty stream")
                    raise self._named(empty, number, part)
                part.answer = answer
        return all(part.answer is not None for part in self.parts)

    def send_waiting(self) -> None:
        """Wait a little for room for the first unsent part, or for an answer, which makes room for another."""
        until = min(self.deadline_ns, monotonic_ns() + _SLICE_NS)
        if not self._send(self.unsent[0], until):
            self.requester.wait(self.calls, until)

    def gather(self, type_: MessageType) -> Any:
        """Return the answers as one message in the order of the rows."""
        return combine(type_, self.row_count, [(p.part.rows, p.answer) for p in self.parts])

    def expire(self) -> errors.DeadlineExceeded:
        """Return the error of a call whose deadline passed."""
        channel = self.requester.channel
        if not self.parts:
            text = "waited for a consumer, none is there"
        else:
            waiting = [n for n, part in enumerate(self.parts, 1) if part.answer is None]
            text = f"{len(waiting)} of {len(self.parts)} parts unanswered, the first is {self._label(waiting[0])}"
        return errors.DeadlineExceeded(f"channel {channel!r}: {text}", channel=channel)

    def close(self) -> None:
        """Forget every part; those that are open are cancelled at their consumers."""
        for part in self.parts:
            self.requester.finish(part.call)
            if part.answer is not None:
                part.answer.release()

    def _send(self, part: ScatterPart, wait_ns: int) -> bool:
        """Try to send a part; False when it has no consumer, or no room is kept for its reply."""
        requester = self.requester
        flow = self._flow_for(part)
        if flow is None or not requester.take_flow(part.call, flow):
            return False
        try:
            part.is_sent = requester.send_to(part.call, part.meta, part.tensors, None, wait_ns)
        except (errors.WouldBlock, errors.DeadlineExceeded):
            return bool(wait_ns)
        return True

    def _flow_for(self, part: ScatterPart) -> dict[str, Any] | None:
        """Return the flow to the part's consumer; one that is gone is replaced, as nothing was sent to it."""
        flows = self.requester.targets()
        wanted = next((f for f in flows if f["target_endpoint"] == part.target), None)
        return wanted or (flows[part.part.target % len(flows)] if flows else None)

    def _label(self, number: int) -> str:
        rows = self.parts[number - 1].part.rows
        first = f", the first is row {int(rows[0])}" if len(rows) else ""
        return f"part {number} of {len(self.parts)} ({len(rows)} rows{first})"

    def _named(
        self, error: errors.FabricError, number: int, part: ScatterPart
    ) -> errors.FabricError:
        context = {k: v for k, v in error.context.items() if k != "message"}
        context |= {"part": number, "rows": len(part.part.rows)}
        return type(error)(f"{self._label(number)}: {error.message}", **context)


class Scatterer(Generic[M, R]):
    """Sends the rows of a message to the consumers of a scatter channel; made by `Port.scatterer`."""

    def __init__(self, requester: Requester[M, R]) -> None:
        self.requester = requester
        self.channel = requester.channel
        self.endpoint = requester.endpoint
        try:
            row_fields(requester.sender.type)
            row_fields(requester.replies.type)
        except errors.TypeMismatchError:
            requester.close()
            raise

    def call(
        self,
        message: M,
        index: Any,
        targets: Sequence[int] | None = None,
        deadline: float | None = None,
    ) -> R:
        """Send every row to the consumer that `index` names, and return the gathered answers.

        Parameters
        ----------
        message : M
            Every tensor whose first dimension is named ``rows`` is split; the rest goes to every consumer as it is.
        index : array of int64, shape [rows]
            Consumer of each row: its number, modulo how many there are, in the order of `targets()`.
        targets : sequence of int, optional
            Of `targets()`; then `index` counts in it, without modulo.
        deadline : float, optional
            Seconds for everything (default: the channel's, else 30).

        Returns
        -------
        R
            A message of its own memory. Row i is the answer to row i; fields without rows are those of row 0's answer.
            Consumers without rows are not asked; a message without rows goes whole to one of them.

        Raises
        ------
        TypeMismatchError
            `index` does not fit the rows, or a field breaks its declaration; nothing was sent.
        RemoteError, PeerLostError
            A consumer raised, or died on an ``at_most_once`` channel; names the part, the others are cancelled.
        RejectedError, PeerProtocolError, DeadlineExceeded, CapacityError, ClosedError
        """
        state = self.start(deadline)
        try:
            while not state.parts and not state.begin(message, index, targets):
                if monotonic_ns() >= state.deadline_ns:
                    raise state.expire()
                self.requester.wait([], min(state.deadline_ns, monotonic_ns() + _SLICE_NS))
            self._drive(state)
            return self.gather(state)
        finally:
            state.close()

    def targets(self) -> list[int]:
        """Return the consumers that are there and awake, as `index` counts them."""
        return [int(flow["target_endpoint"]) for flow in self.requester.targets()]

    def close(self) -> None:
        """Close both directions; waiting calls get `ClosedError`. Idempotent."""
        self.requester.close()

    def __enter__(self) -> Scatterer[M, R]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- parts of a call; the asyncio face uses them too

    def start(self, deadline: float | None) -> ScatterCall:
        """Return a call of which nothing is done yet."""
        seconds = self.requester.sender.deadline_s if deadline is None else deadline
        return ScatterCall(self.requester, absolute_ns(seconds) or monotonic_ns())

    def gather(self, state: ScatterCall) -> R:
        """Return the answers of a finished call as one message."""
        found: R = state.gather(self.requester.replies.type)
        return found

    def _drive(self, state: ScatterCall) -> None:
        requester = self.requester
        while True:
            try:
                if state.step():
                    return
                if monotonic_ns() >= state.deadline_ns:
                    raise state.expire()
                if state.unsent and not any(call.replies for call in state.calls):
                    state.send_waiting()
                while requester.take_ready():
                    pass
            except requester.need_segment as need:
                requester.sender.provide(need, state.deadline_ns)
                continue
            if not state.unsent:
                requester.wait(state.calls, state.deadline_ns)
