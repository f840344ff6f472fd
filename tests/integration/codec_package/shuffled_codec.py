"""An installed codec as third parties write it: bytes of equal significance together, then zlib."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

import fabric
from fabric.abc.tensor_codec import Encoded, TensorContext


@fabric.transform("shuffled", tier="edge", on_error="bypass", max_expansion=1.01)
class Shuffled:
    """Lossless; raises for tensors whose first byte is 0xEE where `trips` is set."""

    def __init__(self, level: int = 1, trips: bool = False) -> None:
        self.level, self.trips = level, trips

    def encode(self, array: np.ndarray[Any, Any], ctx: TensorContext) -> Encoded | None:
        data = array.reshape(-1).view(np.uint8)
        if self.trips and data[0] == 0xEE:
            raise ValueError("it tripped")
        planes = np.ascontiguousarray(data.reshape(-1, array.itemsize).T)
        return Encoded([zlib.compress(planes.tobytes(), self.level)], {"item": array.itemsize})

    def decode(
        self, parts: Sequence[np.ndarray[Any, Any]], ctx: TensorContext
    ) -> np.ndarray[Any, Any]:
        item = int(ctx.info["item"])
        planes = np.frombuffer(zlib.decompress(parts[0]), np.uint8).reshape(item, -1)
        flat = np.ascontiguousarray(planes.T).reshape(-1)
        return flat.view(np.dtype(f"u{item}")).reshape(ctx.shape)


@fabric.transform("refusing", tier="edge", on_error="fail")
class Refusing(Shuffled):
    """As `shuffled`, and a tensor that it cannot encode is not sent."""


@fabric.transform("staged")
class Staged(Shuffled):
    """As `shuffled`, and not declared for the edge."""
