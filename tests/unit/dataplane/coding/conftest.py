"""A codec without native parts, and messages for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fabric
from fabric.abc.tensor_codec import Encoded
from fabric.abc.transform import EXPORT_ATTRIBUTE, TransformExport, transform
from fabric.dataplane.coding.encode import CodecUse, Coder, Surroundings
from fabric.messages import message_type


@fabric.message("coding.kv")
class KV:
    number: int
    k: fabric.Tensor["tokens dim", "bf16 | f32"]
    extra: fabric.Tensor["n", "i64"] | None = None
    parts: list[fabric.Tensor["...", "f32 | f8_e4m3"]] = []


class First:
    """Keeps every second byte, where those between are 0."""

    def __init__(self, fails: bool = False, grows: bool = False) -> None:
        self.fails, self.grows = fails, grows
        self.seen: list[tuple[str, str, tuple[int, ...]]] = []

    def encode(self, array: Any, ctx: Any) -> Encoded | None:
        self.seen.append((ctx.field, ctx.dtype, ctx.shape))
        if self.fails:
            raise ValueError("it fails")
        flat = array.reshape(-1).view(np.uint8)
        if flat[1::2].any():
            return None
        return Encoded([np.tile(flat, 2)] if self.grows else [flat[::2]], {"n": flat.nbytes})

    def decode(self, parts: Any, ctx: Any) -> Any:
        out = np.zeros(int(ctx.info["n"]), np.uint8)
        out[::2] = parts[0]
        return out.view({"bf16": np.uint16, "f32": np.float32, "i64": np.int64}[ctx.dtype])


def export_of(**options: Any) -> TransformExport:
    made = transform("first", tier="edge", **options)(type("First", (First,), {}))
    return getattr(made, EXPORT_ATTRIBUTE)


class Bench:
    """Makes coders; `around` is what they are told."""

    KV = KV
    First = First
    export_of = staticmethod(export_of)

    def __init__(self) -> None:
        self.around = Surroundings(True, 0, 0.0)
        self.now = 0.0

    def tick(self) -> float:
        self.now += 0.001
        return self.now

    def coder(self, codec: First | None = None, export: Any = None, **use: Any) -> Coder:
        made = CodecUse("first", **{"when": "always", **use})
        return Coder(
            "kv",
            message_type(KV),
            made,
            export or export_of(on_error="bypass"),
            codec or First(),
            lambda: self.around,
            self.tick,
        )


@pytest.fixture
def bench() -> Bench:
    return Bench()
