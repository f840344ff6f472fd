"""One active target, the others in reserve: it serves until it is gone, and is waited for while it is full."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fabric.abc.route import Header, Target, route

_REPLICA = re.compile(r"(.+)-\d+")


@route("failover")
class Failover:
    """Rank the targets: by the given order, then the one that was opened first.

    Parameters
    ----------
    order : sequence of str
        Modules or replicas, the first to serve first; who is not named comes last.
    """

    def __init__(self, order: Sequence[str] = ()) -> None:
        self._order = list(order)

    def select(self, header: Header, targets: Sequence[Target]) -> Sequence[Target]:
        """Return all targets, the active one first."""
        return sorted(
            targets, key=lambda t: (self._rank(t.module), t.endpoint & 0xFFFFFFFF, t.endpoint)
        )

    def _rank(self, module: str) -> int:
        found = _REPLICA.fullmatch(module)
        for name in (module, found[1] if found else module):
            if name in self._order:
                return self._order.index(name)
        return len(self._order)
