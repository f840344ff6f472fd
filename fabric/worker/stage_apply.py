"""Call a transform with a batch and turn what it returns, raises or takes into one outcome for each input.

Nothing is received, sent or ended here. Rules: one bad message fails no other (a batch that raised is given again one
by one); a message that a killed host had in hand comes alone, and is not given a third time; a plugin that keeps ending
its hosts rests, and all its messages fail meanwhile. One thread; `busy_since_ns` is read by the watchdog.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from fabric import limits
from fabric.abc.transform import (
    AnyMessage,
    Defer,
    Drop,
    MessageHeader,
    TransformContext,
    TransformExport,
)
from fabric.errors import TransformError
from fabric.worker.stage_bounds import ENDED_AS_FORK
from fabric.worker.stage_guard import DEATHS_ALONE_MAX, Guard

OVERRUN_EVERY_NS: Final = 1_000_000_000  # calls over their budget are reported this often


class Incoming(Protocol):
    """One received message; views in `value` hold until it has ended."""

    @property
    def header(self) -> MessageHeader: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def expires_ns(self) -> int: ...
    @property
    def identity(self) -> tuple[int, int, int]:
        """Producer, its incarnation, sequence: the same when it is delivered again."""

    @property
    def value(self) -> Any: ...
    def ack(self) -> None: ...
    def drop(self, expired: bool = False) -> None: ...
    def fail(self) -> None: ...


class Outgoing(Protocol):
    """One encoded message."""

    @property
    def payload_bytes(self) -> int: ...


class Encoder(Protocol):
    """The part of the outlet that makes messages."""

    def prepare(self, value: Any, source: Incoming) -> Outgoing:
        """Encode `value` with the key, expiry, correlation and reply flow of `source`."""

    def forward(self, source: Incoming) -> Outgoing:
        """Return `source` itself, to be sent unchanged."""


class Shadow(Protocol):
    """Sees what was decided: a canary."""

    def offer(self, batch: Sequence[Item], outcomes: Sequence[Outcome], cpu_ns: int) -> None: ...


@dataclass(slots=True, eq=False)
class Item:
    """One input between receipt and end."""

    source: Incoming
    key: bytes | None
    expires_ns: int
    since_ns: int
    retry_ns: int = 0
    outputs: list[Outgoing] | None = None  # None: not decided yet


@dataclass(frozen=True, slots=True)
class Failed:
    """What became of an input whose `apply` raised, overran its bound, or may not be called."""

    error: BaseException
    trace: str = ""


Outcome = list[Outgoing] | Drop | Defer | Failed


class Headers(Sequence[MessageHeader]):
    """The headers of a batch, made when they are looked at."""

    __slots__ = ("_items",)

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(item.source.header for item in self._items[index])
        return self._items[index].source.header

    def __iter__(self) -> Iterator[MessageHeader]:
        return (item.source.header for item in self._items)


class Applier:
    """One instance of a transform on one channel.

    Parameters
    ----------
    export : TransformExport
        What the plugin declared; the instance is made here.
    plugin, channel : str
        For the context and errors.
    encoder
        The hop behind.
    now_ns : callable
        CLOCK_MONOTONIC in nanoseconds.
    guard : Guard
        Where the next host finds what was in hand.
    report : callable
        Told of a call that took longer than its budget.
    """

    def __init__(
        self,
        export: TransformExport,
        plugin: str,
        channel: str,
        encoder: Encoder,
        now_ns: Callable[[], int],
        guard: Guard,
        report: Callable[[BaseException, str], None],
    ) -> None:
        self.export = export
        self.busy_since_ns = 0
        self.cpu_ns = 0
        self.overruns = 0
        self.shadow: Shadow | None = None
        self._plugin = plugin
        self.channel = channel
        self._encoder = encoder
        self._now_ns = now_ns
        self._guard = guard
        self._slot = guard.slot()
        self._rests_until_ns = now_ns() + int(guard.rest_s * 1e9) if guard.rest_s else 0
        self._report = report
        self._overran_ns = -OVERRUN_EVERY_NS
        self._pid = os.getpid()
        self._transform = export.factory()

    @property
    def budget_ms(self) -> float:
        """What one call may take, as declared."""
        return self.export.time_budget_ms

    @property
    def label(self) -> str:
        """Who this is, for people."""
        return f"transform {self.export.name!r} of plugin {self._plugin!r} on {self.channel!r}"

    def replace(self, export: TransformExport) -> None:
        """Use another version from the next batch on; new code does not rest for the old one's failures."""
        self._transform, self.export = export.factory(), export
        self._rests_until_ns = 0

    def close(self) -> None:
        """Give the place in the guard's file back."""
        self._guard.give_back(self._slot)

    def decide(self, batch: list[Item]) -> list[Outcome]:
        """Return one outcome for each input, in order; never raises for what a plugin does."""
        if self._rests_until_ns:
            resting = self._rest(batch)
            if resting is not None:
                return resting
        if self._guard.has_suspects and any(self._deaths(item) for item in batch):
            return [outcome for item in batch for outcome in self._alone(item)]
        return self._run(batch)

    def _rest(self, batch: list[Item]) -> list[Outcome] | None:
        left_s = (self._rests_until_ns - self._now_ns()) / 1e9
        if left_s <= 0:
            self._rests_until_ns = 0
            return None
        guard = self._guard
        error = TransformError(
            f"left out for {left_s:.1f} s more: its last {guard.deaths} stage hosts ended"
            f" ({guard.reason or 'killed, or ended itself'}); correct and reload it"
        )
        return [Failed(error)] * len(batch)

    def _deaths(self, item: Item) -> int:
        return self._guard.deaths_of(item.source.identity)

    def _alone(self, item: Item) -> list[Outcome]:
        """Give a message alone, unless that has ended this process before."""
        deaths = self._deaths(item)
        if deaths < DEATHS_ALONE_MAX:
            return self._run([item])
        error = TransformError(
            f"message {item.source.identity[2]} was in hand {deaths} times when the stage host ended"
            f" ({self._guard.reason or 'killed, or ended itself'}); it is not given again"
        )
        return [Failed(error)]

    def _run(self, batch: list[Item]) -> list[Outcome]:
        results: Sequence[Any] | None
        try:
            results = self._call(batch)
        except (
            BaseException
        ) as error:  # sys.exit() in a plugin is its error, not this process's end
            if len(batch) == 1:
                return [_failure(error)]
            results = None
        if results is None:  # one bad message must not fail its neighbours: each is given alone
            return [outcome for item in batch for outcome in self._run([item])]
        outcomes = [self._outcome(item, r) for item, r in zip(batch, results, strict=True)]
        if self.shadow is not None:
            self.shadow.offer(batch, outcomes, self.cpu_ns)
        return outcomes

    def _call(self, batch: list[Item]) -> Sequence[Any]:
        """Call `apply`, with what is in hand noted for the next host."""
        self._guard.hold(self._slot, [n for item in batch for n in item.source.identity])
        began_ns = self.busy_since_ns = self._now_ns()
        context = TransformContext(
            self._plugin, self.export.name, self.channel, began_ns, Headers(batch)
        )
        cpu_ns = time.thread_time_ns() if self.shadow is not None else 0
        try:
            answer = self._transform.apply([item.source.value for item in batch], context)
        finally:
            if os.getpid() != self._pid:
                os._exit(ENDED_AS_FORK)  # a fork past Python's hooks: this child owns nothing here
            self.busy_since_ns = 0
            self._guard.clear(self._slot)
        if self.shadow is not None:
            self.cpu_ns = time.thread_time_ns() - cpu_ns
        self._judge_time(began_ns, len(batch))
        return self._results(answer, len(batch))

    def _judge_time(self, began_ns: int, count: int) -> None:
        now_ns = self._now_ns()
        took_ms = (now_ns - began_ns) / 1e6
        if took_ms <= self.export.time_budget_ms:
            return
        self.overruns += 1
        if now_ns - self._overran_ns >= OVERRUN_EVERY_NS:
            self._overran_ns = now_ns
            budget = f"its time budget is {self.export.time_budget_ms:g} ms"
            self._report(
                TransformError(f"took {took_ms:.0f} ms for {count} messages, {budget}"), ""
            )

    def _results(self, answer: Any, count: int) -> Sequence[Any]:
        if isinstance(answer, Drop | Defer):
            return [answer] * count
        if not isinstance(answer, list | tuple) or len(answer) != count:
            size = f"{len(answer)} results" if isinstance(answer, list | tuple) else repr(answer)
            raise TransformError(
                f"apply returned {size:.80} for {count} messages: return one for each"
            )
        return answer

    def _outcome(self, item: Item, result: Any) -> Outcome:
        if result is item.source.value:
            return [self._encoder.forward(item.source)]  # as it came, without encoding it again
        if isinstance(result, Drop | Defer):
            return result
        try:
            return self._encode(item, result)
        except Exception as error:
            return _failure(error)

    def _encode(self, item: Item, result: Any) -> list[Outgoing]:
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
        outputs = [self._encoder.prepare(value, item.source) for value in values]
        self._check_expansion(item, outputs)
        return outputs

    def _unchanged(self, item: Item, value: Any) -> Outgoing:
        if value is not item.source.value:
            raise TransformError("accepts any type, so it may only return what it was given")
        return self._encoder.forward(item.source)

    def _check_expansion(self, item: Item, outputs: list[Outgoing]) -> None:
        given = item.source.header.payload_bytes
        found = sum(o.payload_bytes for o in outputs)
        slack = limits.TRANSFORM_SLACK_BYTES * len(outputs)
        bound = given * self.export.max_expansion + slack
        if found > bound:
            raise TransformError(
                f"{found} bytes out of {given}, max_expansion="
                f"{self.export.max_expansion:g} allows {int(bound)}: raise max_expansion"
            )


def _failure(error: BaseException) -> Failed:
    """Keep what an error says, and none of the frames behind it: they refer to views that are to be given back."""
    trace = "".join(traceback.format_exception(error))
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return Failed(error, trace)
