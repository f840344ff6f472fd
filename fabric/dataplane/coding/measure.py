"""`fabricctl bench codec`: codecs on copies of what a sender sends, measured in its process beside its traffic.

The next messages are copied as they are sent (at most `limits.CODEC_SAMPLE_BYTES`), then they go on as ever; what is
measured afterwards runs on the thread of the push that asked for it.
"""

from __future__ import annotations

import importlib.metadata
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fabric import limits
from fabric.abc.tensor_codec import TensorContext
from fabric.abc.transform_checks import make
from fabric.dataplane.coding.economics import Economics, Situation
from fabric.dataplane.coding.encode import CodecUse, Coder, Surroundings, Target
from fabric.dataplane.coding.installed import GROUP, edge_codec
from fabric.errors import DeadlineExceeded, FabricError, PluginError

if TYPE_CHECKING:
    from fabric.dataplane.sender import Sender

Copied = list[Target]


class Sample:
    """Copies of the next messages of a sender: its coder calls `take` until it is full."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, list[Any]]] = []
        self.full = threading.Event()
        self._bytes = 0

    def take(self, meta: bytes, buffers: list[Any]) -> None:
        """Copy one message."""
        size = sum(b.nbytes for b in buffers if type(b) is not bytes)
        if self.full.is_set() or not size:
            return
        self.messages.append((meta, [b if type(b) is bytes else b.copy() for b in buffers]))
        self._bytes += size
        if self._bytes >= limits.CODEC_SAMPLE_BYTES or len(self.messages) >= 8:
            self.full.set()


def measure(sender: Sender[Any], codecs: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """Return a row a codec: rates, ratio, error, and what ``when: pays`` would decide on each path now.

    Raises
    ------
    DeadlineExceeded
        Nothing with a tensor was sent within `seconds`.
    PluginError
        A codec that was named is not installed.
    """
    sample = Sample()
    sender.set_sample(sample)
    try:
        sample.full.wait(seconds)
    finally:
        sender.set_sample(None)
    if not sample.messages:
        raise DeadlineExceeded(
            f"channel {sender.channel!r}: nothing with a tensor was sent within {seconds:g} s"
        )
    names = list(codecs) or _installed()
    return [_row(sender, name, sample.messages) for name in names]


def _installed() -> list[str]:
    """Return the names of the installed codecs of tensors."""
    found = []
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            edge_codec(point.name)
        except PluginError:
            continue
        found.append(point.name)
    return sorted(found)


def _row(
    sender: Sender[Any], name: str, messages: Sequence[tuple[bytes, list[Any]]]
) -> dict[str, Any]:
    export = edge_codec(name)
    use, codec = CodecUse(name, "always", "always"), make(export)
    around: Callable[[], Surroundings] = lambda: Surroundings(True, 0, 0.0)  # noqa: E731 - never asked
    coder = Coder(sender.channel, sender.type, use, export, codec, around)
    economics, figures = Economics(), _Figures()
    for meta, buffers in messages:
        for target in coder.targets(meta, buffers):
            try:
                figures.add(codec, target, economics)
            except (FabricError, ValueError, TypeError, ArithmeticError) as error:
                figures.failed = f"field {target.context.field!r}: {type(error).__name__}: {error}"
    size = sum(b.nbytes for b in messages[0][1] if type(b) is not bytes)
    return {
        "codec": name,
        "lossless": export.lossless,
        "messages": len(messages),
        **figures.row(economics),
        "pays": _pays(sender, economics, figures, size),
    }


class _Figures:
    """What was seen of one codec."""

    def __init__(self) -> None:
        self.raw = self.coded = 0
        self.error = 0.0
        self.failed = ""
        self.sizes: dict[str, int] = {}

    def add(self, codec: Any, target: Target, economics: Economics) -> None:
        """Encode and decode one tensor."""
        array, context = target.array.reshape(target.context.shape), target.context
        began = time.perf_counter()
        encoded = codec.encode(array, context)
        took_s = time.perf_counter() - began
        self.raw += array.nbytes
        self.sizes[target.field] = array.nbytes
        if encoded is None:
            self.coded += array.nbytes
            economics.encoded(target.field, array.nbytes, array.nbytes, took_s)
            return
        parts = [_bytes_of(part) for part in encoded.parts]
        size = sum(part.nbytes for part in parts)
        self.coded += size
        economics.encoded(target.field, array.nbytes, size, took_s)
        began = time.perf_counter()
        back = codec.decode(parts, _with(context, encoded.info))
        economics.decode.add(array.nbytes, time.perf_counter() - began)
        self.error = max(self.error, relative_error(array, back, context.dtype))

    def row(self, economics: Economics) -> dict[str, Any]:
        """Return the columns."""
        return {
            "raw_bytes": self.raw,
            "ratio": self.coded / self.raw if self.raw else math.nan,
            "encode_bytes_per_s": economics.encode.bytes_per_s,
            "decode_bytes_per_s": economics.decode.bytes_per_s,
            "error": self.error,
            "failed": self.failed,
        }


def _pays(
    sender: Sender[Any], economics: Economics, figures: _Figures, size: int
) -> list[dict[str, Any]]:
    """Return what would be decided for a message as those that were copied, alone and behind a queue."""
    found = []
    for node, rate in sorted(sender.path_rates.items()):
        for queued in (0, size):
            terms = economics.decide(figures.sizes, Situation(size, queued, rate))
            found.append({"node": node, **terms.to_wire()})
    return found


def relative_error(before: Any, after: Any, dtype: str) -> float:
    """Return norm(x - x') / norm(x) (Frobenius) of a tensor; 0 where the bits are the same."""
    import numpy

    if before.tobytes() == after.tobytes():
        return 0.0
    old, new = as_numbers(before, dtype), as_numbers(after, dtype)
    norm = float(numpy.linalg.norm(old.ravel()))
    return float(numpy.linalg.norm((old - new).ravel())) / norm if norm else math.inf


def as_numbers(array: Any, dtype: str) -> Any:
    """Return the values that bits of a dtype stand for, as float64; of fp8 the bits themselves."""
    import numpy

    if dtype == "bf16":
        wide = numpy.ascontiguousarray(array).view(numpy.uint16).astype(numpy.uint32) << 16
        return wide.view(numpy.float32).astype(numpy.float64)
    return array.astype(numpy.float64)


def _with(context: TensorContext, info: Mapping[str, Any]) -> TensorContext:
    return TensorContext(
        context.channel, context.field, context.dtype, context.shape, context.axes, info
    )


def _bytes_of(part: Any) -> Any:
    import numpy

    if isinstance(part, numpy.ndarray):
        return numpy.ascontiguousarray(part).reshape(-1).view(numpy.uint8)
    return numpy.frombuffer(part, numpy.uint8)
