"""Subject ``bench.ours.codec``: `fabric_plugins.compress` as a channel runs it, without the channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fabric_plugins.compress import Compress

from bench.transforms.codec_loop import CodecEnd
from fabric.abc.tensor_codec import Encoded, TensorContext


class Packed:
    """An encoded tensor that knows its bytes."""

    def __init__(self, encoded: Encoded) -> None:
        self.parts, self.info = list(encoded.parts), encoded.info

    def __len__(self) -> int:
        return sum(part.nbytes for part in self.parts)


def connect(role: str, folder: Path, options: dict[str, Any]) -> CodecEnd:
    """Return the end."""
    codec = Compress()

    def context(array: Any, **info: Any) -> TensorContext:
        return TensorContext("kv", "k", "bf16", array.shape, ("tokens", "heads", "dim"), info)

    def encode(array: np.ndarray[Any, Any]) -> Packed:
        encoded = codec.encode(array, context(array))
        if encoded is None:
            raise RuntimeError("the KV of the model did not shrink")
        return Packed(encoded)

    return CodecEnd(
        role,
        encode,
        lambda packed, array: codec.decode(packed.parts, context(array, **packed.info)),
    )
