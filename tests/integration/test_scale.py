"""`module scale` 1 → 2 → 1, drain, and a closed consumer, under traffic: nothing lost, no silent repeat."""

import json
import time

import pytest

from tests.integration.kill_nodes import clusters, settled, wait_for

cluster = pytest.fixture(clusters)

MODULE = """
import json, os, time
import fabric
from tests.integration.kill_roles import Part

class Worker(fabric.Module):
    work: fabric.In[Part]
    order: fabric.In[Part]

    def start(self):
        self.out = open(os.path.join(self.config["folder"], f"{self.name}-{os.getpid()}.jsonl"), "a")

    def note(self, channel, part):
        again = part.header.redelivered
        row = {"at": time.monotonic(), "channel": channel, "of": part.stream, "n": part.number, "again": again}
        self.out.write(json.dumps(row) + "\\n")
        self.out.flush()

    def on_work(self, part):
        self.note("work", part)

    def on_order(self, part):
        self.note("order", part)
"""

YAML = """
version: 1
channels:
  work: {{type: kill.part, pattern: queue, delivery: at_least_once}}
  order: {{type: kill.part, pattern: stream, delivery: at_least_once}}
modules:
  worker: {{class: "{folder}/worker.py:Worker", config: {{folder: "{folder}"}}}}
"""
COUNT = 500


def rows(folder):
    found = []
    for file in sorted(folder.glob("worker*.jsonl")):
        found += [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(found, key=lambda row: row["at"])


def modules(node):
    return {r["name"]: r for r in node.call("ls", "module")}


def running(node, *names):
    def are() -> bool:
        found = modules(node)
        return set(found) == set(names) and all(r["state"] == "ready" for r in found.values())

    wait_for(f"replicas {names}", are, 30.0)


@pytest.mark.promise("P1")
@pytest.mark.promise("P4")
@pytest.mark.slow
def test_scale_up_and_down_under_traffic_loses_nothing_and_repeats_nothing_silently(
    cluster, short_dir
):
    node = cluster.node()
    (short_dir / "worker.py").write_text(MODULE)
    node.call("apply", YAML.format(folder=short_dir))
    running(node, "worker")
    first = modules(node)["worker"]["pid"]
    jobs = [("work", "w0", "queue"), ("order", "k0", "stream"), ("order", "k1", "stream")]
    producers = [
        cluster.worker(
            node, "produce", name, channel=channel, pattern=pattern, count=COUNT, interval_s=0.004
        )
        for channel, name, pattern in jobs
    ]
    wait_for("traffic", lambda: len(rows(short_dir)) > 50)
    node.call("module_scale", "worker", 2)
    running(node, "worker", "worker-1")
    wait_for("work for the second", lambda: any(short_dir.glob("worker-1-*.jsonl")))
    node.kill_daemon()
    assert set(modules(node)) == {"worker", "worker-1"}, "the count survives a daemon"
    node.call("module_scale", "worker", 1)
    running(node, "worker")
    assert modules(node)["worker"]["pid"] == first, "the first replica ran on"
    for producer in producers:
        producer.finish(40.0)
    assert settled(node, "work")["delivered"] == COUNT
    assert settled(node, "order")["delivered"] == 2 * COUNT
    check(rows(short_dir))


def check(found):
    """Complete union, repeats are flagged, order per key."""
    for channel, producer in (("work", "w0"), ("order", "k0"), ("order", "k1")):
        mine = [r for r in found if (r["channel"], r["of"]) == (channel, producer)]
        assert {r["n"] for r in mine} == set(range(COUNT))
        fresh = [r["n"] for r in mine if not r["again"]]
        assert len(fresh) == len(set(fresh)), "a repeat that is not flagged"
        if channel == "order":
            assert fresh == sorted(fresh), "order per key over all replicas"


@pytest.mark.promise("P1")
def test_closed_consumer_hands_back_what_it_was_not_handed(cluster):
    node = cluster.node()
    job = {"channel": "q", "pattern": "queue"}
    leaving = cluster.worker(node, "leave", "leaving", take=3, **job)
    leaving.wait_for("ready")
    producer = cluster.worker(node, "produce", "out", count=100, interval_s=0.0, **job)
    leaving.wait_for("closed")
    closed_at = time.monotonic()
    staying = cluster.worker(node, "consume", "staying", **job)
    staying.wait_for("acked", 99, 20.0)
    assert time.monotonic() - closed_at < 10.0
    leaving.wait_for("acked")
    producer.finish()
    row = settled(node, "q")
    assert row["delivered"] == row["accepted"] == 100 and row["failed"] == 0
    acked = leaving.values("acked") + staying.values("acked")
    assert sorted(acked) == list(range(100)), (
        "one was acknowledged within its grace, the rest went elsewhere"
    )
    again = {r["got"] for r in staying.reports("got") if r["redelivered"]}
    assert {1, 2} <= again, "what had been handed over and not acknowledged is flagged"
