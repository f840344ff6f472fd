"""The seam of codecs of single tensors: what `encode` and `decode` get and give. Values and one protocol; no IO.

A codec sees one tensor at a time, as a C-contiguous numpy array of the bits that travel (bf16 as uint16, fp8 as
uint8; `TensorContext.dtype` says what they mean). What it returns goes on the wire as it is, beside `info`; the
fabric restores the message around it, so that the receiving application sees the declared type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class TensorContext:
    """What a codec knows of a tensor besides its bits; the same on both sides.

    Parameters
    ----------
    channel, field : str
        Where it travels; ``field[3]`` for an item of a list.
    dtype : str
        Name in the fabric: ``bf16``, ``f32``, ``f8_e4m3``, …
    shape : tuple of int
    axes : tuple of str
        Declared name of each dimension (``("tokens", "heads", "dim")``), ``""`` where it has none.
    info : mapping
        Of `decode`: what `encode` returned beside the parts.
    """

    channel: str
    field: str
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[str, ...] = ()
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """One encoded tensor.

    Parameters
    ----------
    parts : sequence of array or buffer
        1 to `limits.CODEC_PARTS_MAX` C-contiguous buffers; not written by the codec until the message was sent.
    info : mapping
        Numbers, texts, bytes and lists of them, at most `limits.CODEC_INFO_BYTES_MAX` as MessagePack; scales that are
        large belong into a part.
    """

    parts: Sequence[Any]
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class TensorCodec(Protocol):
    """A class decorated with ``@fabric.transform(..., tier="edge")`` that has these two methods.

    One instance serves one channel end. `encode` calls never overlap, and neither do `decode` calls; an instance
    may see both at once, on two threads.
    """

    def encode(self, array: np.ndarray[Any, Any], ctx: TensorContext) -> Encoded | None:
        """Encode one tensor; None: it is better sent raw. `array` is read-only and not kept."""

    def decode(
        self, parts: Sequence[np.ndarray[Any, Any]], ctx: TensorContext
    ) -> np.ndarray[Any, Any]:
        """Return the tensor: `ctx.shape`, dtype as `encode` got it; `parts` are uint8 arrays, not kept.

        Raises
        ------
        ValueError
            The parts are not what `encode` gives. The message ends as failed(corrupted).
        """
