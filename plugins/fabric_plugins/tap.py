"""Count what passes and print a line a second: what goes through a channel, without changing it."""

from __future__ import annotations

from typing import Any

from fabric.abc.transform import AnyMessage, TransformContext, transform

REPORT_NS = 1_000_000_000


@transform("tap", accepts=AnyMessage, on_error="bypass")
class Tap:
    """Passes every message on; its log (`fabricctl plugin logs tap`) shows rates per channel."""

    def __init__(self) -> None:
        self.messages = 0
        self.payload_bytes = 0
        self.redelivered = 0
        self._since_ns = 0
        self._reported = 0

    def apply(self, batch: list[Any], ctx: TransformContext) -> list[Any]:
        """Return the batch as it came."""
        self.messages += len(batch)
        self.payload_bytes += sum(h.payload_bytes for h in ctx.headers)
        self.redelivered += sum(h.redelivered for h in ctx.headers)
        if ctx.now_ns - self._since_ns >= REPORT_NS:
            self._report(ctx)
        return batch

    def _report(self, ctx: TransformContext) -> None:
        new = self.messages - self._reported
        print(
            f"{ctx.channel}: {self.messages} messages (+{new}), {self.payload_bytes} bytes, "
            f"{self.redelivered} redelivered"
        )
        self._since_ns, self._reported = ctx.now_ns, self.messages
