"""Send what differs from a reference that both ends have: a shared prefix's KV, or base weights of an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from fabric import kernels
from fabric.abc.tensor_codec import Encoded, TensorContext
from fabric.abc.transform import transform
from fabric.errors import ConfigError

from .tensors import as_tensor, empty_tensor, flat_bytes

if TYPE_CHECKING:
    import numpy as np

MODES: Final = ("blocks", "xor")
BLOCK_MIN, BLOCK_MAX = 64, 1 << 20
SHRUNK: Final = 0.98
SEED: Final = 0x9E3779B97F4A7C15


@transform("delta", kind="codec", tier="edge", on_error="bypass", time_budget_ms=10_000)
class Delta:
    """Leave out what a reference file has; a tensor of which it has nothing travels raw.

    Parameters
    ----------
    reference : str
        A ``.npy`` file, or any file as bytes; the same on both ends (compared by checksum). Empty: nothing is left out.
    mode : {"blocks", "xor"}
        ``blocks``: blocks of the tensor that stand anywhere in the reference, at a multiple of their size, are named
        and not sent. ``xor``: the tensor is combined with the reference's first bytes and compressed, for tensors
        that are nearly those of the reference.
    block : int
        Bytes of a block, a multiple of 8.
    """

    def __init__(
        self, reference: str = "", mode: Literal["blocks", "xor"] = "blocks", block: int = 4096
    ) -> None:
        if mode not in MODES or block % 8 or not BLOCK_MIN <= block <= BLOCK_MAX:
            raise ConfigError(
                f"delta: mode={mode!r}, block={block}; use {' or '.join(MODES)}, and a multiple of 8 "
                f"from {BLOCK_MIN} to {BLOCK_MAX}"
            )
        self._mode, self._block = mode, block
        self._reference = read_reference(reference)
        self._mark = kernels.crc32c(self._reference)
        self._index = BlockIndex(self._reference, block) if mode == "blocks" else None

    def encode(self, array: np.ndarray[Any, Any], ctx: TensorContext) -> Encoded | None:
        """Return what the reference does not have; None where that is nearly all."""
        raw = flat_bytes(array)
        parts = self._named(raw) if self._index else self._combined(array, raw, ctx)
        if parts is None or sum(part.nbytes for part in parts) >= SHRUNK * raw.nbytes:
            return None
        return Encoded(parts, {"mode": self._mode, "block": self._block, "reference": self._mark})

    def _named(self, raw: np.ndarray[Any, Any]) -> list[Any] | None:
        import numpy

        assert self._index is not None
        whole = len(raw) // self._block * self._block
        blocks = raw[:whole].reshape(-1, self._block)
        places = self._index.find(blocks)
        if not (places >= 0).any():
            return None
        literal = numpy.concatenate([blocks[places < 0].reshape(-1), raw[whole:]])
        return [places, literal]

    def _combined(
        self, array: np.ndarray[Any, Any], raw: np.ndarray[Any, Any], ctx: TensorContext
    ) -> list[Any] | None:
        if not self._reference.size:
            return None
        differing = as_tensor(self._xor(raw), ctx)
        return [kernels.compress_floats(differing, ctx.dtype)]

    def _xor(self, raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        out = raw.copy()
        common = min(len(raw), len(self._reference))
        out[:common] ^= self._reference[:common]
        return out

    def decode(
        self, parts: Sequence[np.ndarray[Any, Any]], ctx: TensorContext
    ) -> np.ndarray[Any, Any]:
        """Return the tensor, bit for bit; ValueError where the reference is another, or the parts do not fit."""
        if ctx.info.get("reference") != self._mark:
            raise ValueError("delta: sender and receiver have different references")
        mode, block = ctx.info.get("mode"), ctx.info.get("block")
        if mode == "xor" and len(parts) == 1:
            out = empty_tensor(ctx)
            kernels.decompress_floats(parts[0], out)
            return as_tensor(self._xor(flat_bytes(out)), ctx)
        if mode != "blocks" or len(parts) != 2 or type(block) is not int or block < BLOCK_MIN:
            raise ValueError(f"delta: {len(parts)} parts in mode {mode!r}, blocks of {block!r}")
        return self._assembled(parts[0], parts[1], block, ctx)

    def _assembled(
        self,
        named: np.ndarray[Any, Any],
        literal: np.ndarray[Any, Any],
        block: int,
        ctx: TensorContext,
    ) -> np.ndarray[Any, Any]:
        import numpy

        out = empty_tensor(ctx)
        raw = out.reshape(-1).view(numpy.uint8)
        whole = len(raw) // block * block
        known = self._reference[: len(self._reference) // block * block].reshape(-1, block)
        if named.nbytes != whole // block * 4:
            raise ValueError(f"delta: {named.nbytes} bytes name {whole // block} blocks")
        places = named.view(numpy.int32)
        missing = places < 0
        if (
            len(literal) != int(missing.sum()) * block + len(raw) - whole
            or (places >= len(known)).any()
        ):
            raise ValueError("delta: literal bytes and named blocks do not make the tensor")
        blocks = raw[:whole].reshape(-1, block)
        blocks[~missing] = known[places[~missing]]
        blocks[missing] = literal[: int(missing.sum()) * block].reshape(-1, block)
        raw[whole:] = literal[int(missing.sum()) * block :]
        return out


class BlockIndex:
    """Where blocks stand in a reference. What is found was compared byte by byte, whatever the hashes say."""

    def __init__(self, reference: np.ndarray[Any, Any], block: int) -> None:
        import numpy

        self._blocks = reference[: len(reference) // block * block].reshape(-1, block)
        random = numpy.random.default_rng(SEED)
        self._weights = random.integers(0, 2**64, block // 8, numpy.uint64) | numpy.uint64(1)
        hashes = self._hash(self._blocks)
        self._order = numpy.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def _hash(self, blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Weighted sums modulo 2^64 of the words of each block."""
        import numpy

        return numpy.ascontiguousarray(blocks).view(numpy.uint64) @ self._weights

    def find(self, blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return, for each block, its number in the reference, -1 where it is not there; int32[n]."""
        import numpy

        places = numpy.full(len(blocks), -1, numpy.int32)
        if not len(self._sorted) or not len(blocks):
            return places
        hashes = self._hash(blocks)
        at = numpy.minimum(numpy.searchsorted(self._sorted, hashes), len(self._sorted) - 1)
        maybe = numpy.flatnonzero(self._sorted[at] == hashes)
        numbers = self._order[at[maybe]]
        same = (self._blocks[numbers] == blocks[maybe]).all(axis=1)
        places[maybe[same]] = numbers[same]
        return places


def read_reference(path: str) -> np.ndarray[Any, Any]:
    """Return a file's bytes, of a ``.npy`` file its array's, as uint8[n]; ConfigError when it cannot be read."""
    import numpy

    if not path:
        return numpy.empty(0, numpy.uint8)
    try:
        if Path(path).suffix == ".npy":
            return flat_bytes(numpy.load(path, allow_pickle=False))
        return numpy.fromfile(path, numpy.uint8)
    except (OSError, ValueError) as error:
        raise ConfigError(f"delta: reference {path}: {error}", key="reference") from error
