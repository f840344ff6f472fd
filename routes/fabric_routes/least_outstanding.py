"""The target with the fewest messages that have not ended; ties go to the smaller endpoint."""

from __future__ import annotations

from collections.abc import Sequence

from fabric.abc.route import Header, Target, route


@route("least_outstanding")
def least_outstanding(header: Header, targets: Sequence[Target]) -> Sequence[Target]:
    """Return all targets, least loaded first."""
    return sorted(targets, key=lambda t: (t.outstanding, t.endpoint))
