"""The sending half of codecs: decide per message, encode its tensors, pack the envelope. One thread at a time.

`Coder` has no socket and no clock of its own; the sender gives it what it knows of its flows and of the path.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import msgspec

from fabric import limits
from fabric.abc.tensor_codec import Encoded, TensorContext
from fabric.abc.transform import TransformExport
from fabric.dataplane.coding.economics import (
    PROBE_BYTES,
    PROBE_WEIGHT,
    SHRUNK,
    SMALL_BYTES,
    Economics,
    Situation,
    Terms,
)
from fabric.dataplane.coding.restore import axes_of
from fabric.errors import CapacityError, TransformError
from fabric.messages import MessageType
from fabric.messages.envelope import CodedTensor, pack
from fabric.messages.tensor import DTYPES

log = logging.getLogger("fabric.codecs")
_unpack: Final = msgspec.msgpack.Decoder(list[Any]).decode
_pack_info: Final = msgspec.msgpack.Encoder().encode
WARM_BYTES: Final = 16 << 10  #: of the first tensor of all, encoded before any is measured
TENSOR_BYTES_MIN: Final = (
    1024  #: smaller tensors of a message travel raw, unless the codec always runs
)
NS: Final = 1e-9


@dataclass(frozen=True, slots=True)
class CodecUse:
    """A codec on a channel as `fabric.yaml` says it; see `fabric.config.spec.TransformSettings`."""

    name: str
    when: str = "pays"
    where: str = "remote"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> CodecUse:
        """Return what the daemon said."""
        return cls(plain["name"], plain["when"], plain["where"], dict(plain["parameters"]))


class Target(NamedTuple):
    """What one tensor of a message is: its place among the buffers, and what the codec is told."""

    place: int
    array: Any
    context: TensorContext
    field: str


class Surroundings(NamedTuple):
    """What the sender knows when a message is to be sent."""

    is_remote: bool
    queued_messages: int
    path_bytes_per_s: float


class Coder:
    """Encodes the messages of one sender with one codec.

    Parameters
    ----------
    channel : str
    type_ : MessageType
    use : CodecUse
    export : TransformExport
        What the codec declares.
    codec
        Its instance.
    surroundings : callable
        Returns `Surroundings`; asked only for messages that are large enough.

    Notes
    -----
    Calls are serialised by a lock of its own: a codec never sees two `encode` at once.
    """

    def __init__(
        self,
        channel: str,
        type_: MessageType,
        use: CodecUse,
        export: TransformExport,
        codec: Any,
        surroundings: Callable[[], Surroundings],
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.use = replace(use, when="always") if export.guards and use.when == "pays" else use
        self.export = export
        self.economics = Economics()
        self.counts: Counter[str] = Counter()
        self.decisions: deque[dict[str, Any]] = deque(maxlen=limits.CODEC_DECISIONS_KEPT)
        self._channel = channel
        self._type = type_
        self._codec = codec
        self._surroundings = surroundings
        self._now = now
        self._lock = threading.Lock()
        self._message_bytes = 0.0  #: mean size on the wire, of late
        self._errors = 0

    def code(
        self, meta: bytes, buffers: list[Any], deadline_s: float
    ) -> tuple[bytes, list[Any]] | None:
        """Return (meta, buffers) of the message encoded, or None where it is to travel raw.

        Parameters
        ----------
        deadline_s : float
            Seconds left, inf where it has no deadline.

        Raises
        ------
        TransformError
            The codec failed, and its ``on_error`` is not ``bypass``; nothing was sent.
        """
        if self.use.when == "never":
            return None
        total = sum(buffer.nbytes for buffer in buffers if type(buffer) is not bytes)
        if self.use.when == "pays" and total < SMALL_BYTES:
            self.counts["small"] += 1
            return None
        with self._lock:
            around = self._surroundings()
            if self.use.where == "remote" and not around.is_remote:
                self.counts["local"] += 1
                return None
            return self._code(meta, buffers, total, around, deadline_s)

    def _code(
        self, meta: bytes, buffers: list[Any], total: int, around: Surroundings, deadline_s: float
    ) -> tuple[bytes, list[Any]] | None:
        targets = self.targets(meta, buffers)
        terms = self._decide(targets, around, deadline_s)
        coded = self._encode_all(meta, buffers, targets, terms) if terms.coded else None
        wire = total if coded is None else sum(_size(buffer) for buffer in coded[1])
        self._message_bytes += 0.2 * (wire - self._message_bytes) if self._message_bytes else wire
        self.counts["coded" if coded is not None else "raw"] += 1
        self.counts["raw_bytes"] += total
        self.counts["wire_bytes"] += wire
        self._note(terms, coded is not None, total, wire)
        if coded is None and self.use.when == "pays":
            self._probe(targets, around, terms)
        return coded

    def targets(self, meta: bytes, buffers: list[Any]) -> list[Target]:
        """Return the tensors of a message that the codec takes."""
        values, found, index = _unpack(meta), [], 0
        for tensor in self._type.tensors:
            raw = values[tensor.position]
            for item, descriptor in enumerate(raw if tensor.spec.is_list else [raw]):
                buffer = buffers[index]
                if descriptor is not None and self._takes(descriptor[0], buffer):
                    name = f"{tensor.name}[{item}]" if tensor.spec.is_list else tensor.name
                    shape, dtype = tuple(descriptor[1:]), DTYPES[descriptor[0]][0]
                    context = TensorContext(self._channel, name, dtype, shape, axes_of(tensor))
                    found.append(Target(index, buffer, context, tensor.name))
                index += 1
        return found

    def _takes(self, code: int, buffer: Any) -> bool:
        if type(buffer) is bytes or not buffer.nbytes:
            return False
        is_always = self.use.when == "always"
        allowed = not self.export.dtypes or DTYPES[code][0] in self.export.dtypes
        return allowed and (is_always or buffer.nbytes >= TENSOR_BYTES_MIN)

    # ---- deciding
    def _decide(self, targets: list[Target], around: Surroundings, deadline_s: float) -> Terms:
        sizes: Counter[str] = Counter()
        for target in targets:
            sizes[target.field] += target.array.nbytes
        queued = int(around.queued_messages * self._message_bytes)
        at = Situation(sum(sizes.values()), queued, around.path_bytes_per_s, deadline_s)
        terms = self.economics.decide(sizes, at)
        if self.use.when == "always":
            return terms._replace(coded=bool(targets), reason="always")
        return terms if targets else terms._replace(coded=False, reason="no tensor of its dtypes")

    def _note(self, terms: Terms, is_coded: bool, total: int, wire: int) -> None:
        reason = terms.reason if is_coded == terms.coded else "it did not shrink"
        row = {
            **terms.to_wire(),
            "at_ns": time.monotonic_ns(),
            "chosen": self.use.name if is_coded else "raw",
        }
        self.decisions.append({**row, "reason": reason, "message_bytes": total, "wire_bytes": wire})

    def explain(self) -> dict[str, Any]:
        """Return what was decided of late, with its terms, oldest first, and counts since the sender was opened."""
        with self._lock:
            kept, counts = list(self.decisions), dict(self.counts)
        use = {"codec": self.use.name, "when": self.use.when, "where": self.use.where}
        return {**use, "counts": counts, "decisions": kept}

    # ---- encoding
    def _encode_all(
        self, meta: bytes, buffers: list[Any], targets: list[Target], terms: Terms
    ) -> tuple[bytes, list[Any]] | None:
        is_always = self.use.when == "always"
        by_index = {t.place: t for t in targets if is_always or self.economics.shrinks(t.field)}
        tensors: list[CodedTensor | None] = []
        out: list[Any] = []
        for index, buffer in enumerate(buffers):
            target = by_index.get(index)
            encoded = self._encode(target) if target is not None else None
            if encoded is None:
                tensors.append(None)
                out.append(buffer)
            else:
                tensors.append(encoded[0])
                out += encoded[1]
        if not any(tensors):
            return None
        if len(out) > limits.TENSORS_PER_MESSAGE_MAX:
            self._failed(CapacityError(f"{len(out)} parts of tensors in one message"), "it")
            return None
        return pack(self._type.schema.type_id, meta, tuple(tensors)), out

    def _encode(self, target: Target) -> tuple[CodedTensor, list[Any]] | None:
        """Encode one tensor and learn from it; None: it travels raw."""
        began = self._now()
        try:
            encoded = self._codec.encode(_shaped(target.array, target.context), target.context)
            if encoded is None:
                return None
            parts = [_as_bytes(part) for part in encoded.parts]
            coded = CodedTensor(self.use.name, tuple(p.nbytes for p in parts), dict(encoded.info))
            size = sum(coded.sizes)
            self._check(target, encoded, size)
        except Exception as error:
            self._failed(error, f"field {target.context.field!r}")
            return None
        self.economics.encoded(target.field, target.array.nbytes, size, self._now() - began)
        if self.use.when == "pays" and size >= SHRUNK * target.array.nbytes:
            return None
        return coded, parts

    def _check(self, target: Target, encoded: Encoded, size: int) -> None:
        bound = target.array.nbytes * self.export.max_expansion + limits.TRANSFORM_SLACK_BYTES
        if size > bound:
            raise TransformError(
                f"{size} bytes out of {target.array.nbytes}, max_expansion={self.export.max_expansion:g}"
                f" allows {int(bound)}: raise max_expansion"
            )
        if not 0 < len(encoded.parts) <= limits.CODEC_PARTS_MAX:
            raise TransformError(
                f"{len(encoded.parts)} parts, CODEC_PARTS_MAX is {limits.CODEC_PARTS_MAX}"
            )
        if len(_pack_info(encoded.info)) > limits.CODEC_INFO_BYTES_MAX:
            raise TransformError(
                f"info of more than CODEC_INFO_BYTES_MAX ({limits.CODEC_INFO_BYTES_MAX}) bytes: make it a part"
            )

    def _failed(self, error: Exception, what: str) -> None:
        """A codec failed: by its declaration the tensor travels raw (said once a time), or the send is refused."""
        self.counts["errors"] += 1
        said = (
            f"codec {self.use.name!r} on {self._channel!r}, {what}: {type(error).__name__}: {error}"
        )
        if self.export.on_error != "bypass":
            raise TransformError(f"{said}; nothing was sent", channel=self._channel) from error
        if self.counts["errors"].bit_count() == 1:  # the 1st, 2nd, 4th, 8th …
            log.warning("%s; it travels raw (%d errors)", said, self.counts["errors"])

    # ---- probing
    def _probe(self, targets: list[Target], around: Surroundings, terms: Terms) -> None:
        """Measure the codec on a slice of each field of a message that goes raw, now and then."""
        now = self._now()
        if not targets or not self.economics.wants_probe(now, around.path_bytes_per_s):
            return
        for target in {t.field: t for t in targets}.values():
            try:
                self._probe_one(target)
            except Exception as error:
                self.counts["errors"] += 1
                log.warning(
                    "codec %r fails in a probe on %r: %s", self.use.name, self._channel, error
                )
        self.counts["probes"] += 1
        is_losing = bool(terms.encode_bytes_per_s) and bool(around.path_bytes_per_s)
        cost_s = self._now() - now
        self.economics.probed(self._now(), cost_s, around.path_bytes_per_s, is_losing)

    def _probe_one(self, target: Target) -> None:
        economics, whole = self.economics, _shaped(target.array, target.context)
        if not economics.encode.seen_s:  # what is imported or built at first use says nothing
            self._codec.encode(*_slice(whole, target.context, WARM_BYTES))
        array, context = _slice(whole, target.context, PROBE_BYTES)
        began = self._now()
        encoded = self._codec.encode(array, context)
        took_s = self._now() - began
        if encoded is None:
            economics.encoded(target.field, array.nbytes, array.nbytes, took_s, PROBE_WEIGHT)
            return
        parts = [_as_bytes(part) for part in encoded.parts]
        size = sum(part.nbytes for part in parts)
        economics.encoded(target.field, array.nbytes, size, took_s, PROBE_WEIGHT)
        began = self._now()
        self._codec.decode(parts, dataclasses.replace(context, info=encoded.info))
        economics.decode.add(array.nbytes, self._now() - began, PROBE_WEIGHT)


def _shaped(buffer: Any, context: TensorContext) -> Any:
    """Return a buffer as a read-only array of its shape."""
    array = buffer.view()
    array.flags.writeable = False
    return array if array.shape == context.shape else array.reshape(context.shape)


def _slice(array: Any, context: TensorContext, most: int) -> tuple[Any, TensorContext]:
    """Return the first rows of an array, up to about `most` bytes, and what a codec is told of them."""
    if not array.ndim or array.nbytes <= most:
        return array, context
    part = array[: max(1, len(array) * most // array.nbytes)]
    return part, dataclasses.replace(context, shape=part.shape)


def _as_bytes(part: Any) -> Any:
    """Return one part of an encoded tensor as a flat uint8 array; no copy of what is contiguous."""
    import numpy

    if isinstance(part, numpy.ndarray):
        return numpy.ascontiguousarray(part).reshape(-1).view(numpy.uint8)
    return numpy.frombuffer(part, numpy.uint8)


def _size(buffer: Any) -> int:
    return len(buffer) if type(buffer) is bytes else int(buffer.nbytes)
