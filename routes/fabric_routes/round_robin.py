"""One target after the other, by endpoint, so a target that comes or goes does not reset the turn."""

from __future__ import annotations

from collections.abc import Sequence

from fabric.abc.route import Header, Target, route


@route("round_robin", per="batch")
class RoundRobin:
    """Give each asker the endpoint after the last one given, per channel."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def select(self, header: Header, targets: Sequence[Target]) -> Target:
        """Return the target with the next larger endpoint, or the smallest."""
        last = self._last.get(header.channel, -1)
        ordered = sorted(targets, key=lambda t: t.endpoint)
        chosen = next((t for t in ordered if t.endpoint > last), ordered[0])
        self._last[header.channel] = chosen.endpoint
        return chosen
