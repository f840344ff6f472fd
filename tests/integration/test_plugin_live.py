"""A transform and a routing policy from one file, put in while messages flow; then its process is killed."""

import itertools
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.kill_nodes import PROMPT_S, balanced, clusters, returned, settled, wait_for

pytestmark = pytest.mark.promise("P7")

cluster = pytest.fixture(clusters)
PLUGIN = Path(__file__).with_name("plugin_shift.py")


def load(node, channel, kind):
    return node.call("plugin_load", str(PLUGIN), PLUGIN.read_text(), channel=channel, kind=kind)


def row(node):
    return next(r for r in node.call("ls", "plugin") if r["name"] == "plugin_shift")


def marked(worker):
    return [r["got"] for r in worker.reports("got") if r["stream"].startswith("marked")]


def test_transform_is_put_in_while_messages_flow_and_nothing_is_lost(cluster):
    node = cluster.node()
    inn = cluster.worker(node, "consume", "in", channel="live")
    inn.wait_for("ready")
    producer = cluster.worker(node, "produce", "out", channel="live", count=500, interval_s=0.005)
    inn.wait_for("got", 10)
    answer = load(node, "live", "transform")
    assert {"transform", "route"} <= {e["kind"] for e in answer["exports"]}
    producer.finish()
    assert inn.wait_for("acked", 500)
    got = inn.values("got")
    assert got == list(range(500)), "in order, each once, over the change"
    changed = marked(inn)
    assert changed and set(changed) | {30} >= set(range(changed[0], 500)), (
        "from one message on, all"
    )
    assert settled(node, "live")["failed"] == 0
    log = "\n".join(node.call("plugin_logs", "plugin_shift", 200))
    assert "marked" in log and "of live" in log


def test_failing_message_goes_on_unchanged_and_its_traceback_is_in_the_log(cluster):
    node = cluster.node()
    inn = cluster.worker(node, "consume", "in", channel="live")
    inn.wait_for("ready")
    load(node, "live", "transform")
    producer = cluster.worker(node, "produce", "out", channel="live", count=60)
    producer.finish()
    assert inn.wait_for("acked", 60)
    assert marked(inn) == [n for n in range(60) if n != 30]
    log = "\n".join(node.call("plugin_logs", "plugin_shift", 200))
    assert "ValueError: thirty is not to be marked" in log and "plugin_shift.py" in log


def test_routing_policy_is_put_in_while_messages_flow(cluster):
    node = cluster.node()
    job = {"channel": "live", "pattern": "queue"}
    both = [cluster.worker(node, "consume", f"in-{n}", **job) for n in range(2)]
    for worker in both:
        worker.wait_for("ready")
    producer = cluster.worker(node, "produce", "out", count=500, interval_s=0.004, **job)
    for worker in both:
        worker.wait_for("got", 10)  # the queue gives to both before
    load(node, "live", "route")
    assert node.call("show", "channel", "live")["route"] == "by_length"
    sent = len(producer.values("sent"))
    producer.finish()
    wait_for("every part", lambda: sum(len(w.values("acked")) for w in both) == 500)
    late = Counter(w.name for w in both for n in w.values("got") if n > sent + 50)
    assert len(late) == 1, "soon after, the policy sends everything to one receiver"
    assert settled(node, "live")["delivered"] == 500


def test_transform_and_policy_of_one_file_work_on_one_channel(cluster):
    node = cluster.node()
    job = {"channel": "live", "pattern": "queue"}
    both = [cluster.worker(node, "consume", f"in-{n}", **job) for n in range(2)]
    for worker in both:
        worker.wait_for("ready")
    load(node, "live", "transform")
    load(node, "live", "route")
    producer = cluster.worker(node, "produce", "out", count=100, interval_s=0.001, **job)
    producer.finish()
    wait_for("every part", lambda: sum(len(w.values("acked")) for w in both) == 100)
    assert sorted(len(w.values("acked")) for w in both) == [0, 100]
    assert len(marked(both[0])) + len(marked(both[1])) == 99
    balanced(node)


def test_killed_stage_host_is_healed_and_loses_nothing(cluster):
    node = cluster.node()
    inn = cluster.worker(node, "consume", "in", channel="live")
    other = cluster.worker(node, "consume", "other-in", channel="other")
    for worker in (inn, other):
        worker.wait_for("ready")
    cluster.worker(node, "produce", "other-out", channel="other", interval_s=0.01)
    load(node, "live", "transform")
    producer = cluster.worker(node, "produce", "out", channel="live", count=800, interval_s=0.005)
    inn.wait_for("got", 50)
    before, pid = node.footprint(), row(node)["pid"]
    os.kill(pid, signal.SIGKILL)
    killed_at = other.reports("got")[-1]["at"]
    goes_on = other.wait_for("got", len(other.values("got")) + 10)
    gaps = [b["at"] - a["at"] for a, b in itertools.pairwise(goes_on) if b["at"] > killed_at]
    assert max(gaps) < PROMPT_S
    wait_for("a new stage host", lambda: row(node)["pid"] not in (None, pid), 10.0)
    inn.wait_for("got", len(inn.values("got")) + 30)
    returned(node, before)
    producer.finish(40.0)
    wait_for("every part", lambda: set(inn.values("acked")) == set(range(800)), 15.0)
    assert set(marked(inn)) == set(range(800)) - {30}, "all of them went through the transform"
    first = list(dict.fromkeys(inn.values("got")))
    assert first == sorted(first), "in order; what was repeated came after"
    assert row(node)["restarts"] == 1
    settled(node, "live")
    balanced(node)


def test_stage_host_killed_while_it_holds_messages_loses_none(cluster):
    """The consumer is slow, so the stage's next hop is full and inputs wait in the stage."""
    node = cluster.node()
    inn = cluster.worker(node, "consume", "in", channel="live", hold_s=0.004)
    inn.wait_for("ready")
    load(node, "live", "transform")
    producer = cluster.worker(node, "produce", "out", channel="live", count=800, interval_s=0.0)
    producer.wait_for("sent", 500, 20.0)
    os.kill(row(node)["pid"], signal.SIGKILL)
    producer.finish(40.0)
    wait_for("every part", lambda: set(inn.values("acked")) == set(range(800)), 20.0)
    settled(node, "live")


def test_broken_plugin_is_refused_with_file_and_line_and_changes_nothing(cluster):
    from fabric.errors import PluginError

    node = cluster.node()
    inn = cluster.worker(node, "consume", "in", channel="live")
    inn.wait_for("ready")
    with pytest.raises(PluginError, match=r"broken\.py:3"):
        node.call(
            "plugin_load", "broken.py", "import fabric\n\nimport absent_xyz\n", channel="live"
        )
    producer = cluster.worker(node, "produce", "out", channel="live", count=20)
    producer.finish()
    assert inn.wait_for("acked", 20) and node.call("show", "channel", "live")["transforms"] == []
