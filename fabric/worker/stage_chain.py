"""One transform on one channel: take from a hop, apply, send on the next, then acknowledge.

The rules, kept for every input:
- it is acknowledged only after every output of it was accepted by the next hop;
- it ends exactly once: acknowledged, dropped (`transform_drop`, `expired`) or failed (`transform_error`);
- inputs of one key leave in the order in which they came, deferred ones included;
- a batch is what is there: the chain never waits to fill one.
One thread calls `turn`; `stop` may come from another. No clock, socket or type of its own: see the protocols.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TextIO

from fabric import limits
from fabric.abc.transform import (
    AnyMessage,
    Defer,
    Drop,
    MessageHeader,
    TransformContext,
    TransformExport,
)
from fabric.errors import (
    CapacityError,
    DeadlineExceeded,
    RejectedError,
    TransformError,
    TypeMismatchError,
    WouldBlock,
)

SEND_SLICE_NS: Final = 50_000_000  # a wait for credit is looked at again this often
REPORT_NS: Final = 1_000_000_000  # at most one traceback a second; the rest is counted
DEADLINE_NS: Final = int(limits.DEFAULT_DEADLINE_S * 1e9)


class Incoming(Protocol):
    """One received message; views in `value` hold until `ack` or `nack`."""

    @property
    def header(self) -> MessageHeader: ...
    @property
    def value(self) -> Any: ...
    def ack(self) -> None: ...
    def drop(self, expired: bool = False) -> None: ...
    def fail(self) -> None: ...


class Outgoing(Protocol):
    """One encoded message."""

    @property
    def payload_bytes(self) -> int: ...


class Inlet(Protocol):
    def receive_many(self, count: int, deadline_ns: int) -> Sequence[Incoming]: ...


class Outlet(Protocol):
    def prepare(self, value: Any, source: Incoming) -> Outgoing:
        """Encode `value` with the key, expiry, correlation and reply flow of `source`."""

    def forward(self, source: Incoming) -> Outgoing:
        """Return `source` itself, to be sent unchanged."""

    def send(self, message: Outgoing, deadline_ns: int) -> None:
        """Have `message` accepted; `DeadlineExceeded` or `WouldBlock` (deadline 0) while the hop is full.

        `CapacityError` or `TypeMismatchError`: it never will be.
        """


@dataclass(slots=True, eq=False)
class _Item:
    """One input between receipt and end."""

    source: Incoming
    since_ns: int
    retry_ns: int = 0
    outputs: list[Outgoing] | None = None  # None: not decided yet

    def deadline_ns(self) -> int:
        return self.source.header.expires_ns or self.since_ns + DEADLINE_NS


class Chain:
    """Runs one transform between two endpoints.

    Parameters
    ----------
    export : TransformExport
        What the plugin declared; one instance is made here.
    plugin, channel : str
        For the context, errors and the log.
    inlet, outlet
        The hop before and the hop after.
    now_ns : callable
        CLOCK_MONOTONIC in nanoseconds.
    log : TextIO, optional
        Where tracebacks go; default: standard error, which the supervisor keeps.
    """

    def __init__(
        self,
        export: TransformExport,
        plugin: str,
        channel: str,
        inlet: Inlet,
        outlet: Outlet,
        now_ns: Callable[[], int],
        log: TextIO | None = None,
    ) -> None:
        self.export = export
        self.counts: Counter[str] = Counter()
        self._plugin = plugin
        self._channel = channel
        self._inlet = inlet
        self._outlet = outlet
        self._now_ns = now_ns
        self._log = log or sys.stderr
        self._transform = export.factory()
        self._waiting: list[_Item] = []
        self._stopping = threading.Event()
        self._reported_ns = -REPORT_NS
        self._unreported = 0

    def stop(self) -> None:
        """Make waits of `turn` return soon; what is held stays unacknowledged and goes to a successor."""
        self._stopping.set()

    def replace(self, export: TransformExport) -> None:
        """Use another version of the transform from the next `turn` on; what is decided stays decided."""
        self._transform, self.export = export.factory(), export

    @property
    def idle(self) -> bool:
        """Nothing is held between the hops."""
        return not self._waiting

    def turn(self, wait_ns: int) -> int:
        """Receive what is there, apply and send on; wait at most `wait_ns` for a first message.

        Returns
        -------
        int
            Inputs that ended in this turn.
        """
        self._receive(wait_ns)
        batch = self._due(self._now_ns())
        if batch:
            self._apply(batch)
        return self._emit()

    # ---- receiving
    def _receive(self, wait_ns: int) -> None:
        now = self._now_ns()
        room = limits.TRANSFORM_WAITING_MAX - len(self._waiting)
        retry = min((i.retry_ns for i in self._waiting if i.outputs is None), default=now + wait_ns)
        until = now if self._sendable() else max(now, min(now + wait_ns, retry))
        if room <= 0:
            # Full of deferred inputs: the earliest retry is what there is to wait for.
            self._stopping.wait((until - now) / 1e9)
            return
        received = self._inlet.receive_many(min(room, limits.TRANSFORM_BATCH_MAX), until)
        since = self._now_ns()
        self._waiting += [_Item(source, since) for source in received]
        self.counts["received"] += len(received)

    def _sendable(self) -> bool:
        return next(self._in_order(lambda i: i.outputs is not None), None) is not None

    def _due(self, now: int) -> list[_Item]:
        """Return the undecided inputs whose turn it is, none ahead of an earlier one of its key."""
        for item in [i for i in self._waiting if i.outputs is None and now >= i.deadline_ns()]:
            self._overdue(item)
        due = self._in_order(lambda i: i.outputs is not None or i.retry_ns <= now)
        undecided = [i for i in due if i.outputs is None]
        return undecided[: limits.TRANSFORM_BATCH_MAX]

    def _in_order(self, passes: Callable[[_Item], bool]) -> Iterator[_Item]:
        """Yield what passes, skipping every input behind one of its key that does not."""
        blocked: set[bytes | None] = set()
        for item in self._waiting:
            key = item.source.header.key
            if key in blocked:
                continue
            if passes(item):
                yield item
            else:
                blocked.add(key)

    def _overdue(self, item: _Item) -> None:
        if item.source.header.expires_ns:
            self._waiting.remove(item)
            item.source.drop(expired=True)
            self.counts["expired"] += 1
        else:
            held = f"was deferred for {limits.DEFAULT_DEADLINE_S:g} s"
            self._failed([item], TransformError(held), "")

    # ---- applying
    def _apply(self, batch: list[_Item]) -> None:
        context = TransformContext(
            self._plugin,
            self.export.name,
            self._channel,
            self._now_ns(),
            tuple(item.source.header for item in batch),
        )
        try:
            answer = self._transform.apply([item.source.value for item in batch], context)
            results = self._results(answer, len(batch))
        except Exception as error:
            if len(batch) == 1:
                self._failed(batch, error, traceback.format_exc())
                return
            results = []
        # One bad message must not fail its neighbours: without results, each is given alone.
        if not results:
            for item in batch:
                self._apply([item])
        for item, result in zip(batch, results, strict=False):
            self._decide(item, result)

    def _results(self, answer: Any, count: int) -> list[Any]:
        if isinstance(answer, Drop | Defer):
            return [answer] * count
        if not isinstance(answer, list | tuple) or len(answer) != count:
            size = f"{len(answer)} results" if isinstance(answer, list | tuple) else repr(answer)
            raise TransformError(
                f"apply returned {size:.80} for {count} messages: return one for each"
            )
        return list(answer)

    def _decide(self, item: _Item, result: Any) -> None:
        if isinstance(result, Defer):
            after_s = min(max(result.after_s, 0.0), limits.TRANSFORM_DEFER_S_MAX)
            item.retry_ns = self._now_ns() + int(after_s * 1e9)
            self.counts["deferred"] += 1
        elif isinstance(result, Drop):
            self._drop(item)
        else:
            try:
                item.outputs = self._encode(item, result)
            except Exception as error:
                self._failed([item], error, traceback.format_exc())

    def _encode(self, item: _Item, result: Any) -> list[Outgoing]:
        values = list(result) if isinstance(result, list | tuple) else [result]
        if not 0 < len(values) <= limits.TRANSFORM_OUTPUTS_MAX:
            raise TransformError(
                f"{len(values)} outputs for one input: return 1 to {limits.TRANSFORM_OUTPUTS_MAX}, or Drop"
            )
        if self.export.produces is AnyMessage:
            return [self._unchanged(item, value) for value in values]
        for value in values:
            if not isinstance(value, self.export.produces):
                wanted = self.export.produces.__name__
                raise TransformError(f"returned {type(value).__name__}, declares produces={wanted}")
        outputs = [self._outlet.prepare(value, item.source) for value in values]
        self._check_expansion(item, outputs)
        return outputs

    def _unchanged(self, item: _Item, value: Any) -> Outgoing:
        if value is not item.source.value:
            raise TransformError("accepts any type, so it may only return what it was given")
        return self._outlet.forward(item.source)

    def _check_expansion(self, item: _Item, outputs: list[Outgoing]) -> None:
        found = sum(o.payload_bytes for o in outputs)
        slack = limits.TRANSFORM_SLACK_BYTES * len(outputs)
        bound = item.source.header.payload_bytes * self.export.max_expansion + slack
        if found > bound:
            raise TransformError(
                f"{found} bytes out of {item.source.header.payload_bytes}, max_expansion="
                f"{self.export.max_expansion:g} allows {int(bound)}: raise max_expansion"
            )

    # ---- ends
    def _failed(self, items: list[_Item], error: Exception, trace: str) -> None:
        """Apply `on_error`: the input ends as failed, is dropped, or goes on unchanged."""
        for item in items:
            self.counts["errors"] += 1
            self._report(error, trace)
            if self.export.on_error == "bypass":
                item.outputs = [self._outlet.forward(item.source)]
                self.counts["bypassed"] += 1
            elif self.export.on_error == "drop":
                self._drop(item)
            else:
                self._waiting.remove(item)
                item.source.fail()
                self.counts["failed"] += 1

    def _drop(self, item: _Item) -> None:
        self._waiting.remove(item)
        item.source.drop()
        self.counts["dropped"] += 1

    def _report(self, error: Exception, trace: str) -> None:
        now = self._now_ns()
        if now - self._reported_ns < REPORT_NS:
            self._unreported += 1
            return
        more = f" ({self._unreported} more since the last report)" if self._unreported else ""
        what = f"{type(error).__name__}: {error}"
        head = (
            f"plugin {self._plugin!r}, transform {self.export.name!r} on {self._channel!r}: {what}"
        )
        print(f"{head}; on_error={self.export.on_error}{more}\n{trace}", file=self._log, flush=True)
        self._reported_ns, self._unreported = now, 0

    # ---- sending
    def _emit(self) -> int:
        """Send what is decided and acknowledge it; wait a slice only when nothing at all could go."""
        ended = self._send_all(0)
        if not ended and self._sendable() and not self._stopping.is_set():
            ended = self._send_all(self._now_ns() + SEND_SLICE_NS)
        return ended

    def _send_all(self, deadline_ns: int) -> int:
        """Send in order; a key whose consumer is full keeps back only itself."""
        ended = 0
        full: set[bytes | None] = set()
        for item in list(self._in_order(lambda i: i.outputs is not None)):
            key = item.source.header.key
            if key in full:
                continue
            if self._send(item, deadline_ns):
                self._waiting.remove(item)
                item.source.ack()
                self.counts["sent"] += 1
                ended += 1
            else:
                full.add(key)
                deadline_ns = 0  # one wait a pass
        return ended

    def _send(self, item: _Item, deadline_ns: int) -> bool:
        """Send the outputs left; False when the next hop is full: then this one fills, and its senders wait."""
        expires_ns = item.source.header.expires_ns
        if expires_ns and self._now_ns() >= expires_ns:
            self._overdue(item)
            return False
        while item.outputs:
            try:
                self._outlet.send(item.outputs[0], deadline_ns)
            except (DeadlineExceeded, WouldBlock, RejectedError):
                return False
            except (CapacityError, TypeMismatchError) as error:
                self._undeliverable(item, error)
                return False
            item.outputs.pop(0)
        return True

    def _undeliverable(self, item: _Item, error: Exception) -> None:
        """End an input whose output can never be sent: tried again, it would end this process for ever."""
        self.counts["errors"] += 1
        self._report(error, "")
        self._waiting.remove(item)
        item.source.fail()
        self.counts["failed"] += 1
