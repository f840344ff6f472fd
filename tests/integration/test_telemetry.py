"""Meters of real nodes: what reads 0 moves when what it counts happens, and a scrape costs little."""

import os
import signal
import time
import urllib.request

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import fabric
from fabric import errors
from tests.integration.kill_nodes import clusters, wait_for

cluster = pytest.fixture(clusters)
SIZE = 5000


@fabric.message("telemetry.thing", version=1)
class Thing:
    """Something to count."""

    number: int
    data: fabric.Tensor["n", "f32"]


def scrape(node):
    """Return every sample of a node's metrics over HTTP, by name and labels."""
    url = f"http://{node.call('status')['metrics']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def meter(node, name, **labels):
    return scrape(node).get((f"fabric_{name}", *sorted(labels.items())), 0.0)


def reaches(node, name, least, **labels):
    """Wait until a meter reads at least so much; returns it."""
    return wait_for(
        f"{name} {labels} ≥ {least}",
        lambda: (now := meter(node, name, **labels)) >= least and now,
    )


def thing(number):
    return Thing(number=number, data=np.full(SIZE, number, np.float32))


def ports(node):
    return fabric.attach("snd", socket=node.socket), fabric.attach("rcv", socket=node.socket)


@pytest.mark.deadline(120)
def test_a_meter_of_each_kind_moves_with_what_it_counts(cluster):
    node = cluster.node("a")
    kv = {"channel": "kv"}
    out, inn = ports(node)
    with out, inn:
        out.declare("kv", Thing, pattern="queue", overflow="drop_newest")
        receiver, sender = inn.receiver("kv", Thing), out.sender("kv", Thing)
        assert meter(node, "messages_accepted_total", **kv) == 0
        for number in range(300):
            sender.send(thing(number), deadline=5.0)
        assert reaches(node, "messages_accepted_total", 300, **kv) == 300
        assert (
            reaches(node, "messages_ended_total", 44, end="dropped", reason="overflow_newest", **kv)
            == 44
        )
        assert reaches(node, "queue_messages", 256, **kv) == 256
        assert meter(node, "queue_bytes", **kv) > 256 * SIZE * 4
        assert meter(node, "outstanding_messages", **kv) == 256
        assert meter(node, "credit_left_messages", **kv) == 0
        assert meter(node, "arena_slots_taken", tenant=str(os.getuid()), group="control") >= 256
        views = [receiver.receive(timeout=5) for _ in range(10)]
        assert reaches(node, "messages_ended_total", 10, end="delivered", reason="none", **kv) == 10
        assert reaches(node, "views", 10, **kv) == 10
        assert meter(node, "view_bytes", **kv) > 10 * SIZE * 4
        assert reaches(node, "payload_delivered_bytes_total", 1, **kv) > 10 * SIZE * 4
        assert reaches(node, "view_oldest_seconds", 0.5, **kv) < 60
        assert reaches(node, "credit_left_messages", 10, **kv) == 10
        for view in views:
            view.release()
        wait_for("no views left", lambda: meter(node, "views", **kv) == 0)
        assert meter(node, "ports", kind="client", state="ready") == 2
        with pytest.raises(errors.ConfigError):
            out.declare("x" * 200, Thing)
        assert reaches(node, "limits_reached_total", 1, limit="NAME_BYTES_MAX") >= 1
    left = reaches(node, "messages_ended_total", 1, end="failed", reason="closed", **kv)
    assert reaches(node, "messages_archived_total", 1, end="delivered", **kv) == 10
    assert left == 246
    assert meter(node, "events_total", kind="messages dropped") >= 1
    assert meter(node, "events_total", kind="messages failed") >= 1
    rows = node.call("events", drops=True, channel="kv")["events"]
    assert sum(row["count"] for row in rows if row["reason"] == "overflow_newest") == 44
    assert sum(row["count"] for row in rows if row["reason"] == "closed") == 246


@pytest.mark.promise("P3")
@pytest.mark.deadline(60)
def test_a_stopped_process_is_a_suspect_in_the_metrics_and_the_status_until_it_goes_on(cluster):
    node = cluster.node("a")
    worker = cluster.worker(node, "consume", "in", channel="jobs", pattern="queue")
    worker.wait_for("ready")
    pid = next(row["pid"] for row in node.call("topology")["ports"] if row["name"] == "in")
    assert meter(node, "ports", kind="client", state="suspect") == 0
    os.kill(pid, signal.SIGSTOP)
    try:
        assert reaches(node, "ports", 1, kind="client", state="suspect") == 1
        assert node.call("status")["suspects"] == [f"in (pid {pid})"]
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for("no suspect", lambda: not node.call("status")["suspects"])


@pytest.mark.deadline(60)
def test_a_scrape_costs_little_and_shares_its_look(cluster):
    node = cluster.node("a")
    url = f"http://{node.call('status')['metrics']}/metrics"
    urllib.request.urlopen(url, timeout=10).read()
    began = time.monotonic()
    for _ in range(20):
        urllib.request.urlopen(url, timeout=10).read()
    assert (time.monotonic() - began) / 20 < 0.1


@pytest.mark.deadline(60)
def test_links_between_nodes_count_bytes_frames_and_messages(cluster):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    with fabric.attach("snd", socket=a.socket) as out, fabric.attach("rcv", socket=b.socket) as inn:
        out.declare("far", Thing, pattern="queue")
        receiver, sender = inn.receiver("far", Thing), out.sender("far", Thing)
        before = meter(a, "link_bytes_total", peer="b", rail="0", group="bulk", direction="out")
        for number in range(20):
            sender.send(thing(number), deadline=10.0)
            receiver.receive(timeout=10).release()
        assert reaches(
            a,
            "link_bytes_total",
            before + 20 * SIZE * 4,
            peer="b",
            rail="0",
            group="bulk",
            direction="out",
        )
        assert reaches(a, "session_events_total", 20, peer="b", event="messages_out") == 20
        assert reaches(b, "session_events_total", 20, peer="a", event="messages_in") == 20
        assert meter(a, "link_up", peer="b", rail="0", group="control") == 1
        assert meter(a, "link_rtt_seconds", peer="b", rail="0", group="control") > 0
