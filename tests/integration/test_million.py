"""Many messages and a killed consumer: nothing lost, every repeat flagged, order per key, nothing left behind.

The million itself is ``make million``; this is the same run with twenty thousand messages.
"""

import random

import pytest

from tests.soak.million import PATTERNS, Run


@pytest.mark.promise("P1", "P2", "P9")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_message_is_recorded_though_a_consumer_is_killed_before_it_acknowledges(
    short_dir, pattern
):
    chance = random.Random(pattern)
    found = Run(short_dir, pattern, 20_000, chance).execute()
    assert not found.violations, found
    assert found.figures["repeats"] > 0, "the kill fell between writing down and acknowledging"
    assert all(found.figures["recorded_by_consumer"]), "everybody took part, the restarted one, too"
