"""Orders and amounts that several groups use."""

from __future__ import annotations

from bench.rounds import ROUNDS, Amount

KIB, MIB = 1 << 10, 1 << 20
SMALL = 64
SAMPLES = 50_000  # of a 99th percentile, in one round
SAMPLES_LEAST = SAMPLES // ROUNDS  # of one whose round trips are slow: as many over the rounds
TRIP = {"run": "round_trips", "size": SMALL}
TRIPS = Amount(seconds=0.3, least=1_000, most=20_000)
TAIL = Amount(seconds=2.0, least=SAMPLES_LEAST, most=SAMPLES)
MESSAGES = Amount(seconds=0.4, least=2_000, most=1_000_000)
BATCH = 64
BULK_S = 0.3
THROUGHPUT = ("gb_per_s", "cpu_s_per_gb")


def arrays(window: int) -> Amount:
    """Return how much one round of large arrays is: every window is filled, and every source was sent before."""
    return Amount(BULK_S, least=max(4, window + 2), most=2_000)
