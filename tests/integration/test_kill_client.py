"""kill -9 on either side of requests with streamed replies."""

import pytest

from tests.integration.kill_nodes import PROMPT_S, balanced, clusters, returned, wait_for

pytestmark = pytest.mark.promise("P3", "P4")

cluster = pytest.fixture(clusters)


def test_killed_client_frees_its_request_and_others_are_answered_on(cluster):
    node = cluster.node()
    responder = cluster.worker(node, "respond", "server", channel="ask")
    responder.wait_for("ready")
    steady = cluster.worker(node, "ask", "steady", channel="ask", count=200, steps=3)
    steady.wait_for("done", 2)
    before = node.footprint()
    victim = cluster.worker(node, "ask", "victim", channel="ask", steps=1000)
    victim.wait_for("step", 5)
    killed_at = victim.kill()
    done = steady.wait_for("done", len(steady.values("done")) + 3)
    assert next(r["at"] for r in done if r["at"] > killed_at) - killed_at < PROMPT_S
    # The reply stream to nobody ends as an error at the responder, long before its 1000 steps.
    error = responder.wait_for("error")[0]
    assert error["error"] in ("peer_lost", "cancelled", "closed", "broken")
    assert error["at"] - killed_at < 5.0
    returned(node, before)
    balanced(node)


def test_killed_responder_is_a_typed_error_at_once_and_a_new_one_serves(cluster):
    node = cluster.node()
    victim = cluster.worker(node, "respond", "server", channel="ask")
    victim.wait_for("ready")
    client = cluster.worker(node, "ask", "client", channel="ask", count=2, steps=400)
    client.wait_for("step", 5)
    killed_at = victim.kill()
    error = client.wait_for("error")[0]
    assert error["error"] in ("peer_lost", "path_broken")
    assert error["at"] - killed_at < PROMPT_S, "long before its deadline of 15 s"
    successor = cluster.worker(node, "respond", "server", channel="ask", interval_s=0.0)
    successor.wait_for("ready")
    done = wait_for("the second request", lambda: client.reports("done"), 15.0)
    assert done[0]["steps"] == 400
    client.finish()
    balanced(node)
