"""Lossless compression of tensors: by default the native codec of floats, or zstd or lz4 behind a byte shuffle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from fabric import kernels
from fabric.abc.tensor_codec import Encoded, TensorContext
from fabric.abc.transform import transform
from fabric.errors import ConfigError

from .byte_coders import Coder, coder_of
from .tensors import BITS, as_tensor, columns_of, empty_tensor, flat_bytes

if TYPE_CHECKING:
    import numpy as np

METHODS: Final = ("planes", "zstd", "lz4")
SHRUNK: Final = 0.98  # of the raw bytes: what is not smaller is better sent raw


@transform("compress", kind="codec", tier="edge", on_error="bypass", time_budget_ms=10_000)
class Compress:
    """Compress each tensor; one that does not shrink travels raw.

    Parameters
    ----------
    method : {"planes", "zstd", "lz4"}
        ``planes``: `fabric.kernels.compress_floats`, for every dtype. The others shuffle bytes of equal significance
        together first and need the package ``zstandard`` or ``lz4`` on both ends (``pip install fabricd[codecs]``).
    level : int
        Of zstd (1 to 22) and of lz4 (1: fast; 3 to 12: its high-compression mode).
    """

    def __init__(self, method: Literal["planes", "zstd", "lz4"] = "planes", level: int = 1) -> None:
        if method not in METHODS:
            raise ConfigError(
                f"compress: method {method!r} is unknown; use {', '.join(METHODS)}",
                key="method",
                found=method,
            )
        self._method = method
        self._encoder = None if method == "planes" else coder_of(method, level)
        self._decoders: dict[str, Coder] = {}

    def encode(self, array: np.ndarray[Any, Any], ctx: TensorContext) -> Encoded | None:
        """Return one part and the method; None where nothing is won."""
        if self._encoder is None:
            row = columns_of(ctx.shape) if len(ctx.shape) > 1 else 0
            part: Any = kernels.compress_floats(array, ctx.dtype, row)
        else:
            part = self._encoder.compress(shuffled(array))
        if len(part) >= SHRUNK * array.nbytes:
            return None
        return Encoded([part], {"method": self._method})

    def decode(
        self, parts: Sequence[np.ndarray[Any, Any]], ctx: TensorContext
    ) -> np.ndarray[Any, Any]:
        """Return the tensor, bit for bit; ValueError where the part is damaged or of another size."""
        method = ctx.info.get("method")
        if len(parts) != 1 or method not in METHODS:
            raise ValueError(f"compress: {len(parts)} parts by method {method!r}")
        if method == "planes":
            out = empty_tensor(ctx)
            kernels.decompress_floats(parts[0], out)
            return out
        size = math.prod(ctx.shape) * BITS[ctx.dtype][1]
        return unshuffled(self._decoder(method).decompress(parts[0], size), ctx)

    def _decoder(self, method: str) -> Coder:
        if method not in self._decoders:
            self._decoders[method] = coder_of(method, 1)
        return self._decoders[method]


def shuffled(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the bytes of an array ordered by their place in an element, as uint8[n]; none of one-byte dtypes moves."""
    import numpy

    if array.itemsize == 1:
        return flat_bytes(array)
    return numpy.ascontiguousarray(flat_bytes(array).reshape(-1, array.itemsize).T).reshape(-1)


def unshuffled(data: bytes, ctx: TensorContext) -> np.ndarray[Any, Any]:
    """Return the tensor whose shuffled bytes these are; ValueError when they are too few or too many."""
    import numpy

    size = BITS[ctx.dtype][1]
    if size == 1 or not data:
        return as_tensor(data, ctx)
    planes = as_tensor(data, ctx).reshape(-1).view(numpy.uint8).reshape(size, -1)
    return as_tensor(numpy.ascontiguousarray(planes.T).reshape(-1), ctx)
