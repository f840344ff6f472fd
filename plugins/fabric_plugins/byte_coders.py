"""General-purpose compressors behind one small face: zstd and lz4, each imported when it is first asked for."""

from __future__ import annotations

from typing import Any, Protocol

from fabric.errors import ConfigError

INSTALL = "pip install 'fabricd[codecs]' on both ends of the channel"


class Coder(Protocol):
    """Compresses one buffer at a time; from one thread at a time."""

    def compress(self, data: Any) -> bytes:
        """Return the buffer, compressed."""

    def decompress(self, data: Any, size: int) -> bytes:
        """Return exactly `size` bytes; ValueError where the data are damaged or hold more or fewer."""


class Zstd:
    """zstd (RFC 8878), one frame a buffer."""

    def __init__(self, level: int) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise ConfigError(f"compress: method zstd needs zstandard; {INSTALL}") from error
        if not 1 <= level <= zstandard.MAX_COMPRESSION_LEVEL:
            raise ConfigError(
                f"compress: level {level} of zstd; use 1 to {zstandard.MAX_COMPRESSION_LEVEL}",
                key="level",
            )
        self._error = zstandard.ZstdError
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._decompressor = zstandard.ZstdDecompressor()
        self._content_size = zstandard.frame_content_size

    def compress(self, data: Any) -> bytes:
        """Return one frame that says its content's size."""
        return bytes(self._compressor.compress(data))

    def decompress(self, data: Any, size: int) -> bytes:
        """Return the content of one frame; the size it claims is looked at before memory is taken."""
        try:
            if self._content_size(data) != size:
                raise ValueError(f"a zstd frame of another size than {size}")
            found = bytes(self._decompressor.decompress(data, max_output_size=size))
        except self._error as error:
            raise ValueError(f"damaged zstd frame: {error}") from error
        return found


class Lz4:
    """LZ4 block format, without its size."""

    def __init__(self, level: int) -> None:
        try:
            import lz4.block
        except ImportError as error:
            raise ConfigError(f"compress: method lz4 needs lz4; {INSTALL}") from error
        if not 1 <= level <= 12:
            raise ConfigError(f"compress: level {level} of lz4; use 1 to 12", key="level")
        self._block = lz4.block
        self._mode = (
            {"mode": "fast"} if level < 3 else {"mode": "high_compression", "compression": level}
        )

    def compress(self, data: Any) -> bytes:
        """Return one block."""
        return bytes(self._block.compress(data, store_size=False, **self._mode))

    def decompress(self, data: Any, size: int) -> bytes:
        """Return the content of one block."""
        try:
            found = bytes(self._block.decompress(data, uncompressed_size=size))
        except self._block.LZ4BlockError as error:
            raise ValueError(f"damaged lz4 block: {error}") from error
        if len(found) != size:
            raise ValueError(f"an lz4 block of {len(found)} bytes, expected {size}")
        return found


def coder_of(method: str, level: int) -> Coder:
    """Return a compressor by name; ConfigError when its package is not installed or it has no such level."""
    return Zstd(level) if method == "zstd" else Lz4(level)
