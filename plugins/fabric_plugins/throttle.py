"""Let at most so many messages a second through; what is over waits, in order, and is not lost."""

from __future__ import annotations

import os
from typing import Any

from fabric.abc.transform import AnyMessage, Defer, TransformContext, transform

RATE_VARIABLE = "FABRIC_THROTTLE_PER_S"
DEFAULT_PER_S = 1000.0


@transform("throttle", accepts=AnyMessage, on_error="fail")
class Throttle:
    """A token bucket a tenth of a second deep; the rate is `FABRIC_THROTTLE_PER_S` of the daemon's environment."""

    def __init__(self, per_s: float | None = None) -> None:
        self.per_s = float(os.environ.get(RATE_VARIABLE, DEFAULT_PER_S)) if per_s is None else per_s
        if not self.per_s > 0:
            raise ValueError(f"{RATE_VARIABLE} is {self.per_s}: give a rate above 0")
        self._depth = max(1.0, self.per_s / 10)
        self._tokens = self._depth
        self._at_ns: int | None = None

    def apply(self, batch: list[Any], ctx: TransformContext) -> list[Any]:
        """Return as many messages as there are tokens, and `Defer` for the rest."""
        if self._at_ns is not None:
            earned = (ctx.now_ns - self._at_ns) / 1e9 * self.per_s
            self._tokens = min(self._depth, self._tokens + earned)
        self._at_ns = ctx.now_ns
        passing = min(len(batch), int(self._tokens))
        self._tokens -= passing
        wait_s = max(0.001, (1 - self._tokens) / self.per_s)
        return batch[:passing] + [Defer(wait_s)] * (len(batch) - passing)
