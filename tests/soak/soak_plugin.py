"""A plugin of the soak: lets parts pass, with the number of its process printed now and then."""

import fabric


@fabric.message("soak.part")
class Part:
    producer: int
    number: int
    crc: int
    data: fabric.Tensor["n", "u8"]


@fabric.transform("let_pass", accepts=Part, produces=Part, on_error="fail", max_expansion=2.0)
class LetPass:
    """Hands on what it gets."""

    def apply(self, batch, ctx):
        return [Part(part.producer, part.number, part.crc, part.data) for part in batch]
