"""Same key, same target, unless it has more than its share: consistent hashing with bounded loads.

A target that is lost moves only its own keys; one that is over the bound passes on only what is above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fabric.abc.route import Header, Target, route
from fabric_routes.hashing import hash_of, weight


@route("hash_key", per="batch")
class HashKey:
    """Rank the targets by weight for the key; those that have their share of the load come last.

    Parameters
    ----------
    load_factor : float
        What one target may have of the mean number of messages under way, above 1.

    Notes
    -----
    Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", SODA 2018, over highest random weight
    instead of a ring.
    """

    def __init__(self, load_factor: float = 1.25) -> None:
        if not load_factor > 1.0:
            raise ValueError(f"load_factor {load_factor!r} is not above 1")
        self._load_factor = load_factor

    def select(self, header: Header, targets: Sequence[Target]) -> Sequence[Target]:
        """Return all targets, the key's own first; no key counts as the empty one."""
        total = 1 + sum(target.busy for target in targets)
        bound = math.ceil(self._load_factor * total / len(targets))
        key = hash_of(header.key or b"")
        ranked = sorted(targets, key=lambda t: weight(key, t.endpoint), reverse=True)
        return sorted(ranked, key=lambda t: t.busy >= bound)
