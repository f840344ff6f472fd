"""Native kernels for transforms: fast loops over plain arrays, for whoever writes a codec. Pure; no IO.

They hold no lock of the interpreter while they run, use one core, and choose vectors by the processor at hand
(``FABRIC_VECTORS=plain|avx2`` in the environment limits them). Numpy is imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fabric import _native
from fabric.errors import TypeMismatchError

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Buffer

#: dtype name → (bytes of an element, whether the bits are turned left by one before they are taken apart)
FLOAT_LAYOUTS: Final = {
    "f32": (4, True),
    "f16": (2, True),
    "bf16": (2, True),
    "f8_e4m3": (1, False),
    "f8_e5m2": (1, False),
    "i8": (1, False),
    "u8": (1, False),
    "bool": (1, False),
    "i32": (4, False),
    "i64": (8, False),
}


def compress_floats(array: np.ndarray[Any, Any], dtype: str, row: int = 0) -> np.ndarray[Any, Any]:
    """Compress an array of numbers, lossless.

    Elements are taken apart into planes of bytes (exponents of bf16 and f32 into one of their own); each plane of
    each block of 128 Ki elements is entropy-coded with a prefix code of order 0 where that pays.

    Parameters
    ----------
    array : numpy.ndarray
        C-contiguous, any shape; bf16 as uint16, fp8 as uint8.
    dtype : str
        Its dtype in the fabric: a key of `FLOAT_LAYOUTS`.
    row : int, optional
        Elements after which columns repeat, e.g. heads × dim of ``[tokens, heads, dim]``: where columns have scales of
        their own the mean of each column's exponents is taken off first. 0 or more than 32,768: no columns.

    Returns
    -------
    numpy.ndarray
        uint8[n]; n is at most the array's bytes + 16 + row + 64 + 4 × (bytes of an element) a block.

    Raises
    ------
    TypeMismatchError
        An unknown dtype, or elements of another size.

    Notes
    -----
    The layout is versioned and described in ``fabric/native/codec/float_codec.hpp``. Code lengths are Huffman's
    (Proc. IRE 40, 1952), limited to 11 bits.
    """
    import numpy

    width, rotated = FLOAT_LAYOUTS.get(dtype, (0, False))
    if width != array.itemsize:
        raise TypeMismatchError(
            f"compress_floats takes {', '.join(FLOAT_LAYOUTS)} with elements of that size, "
            f"not {dtype!r} in {array.itemsize} bytes",
            dtype=dtype,
        )
    out = numpy.empty(_native.float_encode_max(array.nbytes, width, row), numpy.uint8)
    return out[: _native.float_encode(array, out, width, rotated, row)]


def decompress_floats(data: Buffer, out: np.ndarray[Any, Any]) -> None:
    """Fill `out` with the bits that `compress_floats` was given.

    Parameters
    ----------
    data : buffer
        What `compress_floats` returned; it may be hostile.
    out : numpy.ndarray
        C-contiguous and writable, of the same number of bytes.

    Raises
    ------
    ValueError
        The data are damaged, of another version, or of another number of bytes. `out` then holds anything.
    """
    _native.float_decode(data, out)


def decompressed_bytes(data: Buffer) -> int:
    """Return the bytes that `decompress_floats` will fill, as the data say; ValueError when they are none of ours."""
    return _native.float_decoded_bytes(data)
