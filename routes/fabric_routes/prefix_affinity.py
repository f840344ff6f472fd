"""KV-cache aware: a prompt goes where the longest prefix of it was computed, as long as the load stays even.

The message carries the hashes of its prompt's blocks, each hash covering all blocks before it, as engines name the
pages of their KV caches. The policy remembers which target was given which blocks; what a target has evicted since, it
learns by nobody: give `capacity_blocks` what one replica's cache holds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from fabric.abc.route import Header, Target, route


@route("prefix_affinity", per="batch", fallback="least_outstanding")
class PrefixAffinity:
    """Among the targets below the bound on load, the one with the longest cached prefix; on a tie the least loaded.

    Parameters
    ----------
    field : str
        Of the message: a list of integers, one for each block of the prompt, first block first.
    load_factor : float
        What one target may be given of the mean, above 1; the smaller, the more even, and the more prefixes are
        computed twice.
    window : int
        Messages over which load is counted: each decision lets what was given before weigh 1 - 1/window.
    capacity_blocks : int
        Blocks that a target is thought to hold; the least recently used go first.
    base_blocks : float
        What a message costs beside its uncached blocks (decoding, scheduling), in blocks.

    Notes
    -----
    Load is work given, in uncached blocks, so the policy needs no clock and no report. The bound is that of consistent
    hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2018). A target with more messages under way than
    twice the mean and four more is passed over, too: it is slow, whatever it was given.
    """

    def __init__(
        self,
        field: str = "block_hashes",
        load_factor: float = 1.1,
        window: int = 512,
        capacity_blocks: int = 1 << 18,
        base_blocks: float = 4.0,
    ) -> None:
        if not load_factor > 1.0 or window < 1 or capacity_blocks < 1 or base_blocks < 0:
            raise ValueError(
                "load_factor above 1, window and capacity_blocks from 1, base_blocks from 0"
            )
        self._field = field
        self._load_factor = load_factor
        self._kept = 1.0 - 1.0 / window
        self._capacity = capacity_blocks
        self._base = base_blocks
        self._held: dict[int, OrderedDict[int, None]] = {}  # by endpoint
        self._given: dict[int, float] = {}

    def select(self, header: Header, targets: Sequence[Target]) -> Target:
        """Return the target; what it is given is remembered."""
        hashes = header.fields.get(self._field)
        blocks = list(hashes) if isinstance(hashes, (list, tuple)) else []
        self._follow(targets)
        open_targets = self._below_bound(targets)
        prefix = {t.endpoint: self._prefix(t.endpoint, blocks) for t in open_targets}
        chosen = min(
            open_targets,
            key=lambda t: (-prefix[t.endpoint], self._given[t.endpoint], t.busy, t.endpoint),
        )
        self._give(chosen.endpoint, blocks, len(blocks) - prefix[chosen.endpoint])
        return chosen

    def _follow(self, targets: Sequence[Target]) -> None:
        """Forget targets that went; one that came starts with the mean, or everything would go to it."""
        present = {target.endpoint for target in targets}
        self._given = {e: given for e, given in self._given.items() if e in present}
        self._held = {e: held for e, held in self._held.items() if e in present}
        mean = sum(self._given.values()) / len(self._given) if self._given else 0.0
        for endpoint in present:
            self._given.setdefault(endpoint, mean)
            self._held.setdefault(endpoint, OrderedDict())

    def _below_bound(self, targets: Sequence[Target]) -> list[Target]:
        bound = self._load_factor * (sum(self._given.values()) / len(targets) + self._base)
        slow = 2 * sum(t.busy for t in targets) / len(targets) + 4
        able = [t for t in targets if t.busy <= slow]
        return [t for t in able if self._given[t.endpoint] <= bound] or able

    def _prefix(self, endpoint: int, blocks: Sequence[int]) -> int:
        held = self._held[endpoint]
        return next((i for i, block in enumerate(blocks) if block not in held), len(blocks))

    def _give(self, endpoint: int, blocks: Sequence[int], uncached: int) -> None:
        for other in self._given:
            self._given[other] *= self._kept
        self._given[endpoint] += self._base + uncached
        held = self._held[endpoint]
        for block in reversed(blocks):  # the first blocks are the youngest: they go last
            held[block] = None
            held.move_to_end(block)
        while len(held) > self._capacity:
            held.popitem(last=False)
