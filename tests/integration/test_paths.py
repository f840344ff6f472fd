"""The path between two nodes: what is taken, what was preferred, why, and that a downgrade is told."""

import pytest

from tests.integration.kill_nodes import clusters, wait_for

pytestmark = pytest.mark.promise("P5")
cluster = pytest.fixture(clusters)
QUEUE = {"channel": "work", "pattern": "queue"}


def flow_to(node, target):
    rows = [f for c in node.call("topology")["channels"] for f in c["flows"]]
    return next((row for row in rows if row["target"] == target), None)


def connected(node):
    links = node.call("topology")["links"]
    return bool(links) and links[0]["state"] == "up"


def test_flow_of_one_node_takes_shared_memory_and_between_nodes_the_link_both_have(cluster):
    first = cluster.node("a")
    second = cluster.node("b", first)
    cluster.worker(second, "consume", "far", **QUEUE).wait_for("ready")
    cluster.worker(first, "consume", "near", **QUEUE).wait_for("ready")
    cluster.worker(first, "produce", "out", count=20, **QUEUE).wait_for("sent")
    near = wait_for("a flow on the node", lambda: flow_to(first, "near"))
    far = wait_for("a flow between the nodes", lambda: flow_to(first, "far"))
    assert [near[k] for k in ("path", "path_preferred", "path_reason")] == [
        "shm",
        "shm",
        "both processes are on this node",
    ]
    assert (far["path"], far["path_preferred"]) == ("tcp", "tcp")
    assert first.call("status")["downgrades"] == 0


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [("off", "off", False), ("off", "on", True)],
    ids=["both say off", "one says on"],
)
def test_payloads_go_without_checksums_where_both_nodes_say_so(cluster, first, second, shown):
    nodes = [cluster.node("a", None, "--checksums", first)]
    nodes.append(cluster.node("b", nodes[0], "--checksums", second))
    for node in nodes:
        assert wait_for("both connections", lambda node=node: connected(node))
        assert node.call("topology")["links"][0]["checksums"] is shown


def test_link_that_was_wanted_and_is_not_there_is_counted_told_and_named(cluster):
    first = cluster.node("a")
    second = cluster.node("b", first, "--links", "ucx,tcp")
    for node in (first, second):
        status = wait_for("a downgrade", lambda node=node: node.call("status"))
        assert status["downgrades"] == 1
        told = [e for e in status["events"] if e["event"] == "path downgraded"]
        assert [(e["taken"], e["preferred"]) for e in told] == [("tcp", "ucx")]
        assert "ucx is not there on node 'a' and node 'b'" in told[0]["reason"].replace(
            "node 'b' and node 'a'", "node 'a' and node 'b'"
        )
    links = first.call("topology")["links"]
    assert {(link["link"], link["preferred"]) for link in links} == {("tcp", "ucx")}
