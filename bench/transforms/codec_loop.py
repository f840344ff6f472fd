"""Encode and decode real KV on one core, tensor by tensor: the same loop for every codec. Needs numpy alone."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.transforms import kv

Order = dict[str, Any]
PASSES = 2


class CodecEnd:
    """An end with one workload, ``codec``: the near half works, the far one only answers.

    Parameters
    ----------
    role : str
    encode, decode : callable
        ``encode(array) → parts``, anything with a length in bytes; ``decode(encoded, array) → bytes``.
    prepare : callable, optional
        Makes what `encode` is given of an array, outside the timed part (a codec may write to its input).

    Notes
    -----
    Rates are raw bytes per second of CPU of the whole process, so that neither a second thread nor another process on
    the machine counts for or against a codec.
    """

    workloads = ("codec",)

    def __init__(
        self,
        role: str,
        encode: Callable[[Any], Any],
        decode: Callable[[Any, Any], Any],
        prepare: Callable[[Any], Any] = lambda array: array,
    ) -> None:
        self._encode, self._decode, self._prepare = encode, decode, prepare
        self._arrays: list[Any] = []
        if role == "near":
            bits = kv.load()
            self._arrays = [np.ascontiguousarray(t) for layer in bits for t in layer]

    def codec(self, role: str, order: Order) -> Order:
        """Return ``gb_per_s`` of encoding, ``decode_gb_per_s`` and ``wire_share``."""
        if role == "far":
            return {}
        encode_ns = decode_ns = encoded_bytes = 0
        for _ in range(PASSES):
            for array in self._arrays:
                given = self._prepare(array)
                start = time.process_time_ns()
                encoded = self._encode(given)
                middle = time.process_time_ns()
                back = self._decode(encoded, array)
                decode_ns += time.process_time_ns() - middle
                encode_ns += middle - start
                encoded_bytes += len(encoded)
                if zlib.crc32(back) != zlib.crc32(array):
                    raise RuntimeError("what came back is not what was encoded")
        raw = PASSES * sum(array.nbytes for array in self._arrays)
        rates = {"gb_per_s": raw / encode_ns, "decode_gb_per_s": raw / decode_ns}
        return {"figures": {**rates, "wire_share": encoded_bytes / raw}}

    def close(self) -> None:
        """Nothing is held."""
