"""One active target, the others in reserve: the oldest endpoint serves until it is gone."""

from __future__ import annotations

from collections.abc import Sequence

from fabric.abc.route import Header, Target, route


@route("failover")
def failover(header: Header, targets: Sequence[Target]) -> Sequence[Target]:
    """Return the targets by counter, then node: the first to have been opened leads."""
    return sorted(targets, key=lambda t: (t.endpoint & 0xFFFFFFFF, t.endpoint))
