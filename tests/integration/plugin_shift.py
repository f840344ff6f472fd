"""A plugin of the tests: shifts numbers, picks receivers by parity, prints, and raises once."""

import fabric


@fabric.message("kill.part")
class Part:
    stream: str
    number: int
    data: fabric.Tensor["n", "f32"]


@fabric.transform("mark", accepts=Part, produces=Part, on_error="bypass", max_expansion=2.0)
class Mark:
    """Adds a mark to the stream's name; the 30th message makes it raise."""

    def apply(self, batch, ctx):
        marked = []
        for part in batch:
            if part.number == 30:
                raise ValueError("thirty is not to be marked")
            marked.append(Part("marked " + part.stream, part.number, part.data))
        print(f"marked {len(marked)} of {ctx.channel}")
        return marked


@fabric.route("by_length")
def by_length(header, targets):
    """One fixed receiver for everything: the one with the largest endpoint."""
    return max(targets, key=lambda t: t.endpoint)
