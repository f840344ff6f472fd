"""Pictures meet their captions in flight and leave as one message."""

import fabric


@fabric.message("caption.picture")
class Picture:
    request: str
    rows: fabric.Tensor["rows dim", "f32"]


@fabric.message("caption.caption")
class Caption:
    request: str
    text: str


@fabric.message("caption.pair")
class Pair:
    request: str
    text: str
    rows: fabric.Tensor["rows dim", "f32"] | None


@fabric.join(
    "caption",
    inputs={"picture": Picture, "caption": Caption},
    produces=Pair,
    by="request",
    window_s=0.5,
    late="partial",
    partial=("picture",),
)
class Captioned:
    def fuse(self, parts, ctx):
        picture, caption = parts["picture"], parts["caption"]
        return Pair(caption.request, caption.text, None if picture is None else picture.rows)
