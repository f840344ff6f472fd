"""Whether a codec pays for a message on this path now: a cost model without IO or clock. One thread at a time.

With S bytes to encode, encoder and decoder speed E and D (raw bytes/s), ratio r = encoded / raw bytes, path rate R
(bytes/s, as the scheduler measures its rails) and Q bytes of this sender ahead of it, a message costs:

    wait   = Q / R
    raw    = S / R
    coded  = max(r S/R, S/E, S/D)                     where Q >= S: message n+1 is encoded, and n-1 decoded, while n
                                                      is on the wire
           = max(0, S/E - wait) + r S/R + S/D         otherwise

The last line is the sum of a store-and-forward pipeline, the one before its bottleneck (as for any pipeline of three
stages; messages are its chunks). A codec is chosen where coded <= `MARGIN` x raw, so that an error of the estimates
smaller than the margin costs nothing. E, D and r come from what was encoded, and from probes: a slice of a message
that travels raw is encoded and decoded aside. Probing takes at most `PROBE_SHARE` of the time, less while it loses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

MARGIN: Final = 0.95  #: of the raw time: what a codec must stay below
SHRUNK: Final = 0.97  #: of the raw bytes: what an encoded tensor must stay below to be sent
SMALL_BYTES: Final = (
    32 << 10
)  #: below this a message goes raw unasked: deciding costs more than it can win
PROBE_BYTES: Final = 256 << 10  #: of a tensor, at most
PROBE_SHARE: Final = 0.01  #: of the time since the last one
PROBE_PAUSE_S: Final = (
    0.25,
    10.0,
)  #: between probes: while it pays or is unknown; while it keeps losing
MEMORY_S: Final = 0.25  #: of work observed, over which speeds are averaged
PROBE_WEIGHT: Final = 0.5  #: of the last probe in them: it is of now, the one before was long ago
RATE_FELL: Final = 0.7  #: a path this much slower than at the last probe is worth a new one at once


@dataclass(slots=True)
class Speed:
    """Bytes a second, averaged over the work that was seen: an observation weighs by how long it took."""

    bytes_per_s: float = 0.0
    seen_s: float = 0.0

    def add(self, size: int, took_s: float, least: float = 0.0) -> None:
        """Take an observation of `size` bytes in `took_s` seconds, with a weight of at least `least`."""
        if size <= 0 or not took_s > 0:
            return
        weight = max(least, took_s / (self.seen_s + took_s))
        # Averaged as time per byte: bytes over time of the whole, not the mean of rates.
        old = 1.0 / self.bytes_per_s if self.bytes_per_s else 0.0
        self.bytes_per_s = 1.0 / (old + weight * (took_s / size - old))
        self.seen_s = min(self.seen_s + took_s, MEMORY_S)


@dataclass(slots=True)
class Ratio:
    """Encoded bytes a raw byte, averaged by size; nan until something was encoded."""

    value: float = math.nan

    def add(self, raw: int, coded: int) -> None:
        """Take an observation; `raw` is above 0."""
        seen = coded / raw
        weight = min(1.0, raw / (4 * PROBE_BYTES))
        self.value = seen if math.isnan(self.value) else self.value + weight * (seen - self.value)


class Situation(NamedTuple):
    """What is known of one message when it is to be sent."""

    size: int  #: bytes that the codec would encode
    queued: int  #: bytes of this sender that are ahead of it
    path_bytes_per_s: float  #: 0: not measured
    left_s: float = math.inf  #: until its deadline


class Terms(NamedTuple):
    """A decision with everything that it was made of; what `fabricctl transform why` shows."""

    coded: bool
    reason: str
    size: int
    queued: int
    path_bytes_per_s: float
    encode_bytes_per_s: float
    decode_bytes_per_s: float
    ratio: float
    raw_s: float
    coded_s: float

    def to_wire(self) -> Mapping[str, float | int | str | bool]:
        """Return the fields as plain values; what is not known is 0."""
        plain = self._asdict()
        return {
            key: 0.0 if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in plain.items()
        }


class Economics:
    """Estimates of one codec on one sender, and the decisions made of them.

    `now_s` arguments are of one monotonic clock.
    """

    def __init__(self) -> None:
        self.encode = Speed()
        self.decode = Speed()
        self.ratios: dict[str, Ratio] = {}  #: by field
        self._probed_at_s = -math.inf
        self._probe_cost_s = 0.0
        self._pause_s = PROBE_PAUSE_S[0]
        self._probed_rate = 0.0

    # ---- decisions
    def decide(self, sizes: Mapping[str, int], at: Situation) -> Terms:
        """Decide for a message with `sizes` raw bytes by field; the fields that do not shrink are left out of it."""
        size = sum(size for field, size in sizes.items() if self.shrinks(field))
        ratio = self.ratio_of(sizes)
        raw_s, coded_s = self.predict(at._replace(size=size), ratio)
        coded, reason = self._judge(at, size, ratio, raw_s, coded_s)
        return Terms(
            coded,
            reason,
            at.size,
            at.queued,
            at.path_bytes_per_s,
            self.encode.bytes_per_s,
            self.decode.bytes_per_s,
            ratio,
            raw_s,
            coded_s,
        )

    def predict(self, at: Situation, ratio: float) -> tuple[float, float]:
        """Return the seconds that the message costs behind the queue, raw and coded; inf where that is not known."""
        path, encoder, decoder = (
            at.path_bytes_per_s,
            self.encode.bytes_per_s,
            self.decode.bytes_per_s,
        )
        if not path:
            return math.inf, math.inf
        wire_s = at.size / path
        if not encoder or not decoder or math.isnan(ratio):
            return wire_s, math.inf
        encode_s, decode_s, short_s = at.size / encoder, at.size / decoder, wire_s * ratio
        if at.queued >= at.size:
            return wire_s, max(short_s, encode_s, decode_s)
        return wire_s, max(0.0, encode_s - at.queued / path) + short_s + decode_s

    def _judge(
        self, at: Situation, size: int, ratio: float, raw_s: float, coded_s: float
    ) -> tuple[bool, str]:
        if at.size < SMALL_BYTES:
            return False, f"below {SMALL_BYTES >> 10} KiB"
        if not at.path_bytes_per_s:
            return False, "the path is not measured yet"
        if not self.encode.bytes_per_s or not self.decode.bytes_per_s:
            return False, "the codec is not measured yet"
        if not size or math.isnan(ratio):
            return False, "it does not shrink"
        left_s = at.left_s - at.queued / at.path_bytes_per_s
        if coded_s <= left_s < raw_s:
            return True, "only encoded it meets its deadline"
        if raw_s <= left_s < coded_s:
            return False, "only raw it meets its deadline"
        if coded_s <= MARGIN * raw_s:
            return True, "it pays"
        return (
            False,
            "the path is faster than the codec" if coded_s > raw_s else "it wins too little",
        )

    # ---- what is learnt
    def shrinks(self, field: str) -> bool:
        """Tell whether a field is worth encoding; one not seen yet is."""
        known = self.ratios.get(field)
        return known is None or math.isnan(known.value) or known.value < SHRUNK

    def ratio_of(self, sizes: Mapping[str, int]) -> float:
        """Return the ratio expected of the fields that shrink, by their sizes; nan where none is known."""
        known = [
            (size, self.ratios[field].value)
            for field, size in sizes.items()
            if field in self.ratios and self.shrinks(field)
        ]
        total = sum(size for size, _ in known)
        return sum(size * ratio for size, ratio in known) / total if total else math.nan

    def encoded(self, field: str, raw: int, coded: int, took_s: float, least: float = 0.0) -> None:
        """Learn from one encoded tensor, or with a weight of at least `least` from a slice of one."""
        if raw:
            self.encode.add(raw, took_s, least)
            self.ratios.setdefault(field, Ratio()).add(raw, coded)

    def wants_probe(self, now_s: float, path_bytes_per_s: float) -> bool:
        """Tell whether a message that goes raw should be probed with: seldom, and within its share of the time."""
        since_s = now_s - self._probed_at_s
        if since_s * PROBE_SHARE < self._probe_cost_s:
            return False
        if since_s >= self._pause_s:
            return True
        return 0 < path_bytes_per_s < RATE_FELL * self._probed_rate

    def probed(self, now_s: float, cost_s: float, path_bytes_per_s: float, is_losing: bool) -> None:
        """Note a probe; the next comes later, the more so while the codec loses."""
        shortest, longest = PROBE_PAUSE_S
        self._pause_s = min(self._pause_s * 2, longest) if is_losing else shortest
        self._probed_at_s, self._probe_cost_s, self._probed_rate = now_s, cost_s, path_bytes_per_s
