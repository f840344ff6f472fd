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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol, TextIO

from fabric import limits
from fabric.abc.transform import Defer, Drop, TransformExport
from fabric.errors import (
    CapacityError,
    DeadlineExceeded,
    RejectedError,
    TransformError,
    TypeMismatchError,
    WouldBlock,
)
from fabric.worker.stage_apply import Applier, Encoder, Failed, Incoming, Item, Outcome, Outgoing
from fabric.worker.stage_guard import Guard

SEND_SLICE_NS: Final = 50_000_000  # a wait for credit is looked at again this often
REPORT_NS: Final = 1_000_000_000  # at most one traceback a second; the rest is counted
DEADLINE_NS: Final = int(limits.DEFAULT_DEADLINE_S * 1e9)


class Inlet(Protocol):
    def receive_many(self, count: int, deadline_ns: int) -> Sequence[Incoming]: ...


class Outlet(Encoder, Protocol):
    def send(self, message: Any, deadline_ns: int) -> None:
        """Have `message` accepted; `DeadlineExceeded` or `WouldBlock` (deadline 0) while the hop is full.

        `CapacityError` or `TypeMismatchError`: it never will be.
        """

    def send_many(self, messages: Sequence[Any], expires_ns: int) -> int:
        """Have the first of `messages` accepted without waiting, as many as go; returns how many, never raises."""


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
    guard : Guard, optional
        What the host before has left, and the next one will find; default: nothing is kept.
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
        guard: Guard | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._plugin = plugin
        self._channel = channel
        self._inlet = inlet
        self._outlet = outlet
        self._now_ns = now_ns
        self._log = log
        self._waiting: list[Item] = []
        self._stopping = threading.Event()
        self._reported_ns = -REPORT_NS
        self._unreported = 0
        self.applier = Applier(
            export, plugin, channel, outlet, now_ns, guard or Guard(None, now_ns()), self._report
        )

    @property
    def export(self) -> TransformExport:
        """What runs."""
        return self.applier.export

    def stop(self) -> None:
        """Make waits of `turn` return soon; what is held stays unacknowledged and goes to a successor."""
        self._stopping.set()

    def replace(self, export: TransformExport) -> None:
        """Use another version of the transform from the next `turn` on; what is decided stays decided."""
        self.applier.replace(export)

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
        received = self._receive(wait_ns)
        now = self._now_ns()
        is_all = bool(received) and len(received) == len(self._waiting)
        if not is_all or any(i.expires_ns and now >= i.expires_ns for i in received):
            received = self._due(now)
        if received:
            self._settle(received, self.applier.decide(received))
        ended = self._emit_all()
        return ended + self._emit(ended)

    # ---- receiving
    def _receive(self, wait_ns: int) -> list[Item]:
        now = self._now_ns()
        waiting = self._waiting
        until = now + wait_ns
        if waiting:
            retry = min((i.retry_ns for i in waiting if i.outputs is None), default=until)
            until = now if self._sendable() else max(now, min(until, retry))
        room = limits.TRANSFORM_WAITING_MAX - len(waiting)
        if room <= 0:
            # Full of deferred inputs: the earliest retry is what there is to wait for.
            self._stopping.wait((until - now) / 1e9)
            return []
        received = self._inlet.receive_many(min(room, limits.TRANSFORM_BATCH_MAX), until)
        if not received:
            return []
        since = self._now_ns()
        items = [Item(source, source.key, source.expires_ns, since) for source in received]
        waiting += items
        self.counts["received"] += len(items)
        return items

    def _sendable(self) -> bool:
        return next(self._in_order(lambda i: i.outputs is not None), None) is not None

    def _due(self, now: int) -> list[Item]:
        """Return the undecided inputs whose turn it is, none ahead of an earlier one of its key."""
        if not self._waiting:
            return []
        for item in [i for i in self._waiting if i.outputs is None and now >= _deadline_ns(i)]:
            self._overdue(item)
        due = self._in_order(lambda i: i.outputs is not None or i.retry_ns <= now)
        undecided = [i for i in due if i.outputs is None]
        return undecided[: limits.TRANSFORM_BATCH_MAX]

    def _in_order(self, passes: Callable[[Item], bool]) -> Iterator[Item]:
        """Yield what passes, skipping every input behind one of its key that does not."""
        blocked: set[bytes | None] = set()
        for item in self._waiting:
            if item.key in blocked:
                continue
            if passes(item):
                yield item
            else:
                blocked.add(item.key)

    def _overdue(self, item: Item) -> None:
        if item.expires_ns:
            self._waiting.remove(item)
            item.source.drop(expired=True)
            self.counts["expired"] += 1
        else:
            held = f"was deferred for {limits.DEFAULT_DEADLINE_S:g} s"
            self._failed(item, TransformError(held), "")

    # ---- what was decided
    def _settle(self, batch: list[Item], outcomes: Sequence[Outcome]) -> None:
        for item, outcome in zip(batch, outcomes, strict=True):
            if type(outcome) is list:
                item.outputs = outcome
            elif isinstance(outcome, Defer):
                after_s = min(max(outcome.after_s, 0.0), limits.TRANSFORM_DEFER_S_MAX)
                item.retry_ns = self._now_ns() + int(after_s * 1e9)
                self.counts["deferred"] += 1
            elif isinstance(outcome, Drop):
                self._drop(item)
            elif isinstance(outcome, Failed):
                self._failed(item, outcome.error, outcome.trace)

    # ---- ends
    def _failed(self, item: Item, error: BaseException, trace: str) -> None:
        """Apply `on_error`: the input ends as failed, is dropped, or goes on unchanged."""
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

    def _drop(self, item: Item) -> None:
        self._waiting.remove(item)
        item.source.drop()
        self.counts["dropped"] += 1

    def _report(self, error: BaseException, trace: str) -> None:
        now = self._now_ns()
        if now - self._reported_ns < REPORT_NS:
            self._unreported += 1
            return
        more = f" ({self._unreported} more since the last report)" if self._unreported else ""
        what = f"{type(error).__name__}: {error}"
        head = (
            f"plugin {self._plugin!r}, transform {self.export.name!r} on {self._channel!r}: {what}"
        )
        text = f"{head}; on_error={self.export.on_error}{more}\n{trace}"
        print(text, file=self._log or sys.stderr, flush=True)
        self._reported_ns, self._unreported = now, 0

    # ---- sending
    def _emit_all(self) -> int:
        """Send from the front in as few crossings as there are deadlines, as far as one output each is decided."""
        total = 0
        while len(self._waiting) > 1:
            run = self._run_of_one_deadline()
            if len(run) < 2:
                break
            accepted = self._outlet.send_many(run, self._waiting[0].expires_ns)
            is_all = accepted == len(run)
            run.clear()  # outputs refer to views, which are given back now
            for item in self._waiting[:accepted]:
                item.outputs = None
                item.source.ack()
            del self._waiting[:accepted]
            total += accepted
            if not is_all:
                break
        self.counts["sent"] += total
        return total

    def _run_of_one_deadline(self) -> list[Outgoing]:
        expires_ns = self._waiting[0].expires_ns
        run: list[Outgoing] = []
        for item in self._waiting:
            outputs = item.outputs
            if outputs is None or len(outputs) != 1 or item.expires_ns != expires_ns:
                break
            run.append(outputs[0])
        return run

    def _emit(self, has_ended: int) -> int:
        """Send what is decided and acknowledge it; wait a slice only when nothing at all could go."""
        if not self._waiting:
            return 0
        ended = self._send_all(0)
        if not ended and not has_ended and self._sendable() and not self._stopping.is_set():
            ended = self._send_all(self._now_ns() + SEND_SLICE_NS, 1)
            ended += self._emit_all()  # there is room again: not one by one
        return ended

    def _send_all(self, deadline_ns: int, most: int = limits.TRANSFORM_WAITING_MAX) -> int:
        """Send in order, `most` at most; a key whose consumer is full keeps back only itself."""
        ended = 0
        full: set[bytes | None] = set()
        for item in list(self._in_order(lambda i: i.outputs is not None)):
            if item.key in full:
                continue
            if self._send(item, deadline_ns):
                self._waiting.remove(item)
                item.outputs = None
                item.source.ack()
                self.counts["sent"] += 1
                ended += 1
                if ended == most:
                    break
            else:
                full.add(item.key)
                deadline_ns = 0  # one wait a pass
        return ended

    def _send(self, item: Item, deadline_ns: int) -> bool:
        """Send the outputs left; False when the next hop is full: then this one fills, and its senders wait."""
        if item.expires_ns and self._now_ns() >= item.expires_ns:
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

    def _undeliverable(self, item: Item, error: Exception) -> None:
        """End an input whose output can never be sent: tried again, it would end this process for ever."""
        self.counts["errors"] += 1
        self._report(error, "")
        self._waiting.remove(item)
        item.source.fail()
        self.counts["failed"] += 1


def _deadline_ns(item: Item) -> int:
    return item.expires_ns or item.since_ns + DEADLINE_NS
