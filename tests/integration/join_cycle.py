"""A join that puts out what it takes in, so that two of them can wait for each other."""

from __future__ import annotations

import fabric
from tests.integration.join_parts import Picture, Prompt


@fabric.join("again", inputs={"picture": Picture, "prompt": Prompt}, produces=Picture, by="request")
class Pairs:
    def fuse(self, parts, ctx):
        return Picture(parts["prompt"].request, parts["picture"].rows)
