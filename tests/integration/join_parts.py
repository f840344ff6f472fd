"""A join for the tests: a picture's numbers and a prompt's become one message."""

from __future__ import annotations

import fabric


@fabric.message("join.picture")
class Picture:
    request: str
    rows: fabric.Tensor["rows dim", "f32"]


@fabric.message("join.prompt")
class Prompt:
    request: str
    text: str


@fabric.message("join.pair")
class Pair:
    request: str
    text: str
    total: float
    missing: list[str]


@fabric.join(
    "pair",
    inputs={"picture": Picture, "prompt": Prompt},
    produces=Pair,
    by="request",
    window_s=30.0,
)
class Pairs:
    def open(self, config):
        self.factor = config.get("factor", 1)

    def fuse(self, parts, ctx):
        picture, prompt = parts["picture"], parts["prompt"]
        assert prompt.text != "raise", "as the prompt asks"
        if prompt.text == "drop":
            return fabric.Drop("as the prompt asks")
        total = 0.0 if picture is None else float(picture.rows.sum()) * self.factor
        return Pair(prompt.request, prompt.text, total, list(ctx.missing))
