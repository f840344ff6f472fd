"""Rails whose latency is more than the queue that is allowed on them: what is on its way is not taken for a queue."""

from __future__ import annotations

import pytest

from fabric.testing.network import Network

MIB = 1 << 20
GBIT = 125e6


@pytest.mark.parametrize("rails", [1, 2])
@pytest.mark.parametrize("delay_s", [0.5e-3, 2.5e-3, 5e-3, 10e-3])
def test_a_far_rail_is_filled(rails: int, delay_s: float) -> None:
    net = Network(3)
    for _ in range(rails):
        net.rail(GBIT, delay_s=delay_s, queue_bytes=4 * MIB)
    net.transfer(16 * MIB, count=32 * rails)
    outcome = net.run(bucket_s=0.1)
    settled = outcome.rates[10:-2]
    assert sum(settled) / len(settled) >= 0.97 * rails * GBIT
    assert outcome.resent == 0, "nothing failed"


def test_a_far_rail_that_was_full_from_the_start_keeps_no_queue() -> None:
    net = Network(3)
    net.rail(GBIT, delay_s=10e-3, queue_bytes=4 * MIB)
    net.transfer(16 * MIB, count=64)
    outcome = net.run()
    took = outcome.took_s[8:]  # of the settled rail
    assert max(took) <= 1.4 * max(took[:4]), "transfers take longer and longer: the queue grows"
    assert outcome.rails[0]["base_ns"] == 20_000_000
