"""The receiving half of codecs: an envelope back into a message of the declared type. One thread per message."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from fabric.abc.tensor_codec import TensorContext
from fabric.abc.transform_checks import make
from fabric.dataplane.coding.installed import edge_codec
from fabric.errors import CapacityError, FabricError, PeerProtocolError, TypeMismatchError
from fabric.messages import Schema, class_from_schema, message_type
from fabric.messages.envelope import CodedTensor, unpack
from fabric.messages.tensor import DTYPES, FP8, as_fp8
from fabric.messages.view import check_descriptor

FindCodec = Callable[[str], Any]
SchemaOf = Callable[[int], Schema]


def no_schema(type_id: int) -> Schema:
    """Know no other version."""
    raise TypeMismatchError("it has another fingerprint")


def _nothing() -> None:
    """Stand for a tensor that is absent."""


class RestoredMessage:
    """What a restored view holds: the received message, beside the message's own fields and tensors.

    Everything but those is the received message's (header, acknowledgement).
    """

    __slots__ = ("_native", "_tensors", "meta", "payload_bytes", "type")

    def __init__(self, native: Any, meta: bytes, tensors: list[Any], type_id: int) -> None:
        self._native = native
        self.type = type_id
        # The view holds its tensors; who counts the references to them must not find ours.
        self._tensors = [_nothing if t is None else weakref.ref(t) for t in tensors]
        self.meta = meta
        self.payload_bytes = len(meta) + sum(t.nbytes for t in tensors if t is not None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def tensor(self, index: int, dtype: str, shape: tuple[int, ...]) -> Any:
        """Return tensor `index`, decoded; for a reader of another version of the type."""
        array = self._tensors[index]()
        if array is None or (array.dtype.name, array.shape) != (dtype, shape):
            raise PeerProtocolError(
                f"tensor {index} of an encoded message is no {dtype}{list(shape)}"
            )
        return array.view()

    def copy_into(self, index: int, target: Any) -> int:
        """Copy tensor `index` into a writable buffer; returns its bytes."""
        import numpy

        source = self._tensors[index]()
        into = numpy.frombuffer(memoryview(target).cast("B"), numpy.uint8)
        if source is None or into.nbytes < source.nbytes:
            size = 0 if source is None else source.nbytes
            raise CapacityError(f"a tensor of {size} bytes into {into.nbytes}", value=size)
        into[: source.nbytes] = source.reshape(-1).view(numpy.uint8)
        return int(source.nbytes)


class Restorer:
    """Restores messages of one receiving end; makes each codec once.

    Parameters
    ----------
    channel : str
    find : callable
        Name → instance with ``decode``; default: installed codecs, made without parameters.
    schema_of : callable
        Fingerprint → schema of another version of the type.
    """

    def __init__(
        self, channel: str, find: FindCodec | None = None, schema_of: SchemaOf = no_schema
    ) -> None:
        self._channel = channel
        self._schema_of = schema_of
        self._others: dict[int, Any] = {}
        self._find = find or (lambda name: make(edge_codec(name)))
        self._codecs: dict[str, Any] = {}

    def restore(self, native: Any, source: Any) -> Any:
        """Return the view of an enveloped message.

        Raises
        ------
        PeerProtocolError
            It is not of this type, or its parts are not what its codec gives; names channel, field and codec.
        PluginError
            Its codec is not installed here.
        """
        own = source.type
        envelope = unpack(native.meta, own.schema.label)
        type_ = own if envelope.type_id == own.schema.type_id else self._foreign(envelope.type_id)
        view = type_.unpack(envelope.meta)
        places = list(_places(type_, view))
        if len(places) != len(envelope.tensors):
            raise PeerProtocolError(
                f"channel {self._channel!r}: {len(envelope.tensors)} encoded tensors for a message of {len(places)}"
            )
        arrays, index = [], 0
        for place, coded in zip(places, envelope.tensors, strict=True):
            arrays.append(self._tensor(native, source, index, place, coded))
            index += len(coded.sizes) if coded is not None else 1
        _fill(type_, view, arrays)
        restored = RestoredMessage(native, envelope.meta, arrays, envelope.type_id)
        if type_ is not own:
            # Of another version: read as what it is, then converted; until then `arrays` holds its tensors.
            return source.decode(restored)
        view._native = restored
        view._source = source
        return view

    def _foreign(self, type_id: int) -> Any:
        """Return another version of the channel's type."""
        if type_id not in self._others:
            try:
                schema = self._schema_of(type_id)
            except FabricError as error:
                raise PeerProtocolError(
                    f"channel {self._channel!r}: an encoded message of another type: {error.message}"
                ) from error
            self._others[type_id] = message_type(class_from_schema(schema))
        return self._others[type_id]

    def _tensor(
        self, native: Any, source: Any, index: int, place: Any, coded: CodedTensor | None
    ) -> Any:
        field, name, raw = place
        if raw is None:
            return None
        numpy_name, shape = check_descriptor(name, field.spec, frozenset(field.spec.dtypes), raw)
        if coded is None:
            array = _mapped(native, source, index, numpy_name, shape)
        else:
            array = self._decoded(native, source, index, (field, name, raw), coded)
            array = self._of(array, numpy_name, shape, f"field {name!r}: codec {coded.codec!r}")
        dtype = DTYPES[raw[0]][0]
        return as_fp8(array, dtype) if dtype in FP8 else array

    def _of(self, array: Any, dtype: str, shape: tuple[int, ...], what: str) -> Any:
        """Return what a codec decoded as the dtype and shape of the message; its bits must be as many."""
        import numpy

        wanted = math.prod(shape) * numpy.dtype(dtype).itemsize
        if not isinstance(array, numpy.ndarray) or array.nbytes != wanted:
            found = f"{array.nbytes} bytes" if isinstance(array, numpy.ndarray) else repr(array)
            raise PeerProtocolError(
                f"channel {self._channel!r}, {what} decoded to {found:.80}, not {dtype}{list(shape)}"
            )
        array = numpy.ascontiguousarray(array).view(dtype).reshape(shape)
        array.flags.writeable = False
        return array

    def _decoded(self, native: Any, source: Any, index: int, place: Any, coded: CodedTensor) -> Any:
        field, name, raw = place
        parts = [
            _mapped(native, source, index + at, "uint8", (size,))
            for at, size in enumerate(coded.sizes)
        ]
        context = TensorContext(
            self._channel, name, DTYPES[raw[0]][0], raw[1:], axes_of(field), coded.info
        )
        codec = self._codecs.get(coded.codec)
        if codec is None:
            codec = self._codecs[coded.codec] = self._find(coded.codec)
        try:
            return codec.decode(parts, context)
        except FabricError:
            raise
        except Exception as error:
            raise PeerProtocolError(
                f"channel {self._channel!r}, field {name!r}: codec {coded.codec!r} cannot decode it: {error}"
            ) from error


