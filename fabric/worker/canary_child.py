"""The process of a canary: run the new code on copies of messages and say whether it decides as the running one did.

`python -m fabric.worker.canary_child`, started by `fabric.worker.stage_canary`; frames come on standard input, answers
go to standard output, what the plugin prints to standard error. It has no port: nothing that it makes is sent.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import numpy as np

from fabric.abc.transform import AnyMessage, Defer, Drop, TransformContext
from fabric.errors import FabricError
from fabric.messages import MessageHeader, class_from_schema, message_type
from fabric.messages.schema import Schema
from fabric.worker import plugin_loader
from fabric.worker.stage_bounds import bound_memory, end_first_when_memory_is_short
from fabric.worker.stage_canary import encoded, read_frame, require_fit, write_frame

PARENT_LOOK_S = 0.5


class Copy:
    """A received message as the decoder expects it, over bytes that were copied."""

    def __init__(self, meta: bytes, tensors: list[bytes]) -> None:
        self.meta = meta
        self._tensors = tensors

    def tensor(self, index: int, dtype: str, shape: tuple[int, ...]) -> Any:
        """Return tensor `index` as a read-only array."""
        return np.frombuffer(self._tensors[index], dtype).reshape(shape)

    def release(self) -> None:
        """Nothing to give back."""


class Candidate:
    """The new code: one instance a transform and channel, as in a stage host."""

    def __init__(self, fields: dict[str, Any]) -> None:
        name, path, source = fields["plugin"], fields.get("path") or "", fields.get("source") or ""
        self._plugin = (
            plugin_loader.load_source(name, path, source)
            if source
            else plugin_loader.load_named(name, path)
        )
        require_fit(self._plugin.transforms, fields["wanted"], name)
        self._made: dict[tuple[str, str], Any] = {}
        self._types: dict[str, Any] = {}
        exports = self._plugin.transforms.values()
        bound_memory(sum(export.memory_budget_bytes for export in exports))

    def compare(self, frame: dict[str, Any]) -> dict[str, Any]:
        """Decide a batch; answer counts, CPU time and the first difference."""
        inputs = [self._message(frame, row) for row in frame["inputs"]]
        began_ns = time.thread_time_ns()
        outcomes = self._outcomes(frame, inputs)
        cpu_ns = time.thread_time_ns() - began_ns
        reason = ""
        for index, (old, new) in enumerate(zip(frame["outcomes"], outcomes, strict=True)):
            reason = reason or self._difference(frame, index, old, new)
        return {
            "compared": len(inputs),
            "cpu_ns": cpu_ns,
            "cpu_ns_before": frame["cpu_ns"],
            "reason": reason,
        }

    def _message(self, frame: dict[str, Any], row: dict[str, Any]) -> Any:
        export = self._plugin.transforms[frame["transform"]]
        schema = frame["schema"]
        if schema not in self._types:
            cls = export.accepts
            if cls is AnyMessage:
                cls = class_from_schema(Schema.parse(schema))
            self._types[schema] = message_type(cls)
        return self._types[schema].decode(Copy(row["meta"], row["tensors"]), None)

    def _outcomes(self, frame: dict[str, Any], inputs: list[Any]) -> list[Any]:
        try:
            return self._decide(frame, inputs)
        except Exception as error:
            if len(inputs) == 1:
                return [f"raise {type(error).__name__}: {error}"]
        rows, outcomes = frame["inputs"], []
        for message, row in zip(inputs, rows, strict=True):
            outcomes += self._outcomes({**frame, "inputs": [row]}, [message])
        return outcomes

    def _decide(self, frame: dict[str, Any], inputs: list[Any]) -> list[Any]:
        name, channel = frame["transform"], frame["channel"]
        made = self._made.get((name, channel))
        if made is None:
            made = self._made[name, channel] = self._plugin.transforms[name].factory()
        headers = tuple(MessageHeader(*row["header"]) for row in frame["inputs"])
        context = TransformContext(self._plugin.name, name, channel, time.monotonic_ns(), headers)
        answer = made.apply(list(inputs), context)
        if isinstance(answer, Drop | Defer):
            answer = [answer] * len(inputs)
        if len(answer) != len(inputs):
            raise ValueError(f"{len(answer)} results for {len(inputs)} messages")
        return [self._plain(result) for result in answer]

    def _plain(self, result: Any) -> Any:
        if isinstance(result, Drop):
            return "drop"
        if isinstance(result, Defer):
            return "defer"
        values = result if isinstance(result, list | tuple) else [result]
        return [self._encoded(value) for value in values]

    def _encoded(self, value: Any) -> list[bytes]:
        native = getattr(value, "_native", None)
        if isinstance(native, Copy):
            return [native.meta, *native._tensors]  # handed on as it came
        return encoded(*message_type(type(value)).encode(value))

    def _difference(self, frame: dict[str, Any], index: int, old: Any, new: Any) -> str:
        if isinstance(old, list) and isinstance(new, list):
            same = old == new if frame["pure"] else len(old) == len(new)
        else:
            same = old == (new.partition(" ")[0] if isinstance(new, str) else new)
        if same:
            return ""
        where = f"{frame['transform']} on {frame['channel']}, message {frame['inputs'][index]['header'][1]}"
        return f"{where}: the running version {_said(old)}, the new one {_said(new)}"


def _said(outcome: Any) -> str:
    if isinstance(outcome, str):
        return {"raise": "raised", "drop": "drops it", "defer": "defers it"}.get(outcome, outcome)
    sizes = ", ".join(str(sum(map(len, message))) for message in outcome)
    return f"makes {len(outcome)} message(s) of {sizes} bytes"


def _end_with(parent: int) -> None:
    """End this process, whatever the plugin does in it, once its stage host is gone."""
    while os.getppid() == parent:
        time.sleep(PARENT_LOOK_S)
    os._exit(0)


def main() -> int:
    """Load what the first frame names, then compare frame by frame until the end of input."""
    # Not the kernel's parent-death signal: that one follows the thread that started this process.
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    end_first_when_memory_is_short()
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the plugin prints
    fields = read_frame(source)
    if fields is None:
        return 1
    try:
        candidate = Candidate(fields)
    except FabricError as error:
        write_frame(sink, {"error": error.to_wire()})
        return 1
    write_frame(sink, {})
    while (frame := read_frame(source)) is not None:
        write_frame(sink, candidate.compare(frame))
    return 0


if __name__ == "__main__":
    sys.exit(main())
