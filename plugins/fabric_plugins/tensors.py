"""What the codecs here share: bytes of arrays, empty arrays of a declared dtype, columns of a tensor. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from fabric.abc.tensor_codec import TensorContext
from fabric.messages.tensor import DTYPES

if TYPE_CHECKING:
    import numpy as np

#: dtype name → (numpy name of its bits, bytes of an element)
BITS: Final = {name: (bits, size) for name, bits, size in DTYPES.values()}


def flat_bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the bytes of an array as uint8[n]; no copy where it is C-contiguous."""
    import numpy

    return numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8)


def empty_tensor(ctx: TensorContext) -> np.ndarray[Any, Any]:
    """Return an array for what a codec decodes: the shape and the bits that `ctx` says, contents open."""
    import numpy

    return numpy.empty(ctx.shape, BITS[ctx.dtype][0])


def as_tensor(data: Any, ctx: TensorContext) -> np.ndarray[Any, Any]:
    """Return bytes as the tensor that `ctx` says.

    Raises
    ------
    ValueError
        They are more or fewer than it has.
    """
    import numpy

    bits, size = BITS[ctx.dtype]
    wanted = math.prod(ctx.shape) * size
    raw = numpy.frombuffer(data, numpy.uint8)
    if raw.nbytes != wanted:
        raise ValueError(f"{raw.nbytes} bytes, {ctx.dtype}{list(ctx.shape)} has {wanted}")
    return raw.view(bits).reshape(ctx.shape)


def columns_of(shape: tuple[int, ...]) -> int:
    """Return the elements behind one index of the first dimension: columns of its rows; all of a vector."""
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
