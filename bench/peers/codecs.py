"""Peers of ``compress``; option ``codec``: ``zstd`` (level 1 behind a shuffle by numpy), ``blosc2`` or ``zipnn``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.transforms.codec_loop import CodecEnd


def connect(role: str, folder: Path, options: dict[str, Any]) -> CodecEnd:
    """Return the end of one codec."""
    return CodecEnd(role, *MAKERS[options["codec"]]())


def zstd_shuffled() -> tuple[Any, ...]:
    """Zstd, level 1, over low bytes, then high bytes."""
    import zstandard

    compressor, decompressor = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()

    def encode(array: Any) -> bytes:
        planes = np.ascontiguousarray(array.reshape(-1).view(np.uint8).reshape(-1, 2).T)
        return compressor.compress(planes)

    def decode(data: bytes, array: Any) -> Any:
        planes = np.frombuffer(decompressor.decompress(data), np.uint8).reshape(2, -1)
        return np.ascontiguousarray(planes.T)

    return encode, decode


def blosc2_zstd() -> tuple[Any, ...]:
    """Blosc2 with its own shuffle, zstd's level 1, one thread."""
    import blosc2

    def encode(array: Any) -> bytes:
        return blosc2.compress2(
            array,
            codec=blosc2.Codec.ZSTD,
            clevel=1,
            typesize=2,
            filters=[blosc2.Filter.SHUFFLE],
            nthreads=1,
        )

    return encode, lambda data, array: blosc2.decompress2(data, nthreads=1)


def zipnn_bf16() -> tuple[Any, ...]:
    """ZipNN for bf16, one thread; it writes to what it is given."""
    from zipnn import ZipNN

    codec = ZipNN(input_format="byte", bytearray_dtype="bfloat16", threads=1)
    return (
        codec.compress,
        lambda data, array: codec.decompress(data),
        lambda array: bytearray(array.tobytes()),
    )


MAKERS = {"zstd": zstd_shuffled, "blosc2": blosc2_zstd, "zipnn": zipnn_bf16}
