"""What travels instead of a message whose tensors were encoded: the message's own fields, and per tensor its codec.

The meta of an envelope begins with a byte that no MessagePack value begins with, so it can never be taken for the
fields of a message, nor these for an envelope: a receiver finds out where it would otherwise report a broken message,
and one of messages that were not encoded pays nothing. Pure.

    0xC1 [version, type id, meta of the message, [tensor, …]]
    tensor: nil (raw), or [codec, [bytes of a part, …], info]

Buffers follow in the order of the tensors: one of a raw tensor, as many as it has parts of an encoded one.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from fabric import limits
from fabric.errors import CapacityError, PeerProtocolError

MARK: Final = b"\xc1"
VERSION: Final = 1


class CodedTensor(msgspec.Struct, frozen=True, array_like=True):
    """One encoded tensor: the name of its codec, the size of each part in bytes, and what the codec said beside."""

    codec: str
    sizes: tuple[int, ...]
    info: dict[str, Any]


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """An encoded message; `type_id` is the fingerprint of the type that `meta` is of."""

    version: int
    type_id: int
    meta: bytes
    tensors: tuple[CodedTensor | None, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Envelope).decode


def pack(type_id: int, meta: bytes, tensors: tuple[CodedTensor | None, ...]) -> bytes:
    """Return the meta of an envelope.

    Raises
    ------
    CapacityError
        It is larger than `limits.META_BYTES_MAX`.
    """
    packed = MARK + _encode(Envelope(VERSION, type_id, meta, tensors))
    if len(packed) > limits.META_BYTES_MAX:
        raise CapacityError(
            f"the fields take {len(packed)} bytes with what codecs say, META_BYTES_MAX is {limits.META_BYTES_MAX}",
            limit="META_BYTES_MAX",
            value=len(packed),
        )
    return packed


def is_envelope(meta: bytes) -> bool:
    """Tell an envelope from the fields of a message."""
    return meta[:1] == MARK


def unpack(meta: bytes, label: str) -> Envelope:
    """Read the meta of an envelope around a message of a type; `label` names it in errors.

    Raises
    ------
    PeerProtocolError
        It is none, of another version, or says what cannot be.
    """
    try:
        found = _decode(meta[len(MARK) :])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise PeerProtocolError(f"an encoded {label} message does not decode: {error}") from error
    if found.version != VERSION:
        raise PeerProtocolError(
            f"an encoded {label} message of version {found.version}, this build reads {VERSION}"
        )
    for tensor in found.tensors:
        if tensor is not None and not _is_possible(tensor):
            raise PeerProtocolError(
                f"a tensor of an encoded {label} message, by codec {tensor.codec!r:.100},"
                f" with parts of {list(tensor.sizes)[:9]} bytes"
            )
    return found


def _is_possible(tensor: CodedTensor) -> bool:
    return 0 < len(tensor.sizes) <= limits.CODEC_PARTS_MAX and all(
        0 <= size <= limits.MESSAGE_BYTES_MAX for size in tensor.sizes
    )
