"""A new version of a plugin on copies of live messages, in a child process of the stage host.

The chain's thread copies a batch, with what was decided, into a bounded queue; a thread of its own writes it to the
child (`fabric.worker.canary_child`), another reads what that found. A full queue skips the batch, so live messages wait
for nothing; whatever the new code does ends the child at most.
"""

from __future__ import annotations

import queue
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from fabric import limits
from fabric.abc.transform import AnyMessage, Defer, Drop, TransformExport
from fabric.errors import ContractError, PluginError, from_wire
from fabric.messages import MessageType, message_type
from fabric.worker.plugin_loader import Plugin
from fabric.worker.stage_apply import Applier, Failed, Item, Outcome
from fabric.worker.stage_bounds import hung_after_s

LOAD_S: Final = 25.0
COST_FACTOR_MAX: Final = 3.0  # of the CPU time of the running version, beyond COST_SLACK_NS
COST_SLACK_NS: Final = 200_000  # a message
COST_MESSAGES_MIN: Final = 200
_LENGTH: Final = struct.Struct("<I")
_encode: Final = msgspec.msgpack.encode
_decode: Final = msgspec.msgpack.decode


class Sink(Protocol):
    """Where frames go."""

    def write(self, data: bytes, /) -> Any: ...
    def flush(self) -> None: ...


class Tap:
    """Copies what one chain decided; called on the chain's thread."""

    def __init__(self, canary: Canary, applier: Applier, type_: MessageType) -> None:
        self._canary = canary
        self._channel = applier.channel
        self._export = applier.export
        self._type = type_

    def offer(self, batch: Sequence[Item], outcomes: Sequence[Outcome], cpu_ns: int) -> None:
        """Queue a copy of a batch; skipped where the child is behind."""
        if self._canary.is_full():
            self._canary.skip(len(batch))
            return
        self._canary.put(
            {
                "transform": self._export.name,
                "channel": self._channel,
                "schema": self._type.schema.text,
                "cpu_ns": cpu_ns,
                "pure": self._export.pure,
                "inputs": [self._copy(item) for item in batch],
                "outcomes": [_plain(outcome) for outcome in outcomes],
            }
        )

    def _copy(self, item: Item) -> dict[str, Any]:
        view, header = item.source.value, item.source.header
        tensors = message_type(type(view)).tensors_of(view)
        return {
            "meta": view._native.meta,
            "tensors": [bytes(memoryview(t).cast("B")) if len(t) else b"" for t in tensors],
            "header": list(header),  # type: ignore[call-overload]
        }


