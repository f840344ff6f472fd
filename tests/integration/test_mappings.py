"""Memory of producers that came and went is not kept alive by mappings of those who read from them."""

import subprocess
import sys
from pathlib import Path

import pytest

import fabric
from tests.integration.kill_nodes import clusters, wait_for
from tests.integration.test_sizes_between_nodes import Part

pytestmark = pytest.mark.promise("P9")
cluster = pytest.fixture(clusters)
SEND_ONE = """
import sys, numpy, fabric
from tests.integration.test_sizes_between_nodes import Part
with fabric.attach("out", socket=sys.argv[1]) as port:
    out = port.sender("sizes", Part)
    out.send(Part(1, numpy.zeros(100_000, numpy.uint8)))
    out.flush(10.0)
"""


def segments_of(pid):
    """Arena segments that a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:fabric-segment")


def test_gateway_unmaps_the_segments_of_processes_that_ended(cluster):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    with fabric.attach("in", socket=b.socket) as port:
        port.declare("sizes", Part, pattern="queue", delivery="at_least_once")
        inn = port.receiver("sizes", Part)
        for _ in range(4):
            producer = subprocess.Popen([sys.executable, "-c", SEND_ONE, a.socket])
            with inn.receive(timeout=10.0) as part:
                assert part is not None and not part.data.any()
                part.ack()
            assert producer.wait(10.0) == 0
        wait_for("no mapping of the dead", lambda: segments_of(a.daemon_pid) == 0, 10.0)
