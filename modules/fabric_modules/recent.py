"""A set that remembers its most recent members only."""

from __future__ import annotations

from collections import OrderedDict


class RecentSet:
    """Bounded set of strings; adding beyond the bound forgets the oldest. Not thread-safe."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._members: OrderedDict[str, None] = OrderedDict()

    def add(self, member: str) -> None:
        """Remember `member` as the newest."""
        self._members[member] = None
        self._members.move_to_end(member)
        if len(self._members) > self._size:
            self._members.popitem(last=False)

    def __contains__(self, member: object) -> bool:
        return member in self._members

    def __len__(self) -> int:
        return len(self._members)
