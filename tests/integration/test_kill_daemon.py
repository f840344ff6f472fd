"""kill -9 of a daemon: local lanes go on without it, and its successor takes over arenas and ledgers."""

import itertools
import os
import signal
import time

import pytest

from tests.integration.kill_nodes import PROMPT_S, balanced, clusters, returned, settled, wait_for

pytestmark = pytest.mark.promise("P1", "P9")

cluster = pytest.fixture(clusters)


def test_local_messages_flow_on_while_the_daemon_is_dead(cluster):
    node = cluster.node()
    inn = cluster.worker(node, "consume", "in", channel="local")
    inn.wait_for("ready")
    producer = cluster.worker(node, "produce", "out", channel="local", count=600, interval_s=0.005)
    inn.wait_for("got", 20)
    before = node.footprint()
    daemon, keeper = node.daemon_pid, node.keeper.pid
    os.kill(keeper, signal.SIGSTOP)  # no successor: what flows now flows without a daemon
    os.kill(daemon, signal.SIGKILL)
    killed_at = inn.reports("got")[-1]["at"]
    after = inn.wait_for("got", len(inn.values("got")) + 50)
    gaps = [b["at"] - a["at"] for a, b in itertools.pairwise(after) if b["at"] > killed_at]
    assert max(gaps) < PROMPT_S
    os.kill(keeper, signal.SIGCONT)
    wait_for("a successor", lambda: serves_another(node, daemon), 15.0)
    assert node.keeper.pid == keeper
    producer.finish()
    assert inn.wait_for("acked", 600) and inn.values("got") == list(range(600))
    assert settled(node, "local")["delivered"] == 600, (
        "accepted before the kill is counted after it"
    )
    returned(node, before)


def serves_another(node, old):
    try:
        return node.daemon_pid != old
    except Exception:
        return False


def test_successor_serves_new_processes_and_new_channels(cluster):
    node = cluster.node()
    inn = cluster.worker(node, "consume", "in", channel="before")
    inn.wait_for("ready")
    node.kill_daemon()
    late = cluster.worker(node, "consume", "late", channel="after")
    late.wait_for("ready")
    for channel, receiver in (("before", inn), ("after", late)):
        producer = cluster.worker(node, "produce", f"to-{channel}", channel=channel, count=50)
        producer.finish()
        assert receiver.wait_for("acked", 50)
    balanced(node)


@pytest.mark.sweep
def test_daemon_killed_again_and_again_keeps_every_message(cluster):
    node = cluster.node()
    inn = cluster.worker(node, "consume", "in", channel="local")
    inn.wait_for("ready")
    producer = cluster.worker(node, "produce", "out", channel="local", count=900, interval_s=0.01)
    for _ in range(3):
        inn.wait_for("got", len(inn.values("got")) + 20)
        node.kill_daemon()
        balanced(node)
    producer.finish()
    assert settled(node, "local")["delivered"] == 900
    assert inn.values("got") == list(range(900))


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_messages_between_nodes_survive_the_death_of_either_daemon(cluster, side):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    inn = cluster.worker(b, "consume", "in", channel="far")
    inn.wait_for("ready")
    producer = cluster.worker(
        a, "produce", "out", channel="far", count=400, interval_s=0.01, floats=8192
    )
    inn.wait_for("got", 20)
    (a if side == "sender" else b).kill_daemon()
    producer.finish(40.0)
    wait_for("every part", lambda: len(set(inn.values("acked"))) == 400, 20.0)
    got = inn.values("got")
    assert sorted(set(got)) == list(range(400)) and all(inn.values("whole"))
    assert len(got) == 400, "a repeat of the path is discarded by its flow sequence"
    assert settled(a, "far")["delivered"] == 400


def test_record_delivered_before_its_daemon_died_is_not_handed_over_twice(cluster):
    """The sender's daemon is stopped, so that it misses the hop's acknowledgements, then killed.

    What its successor finds in the lane and sends again must not be handed over a second time.
    """
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    inn = cluster.worker(b, "consume", "in", channel="far")
    inn.wait_for("ready")
    producer = cluster.worker(a, "produce", "out", channel="far", count=4000, interval_s=0.0)
    inn.wait_for("got", 300, 20.0)
    pid = a.daemon_pid
    os.kill(pid, signal.SIGSTOP)
    seen = [-1]

    def is_quiet():
        seen.append(len(inn.values("got")))
        time.sleep(0.05)
        return seen[-1] == seen[-2]

    wait_for("what was under way has arrived", is_quiet)
    os.kill(pid, signal.SIGKILL)
    producer.finish(40.0)
    wait_for("every part", lambda: len(set(inn.values("acked"))) == 4000, 20.0)
    assert inn.values("got") == list(range(4000))
    assert settled(a, "far")["delivered"] == 4000
