"""The nearest target: on the sender's node before another, the less busy one among equals."""

from __future__ import annotations

from collections.abc import Sequence

from fabric.abc.route import Header, Target, route


@route("locality", per="batch")
class Locality:
    """Stay near, until a near target has too much to do.

    Parameters
    ----------
    spill : int
        From so many messages under way on, a target is passed over for one that has fewer, near or far; 0: never.
    """

    def __init__(self, spill: int = 0) -> None:
        if spill < 0:
            raise ValueError(f"spill {spill!r} is below 0")
        self._spill = spill

    def select(self, header: Header, targets: Sequence[Target]) -> Sequence[Target]:
        """Return all targets, the best first."""

        def place(target: Target) -> tuple[bool, int, int, int]:
            is_full = bool(self._spill) and target.busy >= self._spill
            return is_full, 0 if is_full else target.distance, target.busy, target.endpoint

        return sorted(targets, key=place)
