"""A lane that one side reports as broken while everybody lives: it is told, and nothing stays under way there."""

import pytest

import fabric
from fabric import errors
from tests.integration.kill_nodes import clusters, settled

cluster = pytest.fixture(clusters)


@fabric.message("broken.note")
class Note:
    number: int


@pytest.mark.promise("P1", "P3")
@pytest.mark.deadline(60)
def test_what_is_under_way_on_a_broken_lane_is_sent_again(cluster):
    node = cluster.node()
    socket = str(node.socket)
    with (
        fabric.attach("out", socket=socket) as producer,
        fabric.attach("liar", socket=socket) as consumer,
        fabric.attach("stranger", socket=socket) as stranger,
    ):
        consumer.declare("notes", Note, pattern="queue", delivery="at_least_once")
        inn, out = consumer.receiver("notes", Note), producer.sender("notes", Note)
        out.send(Note(number=1), deadline=20.0)
        assert not inn.receive(5.0).header.redelivered
        (lane,) = producer._pushes._lanes
        with pytest.raises(errors.StaleHandleError, match="no lane"):
            stranger.request("lane_broken", {"lane": lane, "reason": "I say so"})
        producer.request("lane_broken", {"lane": lane, "reason": "a flow sequence is missing"})
        rows = node.call("events")["events"]
        (event,) = [r for r in rows if r["kind"] == "peer broke the rules"]
        assert (event["port"], event["more"]["peer"]) == ("out", "liar")
        again = inn.receive(5.0)
        assert (again.number, again.header.redelivered) == (1, True)
        again.ack()
        out.flush(10.0)
        ends = settled(node, "notes")
        assert (ends["accepted"], ends["delivered"]) == (1, 1)
