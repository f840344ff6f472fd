"""A tap for the codec tests: it sees decoded tensors of `rows` rows, whatever travelled."""

import fabric


@fabric.transform("codec_mark", on_error="fail")
class Mark:
    def __init__(self, rows=64):
        self.rows = rows

    def apply(self, batch, ctx):
        for message in batch:
            if message.k.dtype.name != "uint16" or message.k.shape != (self.rows, 128):
                raise ValueError(f"{message.k.dtype}{message.k.shape}")
        return batch
