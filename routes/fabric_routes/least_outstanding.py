"""Power of two choices: of two targets drawn at random the less busy one, so that senders do not all rush to one."""

from __future__ import annotations

from collections.abc import Sequence

from fabric.abc.route import Header, Target, route

_WORD = (1 << 64) - 1


@route("least_outstanding", per="batch")
class LeastOutstanding:
    """Draw two, take the less busy one; on a tie the first drawn.

    Parameters
    ----------
    seed : int
        Of the draws. A sender's is the number of its endpoint.

    Notes
    -----
    Mitzenmacher, "The power of two choices in randomized load balancing", 2001. Draws: xorshift64* (Vigna, 2016).
    """

    def __init__(self, seed: int = 1) -> None:
        self._state = (seed | 1) & _WORD

    def select(self, header: Header, targets: Sequence[Target]) -> Target:
        """Return one of `targets`."""
        if len(targets) == 1:
            return targets[0]
        first = self._draw() % len(targets)
        second = self._draw() % (len(targets) - 1)
        second += second >= first
        return targets[second] if targets[second].busy < targets[first].busy else targets[first]

    def _draw(self) -> int:
        x = self._state
        x ^= x >> 12
        x = (x ^ x << 25) & _WORD
        x ^= x >> 27
        self._state = x
        return (x * 0x2545F4914F6CDD1D & _WORD) >> 32
