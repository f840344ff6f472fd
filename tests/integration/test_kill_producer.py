"""kill -9 of a producer in the middle of its stream."""

import pytest

import fabric
from tests.integration.kill_nodes import PROMPT_S, balanced, clusters, returned, settled, wait_for
from tests.integration.kill_roles import Part

pytestmark = pytest.mark.promise("P4", "P9")

cluster = pytest.fixture(clusters)


def test_other_channel_flows_on_and_nothing_is_left_after_a_producer_was_killed(cluster):
    node = cluster.node()
    other = cluster.worker(node, "consume", "other-in", channel="other")
    inn = cluster.worker(node, "consume", "in", channel="victim", hold_s=0.001)
    steady = cluster.worker(node, "produce", "other-out", channel="other", interval_s=0.01)
    for worker in (other, inn):
        worker.wait_for("ready")
    other.wait_for("got", 5)
    before = node.footprint()
    victim = cluster.worker(
        node, "produce", "victim", channel="victim", interval_s=0.0, floats=4096
    )
    inn.wait_for("got", 50)
    killed_at = victim.kill()

    goes_on = [
        r for r in other.wait_for("got", len(other.values("got")) + 20) if r["at"] > killed_at
    ]
    assert goes_on[0]["at"] - killed_at < PROMPT_S
    row = settled(node, "victim")
    # What was accepted was delivered: the producer's lane is drained although the producer is gone.
    got = inn.values("got")
    assert got == list(range(len(got))) and all(inn.values("whole"))
    assert (
        row["delivered"] >= len(inn.values("acked")) - 1
        and not row["failed"]
        and not row["dropped"]
    )
    # A send whose report the kill cut off was accepted nevertheless: at most one.
    assert 0 <= row["accepted"] - len(victim.values("sent")) <= 1
    assert steady.process.poll() is None
    returned(node, before)


def test_a_producer_started_again_goes_on_as_a_new_one(cluster):
    node = cluster.node()
    inn = cluster.worker(node, "consume", "in", channel="victim")
    inn.wait_for("ready")
    first = cluster.worker(node, "produce", "out", channel="victim", interval_s=0.0)
    inn.wait_for("got", 20)
    first.kill()
    second = cluster.worker(node, "produce", "out", channel="victim", count=100)
    second.finish()
    wait_for("the second producer's parts", lambda: inn.values("got")[-100:] == list(range(100)))
    balanced(node)


def test_status_shows_a_dead_producer_whose_messages_are_still_under_way(cluster):
    node = cluster.node()
    inn = cluster.worker(node, "consume", "in", channel="victim", hold_s=1.0)
    inn.wait_for("ready")
    victim = cluster.worker(node, "produce", "out", channel="victim", count=20, interval_s=0.0)
    victim.wait_for("sent", 5)
    victim.kill()
    shown = wait_for("the dead producer in status", lambda: node.call("status")["settling"], 5.0)
    assert shown[0]["name"] == "out"
    wait_for("its messages", lambda: node.call("status")["settling"][0]["messages"] > 0, 5.0)


def port_names(node):
    return {row["name"] for row in node.call("topology")["ports"]}


@pytest.mark.promise("P2", "P9")
def test_delivered_message_stays_readable_after_its_producer_and_then_is_given_back(cluster):
    """Nobody has mapped the segment when the producer is gone: the daemon keeps it for the message that names it."""
    node = cluster.node()
    with fabric.attach("reader", socket=node.socket) as port:
        port.declare("late", Part, pattern="queue", delivery="at_most_once")
        inn = port.receiver("late", Part)
        before = node.footprint().shared_bytes
        producer = cluster.worker(
            node, "produce", "out", channel="late", count=3, floats=4096,
            pattern="queue", delivery="at_most_once",
        )  # fmt: skip
        parts = [inn.receive(timeout=10.0) for _ in range(3)]
        producer.finish()
        wait_for("the producer is settled", lambda: "out" not in port_names(node))
        for number, part in enumerate(parts):
            assert (part.data == number).all()
            part.release()
        wait_for("its memory", lambda: node.footprint().shared_bytes <= before)