class Canary:
    """One candidate.

    Parameters
    ----------
    fields : dict
        ``{plugin, path, source}`` of the candidate, as for `StageHost.load`.
    running : Plugin or None
        What runs; the candidate must offer the same transforms with the same types.

    Raises
    ------
    PluginError, ContractError
        It does not load, or does not fit. Nothing runs then.
    """

    def __init__(self, fields: dict[str, Any], running: Plugin | None) -> None:
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(limits.CANARY_QUEUE)
        self._lock = threading.Lock()
        self._found: dict[str, Any] = {
            "compared": 0,
            "skipped": 0,
            "cpu_ns": 0,
            "cpu_ns_before": 0,
            "reason": "",
        }
        self._since_ns = 0  # of the oldest batch that was not answered, 0: none
        self._is_closed = False
        self._budget_ms = max(
            (e.time_budget_ms for e in (running.transforms.values() if running else ())),
            default=0.0,
        )
        self._child = subprocess.Popen(
            [sys.executable, "-m", "fabric.worker.canary_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self._begin(fields, running)
        except BaseException:
            self.close()
            raise
        for body in (self._write, self._read):
            threading.Thread(target=body, name="canary", daemon=True).start()

    def watch(self, applier: Applier, type_: MessageType) -> None:
        """Copy what a chain decides from now on."""
        applier.shadow = Tap(self, applier, type_)

    def found(self) -> dict[str, Any]:
        """Return ``{compared, skipped, cpu_us, cpu_us_before, reason}``; `reason` is empty while all is equal."""
        with self._lock:
            found, since_ns = dict(self._found), self._since_ns
        hung_s = hung_after_s(self._budget_ms)
        if not found["reason"] and since_ns and time.monotonic_ns() - since_ns > hung_s * 1e9:
            found["reason"] = f"the new code did not return within {hung_s:g} s"
        return {
            "compared": found["compared"],
            "skipped": found["skipped"],
            "cpu_us": _mean_us(found["cpu_ns"], found["compared"]),
            "cpu_us_before": _mean_us(found["cpu_ns_before"], found["compared"]),
            "reason": found["reason"] or cost_reason(found),
        }

    def is_full(self) -> bool:
        """The child is behind, or something was found."""
        return self._queue.full() or self._is_closed or bool(self._found["reason"])

    def skip(self, count: int) -> None:
        """Count messages that were not compared."""
        with self._lock:
            self._found["skipped"] += count

    def put(self, frame: dict[str, Any]) -> None:
        """Queue one batch; never waits."""
        try:
            self._queue.put_nowait(frame)
        except queue.Full:
            self.skip(len(frame["inputs"]))

    def close(self) -> None:
        """End the child; idempotent."""
        self._is_closed = True
        self._child.kill()
        self._child.wait(limits.CLOSE_S)
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return  # the writer is busy, and meets the closed pipe

    def _begin(self, fields: dict[str, Any], running: Plugin | None) -> None:
        exports = {} if running is None else running.transforms
        wanted = {name: _schemas(export) for name, export in exports.items()}
        assert self._child.stdin is not None and self._child.stdout is not None
        timer = threading.Timer(LOAD_S, self._child.kill)
        timer.start()
        try:
            write_frame(self._child.stdin, {**fields, "wanted": wanted})
            answer = read_frame(self._child.stdout)
        finally:
            timer.cancel()
        if answer is None:
            raise PluginError(
                f"the new code of {fields['plugin']!r} ended its process, or did not load within {LOAD_S:g} s"
            )
        if answer.get("error"):
            raise from_wire(answer["error"])

    def _write(self) -> None:
        assert self._child.stdin is not None
        while (frame := self._queue.get()) is not None:
            with self._lock:
                self._since_ns = self._since_ns or time.monotonic_ns()
            try:
                write_frame(self._child.stdin, frame)
            except (OSError, ValueError):
                return  # the reader says how it ended

    def _read(self) -> None:
        assert self._child.stdout is not None
        while (answer := read_frame(self._child.stdout)) is not None:
            with self._lock:
                self._since_ns = time.monotonic_ns() if self._queue.qsize() else 0
                for key in ("compared", "cpu_ns", "cpu_ns_before"):
                    self._found[key] += answer[key]
                self._found["reason"] = self._found["reason"] or answer["reason"]
        status = self._child.wait()
        if not self._is_closed:
            with self._lock:
                how = f"signal {-status}" if status < 0 else f"exit status {status}"
                self._found["reason"] = (
                    self._found["reason"] or f"the new code ended its process: {how}"
                )


def cost_reason(found: dict[str, Any]) -> str:
    """Say that the new code costs too much, once enough messages have shown it; else empty."""
    count = found["compared"]
    if count < COST_MESSAGES_MIN:
        return ""
    new, old = found["cpu_ns"] / count, found["cpu_ns_before"] / count
    if new <= COST_FACTOR_MAX * old + COST_SLACK_NS:
        return ""
    return (
        f"it takes {new / 1e3:.1f} µs of CPU time a message, the running version {old / 1e3:.1f} µs"
    )


def write_frame(sink: Sink, value: dict[str, Any]) -> None:
    """Write one value: length, MessagePack."""
    data = _encode(value)
    sink.write(_LENGTH.pack(len(data)) + data)
    sink.flush()


def read_frame(source: Any) -> dict[str, Any] | None:
    """Read one value; None at the end."""
    head = source.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = source.read(length)
    if len(data) < length:
        return None
    value: dict[str, Any] = _decode(data)
    return value


def require_fit(transforms: dict[str, TransformExport], wanted: dict[str, Any], name: str) -> None:
    """Raise `ContractError` unless each wanted transform is there with the same types."""
    for transform, types in wanted.items():
        export = transforms.get(transform)
        if export is None or list(_schemas(export)) != list(types):
            raise ContractError(
                f"the new code of {name!r} "
                + (
                    f"lacks transform {transform!r}"
                    if export is None
                    else f"gives {transform!r} other types"
                )
                + ": a canary compares like with like; load it under another name",
                plugin=name,
            )


def _schemas(export: TransformExport) -> tuple[str, str]:
    accepts, produces = (
        "" if cls is AnyMessage else message_type(cls).schema.text
        for cls in (export.accepts, export.produces)
    )
    return accepts, produces


def _plain(outcome: Outcome) -> Any:
    """Return an outcome as values: messages as their bytes."""
    if isinstance(outcome, Failed):
        return "raise"
    if isinstance(outcome, Drop):
        return "drop"
    if isinstance(outcome, Defer):
        return "defer"
    return [encoded(o.meta, o.tensors) for o in outcome]  # type: ignore[attr-defined]


def encoded(meta: bytes, tensors: Sequence[Any]) -> list[bytes]:
    """Return one message as its bytes: meta, then each tensor."""
    return [bytes(meta), *(bytes(memoryview(t).cast("B")) if len(t) else b"" for t in tensors)]


def _mean_us(total_ns: int, count: int) -> float:
    return round(total_ns / count / 1e3, 2) if count else 0.0
