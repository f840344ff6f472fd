"""Native kernels for transforms: fast loops over plain arrays, for whoever writes a codec. Pure; no IO.

They hold no lock of the interpreter while they run, use one core, and choose vectors by the processor at hand
(``FABRIC_VECTORS=plain|avx2`` in the environment limits them). Numpy is imported at first use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fabric import _native as native
from fabric.errors import TypeMismatchError

if TYPE_CHECKING:
    import numpy as np

_kernels: Final[Any] = native  # arrays are buffers, which types say from Python 3.12 on
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
    out = numpy.empty(_kernels.float_encode_max(array.nbytes, width, row), numpy.uint8)
    return out[: _kernels.float_encode(array, out, width, rotated, row)]


def decompress_floats(data: Any, out: np.ndarray[Any, Any]) -> None:
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
    _kernels.float_decode(data, out)


def decompressed_bytes(data: Any) -> int:
    """Return the bytes that `decompress_floats` will fill, as the data say; ValueError when they are none of ours."""
    return int(_kernels.float_decoded_bytes(data))


#: dtypes that `quantize` takes, and codes that it gives
NUMBERS: Final = ("f32", "f16", "bf16")
CODES: Final = ("i8", "f8_e4m3", "f8_e5m2")


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix in 8 bits, and what that lost.

    Attributes
    ----------
    codes : numpy.ndarray
        uint8[rows, columns]: bits of int8, or of the fp8 type.
    scales : numpy.ndarray
        float32[columns], or float32[rows, groups].
    error, worst_row_error : float
        ``norm(x - x') / norm(x)`` (Frobenius) of the matrix, and the largest of a row; 0 where x is 0 and so is x'.
    is_finite : bool
        False: NaN or infinities are there, and the codes mean nothing.
    """

    codes: np.ndarray[Any, Any]
    scales: np.ndarray[Any, Any]
    error: float
    worst_row_error: float
    is_finite: bool


def quantize(matrix: np.ndarray[Any, Any], dtype: str, code: str, group: int = 0) -> Quantized:
    """Quantise a matrix to 8 bits, symmetric, and measure the loss in the same pass.

    The scale of a column or group is its largest size divided by the largest number of the code (127, 448, 57344);
    int8: ``|x - x'| <= scale / 2`` (Jacob et al., arXiv:1712.05877).

    Parameters
    ----------
    matrix : numpy.ndarray
        C-contiguous, [rows, columns]; bf16 as uint16.
    dtype : {"f32", "f16", "bf16"}
        What its bits mean.
    code : {"i8", "f8_e4m3", "f8_e5m2"}
        e4m3 is the OCP variant without infinities.
    group : int
        Neighbours in a row that share a scale, the last group of a row may be smaller; 0: the rows of a column do.

    Raises
    ------
    TypeMismatchError
        Another dtype or code, no matrix, or elements of another size.
    """
    import numpy

    if dtype not in NUMBERS or code not in CODES or matrix.ndim != 2 or group < 0:
        raise TypeMismatchError(
            f"quantize takes a matrix of {', '.join(NUMBERS)} to {', '.join(CODES)} with group >= 0, "
            f"not {dtype!r} of rank {matrix.ndim} to {code!r} with group {group}",
            dtype=dtype,
        )
    rows, columns = matrix.shape
    groups = -(-columns // group) if group else 0
    codes = numpy.empty((rows, columns), numpy.uint8)
    scales = numpy.empty((rows, groups) if group else columns, numpy.float32)
    error2, norm2, worst, finite = _kernels.quantize(
        matrix, codes, scales, NUMBERS.index(dtype), CODES.index(code), rows, columns, group
    )
    error = (error2 / norm2) ** 0.5 if norm2 > 0 else 0.0
    return Quantized(codes, scales, error, worst, finite)


def dequantize(
    codes: Any, scales: Any, out: np.ndarray[Any, Any], dtype: str, code: str, group: int = 0
) -> None:
    """Fill a matrix with the numbers that codes and scales stand for.

    Parameters
    ----------
    codes, scales : buffer
        As `quantize` gave them; their sizes are checked, their values are not.
    out : numpy.ndarray
        C-contiguous and writable, [rows, columns].
    dtype, code, group
        As `quantize` had them.

    Raises
    ------
    ValueError
        The buffers have other sizes than the matrix needs, or a name is unknown.
    """
    rows, columns = out.shape
    _kernels.dequantize(
        codes, scales, out, CODES.index(code), NUMBERS.index(dtype), rows, columns, group
    )


def crc32c(data: Any, seed: int = 0) -> int:
    """Return the CRC-32C (Castagnoli, RFC 3720 §B.4) of a C-contiguous buffer; `seed` is that of what came before."""
    return int(_kernels.crc32c(data, seed))
