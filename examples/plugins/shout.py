"""A minimal plugin: one transform and one routing policy. `fabricctl plugin load examples/plugins/shout.py`."""

import fabric


@fabric.message("quickstart.line")
class Line:
    number: int
    text: str
    pixels: fabric.Tensor["height width", "u8"]


@fabric.transform("shout", accepts=Line, produces=Line, max_expansion=2.0, on_error="bypass")
class Shout:
    def apply(self, batch, ctx):
        print(f"{ctx.channel}: {len(batch)} lines")
        return [Line(m.number, m.text.upper(), 255 - m.pixels) for m in batch]


@fabric.route("odd_even")
def odd_even(header, targets):
    """Even keys to the first receiver, odd ones to the last."""
    return targets[0] if int(header.key or b"0") % 2 == 0 else targets[-1]
