"""Counters that only grow, made of looks at ledgers that come and go. Pure.

A ledger dies with its sender; its last counts are taken once more when they are archived. One look may see a sum of
slightly different moments (see `core/sample.hpp`), so a count is taken over only when it has grown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from fabric import limits
from fabric.telemetry.samples import EndKey, LedgerSample

DELIVERED, DROPPED, FAILED = 1, 2, 3


class Growth(NamedTuple):
    """Messages of one sender that ended in one way since the look before."""

    channel: int
    endpoint: int
    end: int
    reason: int
    messages: int


class Totals:
    """Messages by (channel, end, reason), accepted and delivered bytes by channel, since this was made."""

    def __init__(self) -> None:
        self.ended: Counter[tuple[int, int, int]] = Counter()
        self.accepted: Counter[int] = Counter()
        self.delivered_bytes: Counter[int] = Counter()
        self._seen: dict[int, LedgerSample] = {}  # those looked at last come last

    def take(self, ledgers: Iterable[LedgerSample]) -> list[Growth]:
        """Take one look at ledgers, of living senders or final ones; returns what ended since the one before.

        A ledger that is taken again, as it is or as it was, changes nothing.
        """
        grown = [growth for ledger in ledgers for growth in self._take_one(ledger)]
        while len(self._seen) > limits.ENDPOINTS_MAX:  # those not seen for longest are gone
            del self._seen[next(iter(self._seen))]
        return grown

    def forget(self, channels: set[int]) -> None:
        """Let go of channels that were made for a while and are gone, so that their labels do not pile up."""
        self.ended = Counter({key: n for key, n in self.ended.items() if key[0] not in channels})
        self.accepted = Counter({c: n for c, n in self.accepted.items() if c not in channels})
        self.delivered_bytes = Counter(
            {c: n for c, n in self.delivered_bytes.items() if c not in channels}
        )
        self._seen = {e: row for e, row in self._seen.items() if row.channel not in channels}

    def _take_one(self, ledger: LedgerSample) -> list[Growth]:
        before = self._seen.pop(ledger.endpoint, None)
        known: dict[EndKey, int] = before.counts if before else {}
        counts = {
            key: max(known.get(key, 0), ledger.counts.get(key, 0))
            for key in {**known, **ledger.counts}
        }
        accepted = max(ledger.accepted, before.accepted if before else 0)
        size = max(ledger.delivered_bytes, before.delivered_bytes if before else 0)
        self._seen[ledger.endpoint] = LedgerSample(
            ledger.endpoint, ledger.channel, accepted, size, ledger.outstanding, ledger.outstanding_bytes,
            ledger.waiting, counts,
        )  # fmt: skip
        self.accepted[ledger.channel] += accepted - (before.accepted if before else 0)
        self.delivered_bytes[ledger.channel] += size - (before.delivered_bytes if before else 0)
        grown = []
        for (end, reason), count in counts.items():
            more = count - known.get((end, reason), 0)
            if more:
                self.ended[ledger.channel, end, reason] += more
                grown.append(Growth(ledger.channel, ledger.endpoint, end, reason, more))
        return grown
