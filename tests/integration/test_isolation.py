"""One channel of a hundred that nobody reads, or whose module is stopped, leaves the round trips of the others alone.

How much it costs them is measured by ``make bench GROUP=isolation``; here it is only that they go on, promptly.
"""

import pytest

from bench.figures import percentile
from bench.isolation_loads import Stopped, Unread, apply_plan
from bench.isolation_rig import CHANNELS, RoundTrips
from tests.integration.kill_nodes import clusters

pytestmark = pytest.mark.promise("P4")
cluster = pytest.fixture(clusters)
BLOCK_S = 0.5
PROMPT_NS = 50_000_000  # of a round trip in a hundred, on a machine that does other things, too


@pytest.mark.parametrize("disturbance", [Unread, Stopped], ids=["unread", "stopped"])
def test_round_trips_of_99_channels_go_on_beside_one_that_is_full(cluster, short_dir, disturbance):
    node = cluster.node("bench")
    trips = RoundTrips(node.socket)
    try:
        apply_plan(node.socket, short_dir)
        full = disturbance(trips)
        full.on()
        times = trips.measure(BLOCK_S, full.between)
        full.off()
        assert len(times) >= CHANNELS
        assert percentile(times, 0.99) < PROMPT_NS
    finally:
        trips.stop()
