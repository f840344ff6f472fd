"""The module of the soak: takes parts from one channel and sends them on in another."""

from __future__ import annotations

import fabric


@fabric.message("soak.part")
class Part:
    producer: int
    number: int
    crc: int
    data: fabric.Tensor["n", "u8"]


class Relay(fabric.Module):
    """Sends every part on, under its key."""

    inn: fabric.In[Part]
    out: fabric.Out[Part]

    def on_inn(self, part: Part) -> None:
        self.out.send(part, key=str(part.producer), deadline=5.0)
