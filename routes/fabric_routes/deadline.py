"""The earliest predicted finish: what is under way to a target, and this message, times what it takes for one."""

from __future__ import annotations

from collections.abc import Sequence

from fabric.abc.route import Header, Target, route


@route("deadline", per="batch")
class Deadline:
    """Prefer who would be done first; who was not measured yet counts as fast as the fastest, so it is tried."""

    def select(self, header: Header, targets: Sequence[Target]) -> Sequence[Target]:
        """Return all targets, the one that finishes first leading."""
        fastest = min((t.service_us for t in targets if t.service_us > 0.0), default=0.001)

        def finish(target: Target) -> tuple[float, int]:
            service_us = target.service_us if target.service_us > 0.0 else fastest
            return (target.busy + 1) * service_us, target.endpoint

        return sorted(targets, key=finish)
