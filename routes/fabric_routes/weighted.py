"""Shares by weight, evenly spread over time: 95 parts to the stable version, 5 to the canary.

A weight is a module's, shared by its replicas, or one replica's. Who is not named gets nothing while one who is named
is there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from fabric.abc.route import Header, Target, route

_REPLICA = re.compile(r"(.+)-\d+")
_TURNS_MAX = 4096


@route("weighted", per="batch")
class Weighted:
    """Smooth weighted round robin: each earns its weight at every message, the richest is chosen and pays the sum.

    Parameters
    ----------
    weights : mapping of str to float
        By module or replica; none: all are equal.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})
        self._turns: dict[int, float] = {}

    def select(self, header: Header, targets: Sequence[Target]) -> Target:
        """Return the target whose turn it is."""
        weights = self._shares(targets)
        total = sum(weights.values())
        if total <= 0.0:
            return min(targets, key=lambda t: (t.busy, t.endpoint))
        if len(self._turns) > _TURNS_MAX:  # of targets that are long gone, most of them
            self._turns = {e: self._turns[e] for e in weights if e in self._turns}
        turns = self._turns
        for endpoint, weight in weights.items():
            turns[endpoint] = turns.get(endpoint, 0.0) + weight
        able = [target for target in targets if weights[target.endpoint] > 0.0]
        chosen = min(able, key=lambda t: (-turns[t.endpoint], t.endpoint))
        turns[chosen.endpoint] -= total
        return chosen

    def _shares(self, targets: Sequence[Target]) -> dict[int, float]:
        if not self._weights:
            return {target.endpoint: 1.0 for target in targets}
        names = {target.endpoint: self._name(target.module) for target in targets}
        counts = Counter(names.values())
        return {e: self._weights.get(name, 0.0) / counts[name] for e, name in names.items()}

    def _name(self, module: str) -> str:
        found = _REPLICA.fullmatch(module)
        return found[1] if module not in self._weights and found else module
