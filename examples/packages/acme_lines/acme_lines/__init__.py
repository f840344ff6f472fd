"""Lines of text with numbers: a message type, a map and a codec. Nothing here knows where they run."""

import zlib

import numpy as np

import fabric


@fabric.message("acme.line")
class Line:
    text: str
    data: fabric.Tensor["n", "f32"]


@fabric.message("acme.line.packed")
class PackedLine:
    text: str
    data: fabric.Tensor["bytes", "u8"]


@fabric.transform("acme_shout", accepts=Line, max_expansion=2.0, on_error="bypass")
class Shout:
    def apply(self, batch, ctx):
        return [Line(m.text.upper(), m.data) for m in batch]


@fabric.transform("acme_packed", accepts=Line, produces=PackedLine, max_expansion=1.1)
class Packed:
    def apply(self, batch, ctx):
        packed = [np.frombuffer(zlib.compress(m.data, 1), np.uint8) for m in batch]
        return [PackedLine(m.text, data) for m, data in zip(batch, packed, strict=True)]

    def revert(self, batch, ctx):
        return [Line(m.text, np.frombuffer(zlib.decompress(m.data), np.float32)) for m in batch]
