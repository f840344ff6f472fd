"""Everyone gets it: for channels of pattern broadcast, whose sender makes the copies."""

from __future__ import annotations

from collections.abc import Sequence

from fabric.abc.route import Header, Target, route


@route("broadcast", per="batch")
def broadcast(header: Header, targets: Sequence[Target]) -> Sequence[Target]:
    """Return all targets."""
    return list(targets)
