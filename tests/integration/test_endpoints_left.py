"""What a process that closes its ends and leaves at once has left in the registry: nothing."""

import pytest

import fabric
from tests.integration.kill_nodes import balanced, clusters, wait_for

pytestmark = pytest.mark.promise("P9")

cluster = pytest.fixture(clusters)


@fabric.message("left.number", version=1)
class Number:
    n: int


def test_sender_that_closes_and_leaves_at_once_is_no_sender_any_more(cluster):
    node = cluster.node()
    with fabric.attach("one", node.socket) as one, fabric.attach("two", node.socket) as two:
        one.declare("left", Number, pattern="queue")
        receivers = [one.receiver("left", Number), two.receiver("left", Number)]
        for n in range(4):
            with fabric.attach("leaver", node.socket) as port, port.sender("left", Number) as out:
                out.send(Number(n), deadline=5.0)
        with node.control() as client:
            wait_for(
                "the senders are gone", lambda: client.show("channel", "left")["senders"] == 0, 8.0
            )
            assert client.show("channel", "left")["receivers"] == len(receivers)
    balanced(node)