def axes_of(field: Any) -> tuple[str, ...]:
    """Return the declared name of each dimension of a tensor field, empty where it has none."""
    return tuple(dim if isinstance(dim, str) and dim != "..." else "" for dim in field.spec.dims)


def _places(type_: Any, view: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yield (field, name, descriptor) of every tensor of a message, in wire order."""
    for field in type_.tensors:
        raw = view._raw[field.name].__get__(view)
        if not field.spec.is_list:
            yield field, field.name, raw
            continue
        for item, each in enumerate(raw):
            yield field, f"{field.name}[{item}]", each


def _fill(type_: Any, view: Any, arrays: list[Any]) -> None:
    """Put tensors where a view keeps those that were read."""
    at = 0
    for field in type_.tensors:
        slot = view._raw[field.name]
        if field.spec.is_list:
            count = len(slot.__get__(view))
            slot.__set__(view, arrays[at : at + count])
            at += count
        else:
            if arrays[at] is not None:
                slot.__set__(view, arrays[at])
            at += 1


def _mapped(native: Any, source: Any, index: int, dtype: str, shape: tuple[int, ...]) -> Any:
    """Return an array over a buffer of a received message; maps the segment that it lies in."""
    import numpy

    if not math.prod(shape):
        return numpy.empty(shape, dtype)
    while True:
        try:
            return native.tensor(index, dtype, shape)
        except source.need_segment as need:
            source.provide(need)
