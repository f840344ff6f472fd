"""Plans over two nodes, a node that goes or comes in the middle, and a stream of replies that outlives an apply."""

import contextlib
import threading

import pytest

from fabric import errors
from tests.integration.generation_files import apply, channel, outcomes, row, spec, write_module
from tests.integration.kill_nodes import clusters, settled, wait_for

cluster = pytest.fixture(clusters)

REQUESTS = "{{type: kill.ask, reply: kill.answer, pattern: request, credit: {{messages: {}}}}}"


def on(path, node):
    return f'{{class: "{path}:Worker", node: {node}}}'


@pytest.mark.promise("P7")
def test_stream_of_replies_goes_on_over_an_apply_while_new_requests_use_the_new_generation(cluster):
    """No drain: the answer that is being streamed keeps its generation alive until it is whole."""
    node = cluster.node()
    apply(node, spec({"r": REQUESTS.format(8)}))
    server = cluster.worker(node, "respond", "server", channel="r", interval_s=0.03)
    server.wait_for("ready")
    asking = cluster.worker(node, "ask", "asking", channel="r", steps=100)
    asking.wait_for("step", 5)
    assert apply(node, spec({"r": REQUESTS.format(16)}))["generation"] == 2
    late = cluster.worker(node, "ask", "late", channel="r", steps=3)
    assert late.wait_for("done")[0]["steps"] == 3
    assert not asking.reports("done"), "the long one is still at it"
    assert node.call("history")["live"] == [1, 2]
    assert asking.wait_for("done")[0]["steps"] == 100 and not asking.reports("error")
    wait_for("the older generation closed", lambda: node.call("history")["live"] == [2])


@pytest.mark.deadline(90)
def test_apply_asked_on_any_node_is_everywhere_or_nowhere(cluster, short_dir):
    first = cluster.node("a")
    second = cluster.node("b", first)
    good, bad = (write_module(short_dir, name) for name in ("good", "other"))
    answer = apply(
        second, spec({"live": channel()}, (), {"one": on(good, "a"), "two": on(good, "b")})
    )
    assert answer["generation"] == 1
    assert outcomes(first) == outcomes(second) == [(1, "committed")]
    assert {r["node"]: r["name"] for r in first.call("ls", "module")} == {"a": "one", "b": "two"}
    pids = {r["name"]: r["pid"] for r in first.call("ls", "module")}
    write_module(short_dir, "other", start="raise SystemExit('no')")
    with pytest.raises(
        errors.PeerLostError, match=r"node 'b': module 'three' ended .* generation 1 is in force"
    ):
        apply(first, spec({"live": channel(("none",)[:0], credit="{messages: 9}")}, (), {
            "one": on(good, "a"), "two": on(good, "b"), "three": on(bad, "b"),
        }))  # fmt: skip
    assert outcomes(second)[0] == (2, "rolled back")
    assert {r["name"]: r["pid"] for r in second.call("ls", "module")} == pids, "none was touched"
    with pytest.raises(errors.ConfigError, match="there is no node 'c'"):
        apply(second, spec({"live": channel()}, (), {"one": on(good, "c")}))


@pytest.mark.promise("P7")
@pytest.mark.deadline(120)
def test_node_that_dies_in_the_middle_rolls_back_and_has_the_plan_in_force_when_it_is_back(
    cluster, short_dir
):
    first = cluster.node("a")
    second = cluster.node("b", first)
    quick = write_module(short_dir, "quick")
    slow = write_module(short_dir, "slow", start="import time; time.sleep(3)")
    before = spec({"live": channel()}, (), {"one": on(quick, "a"), "two": on(quick, "b")})
    apply(first, before)
    out = cluster.worker(first, "produce", "out", channel="live", count=150, declared=True)
    raised = []

    def try_it():
        try:
            apply(first, spec(
                {"live": channel(), "more": channel()}, (), {"one": on(quick, "a"), "late": on(slow, "b")}
            ))  # fmt: skip
        except errors.FabricError as error:
            raised.append(error)

    asking = threading.Thread(target=try_it)
    asking.start()
    wait_for("the second at work", lambda: outcomes(first)[0] == (2, "switched"))
    wait_for("the module started", lambda: row(second, "module", "late"))
    keeper = second.keeper
    keeper.kill()
    second.wait_ended()
    asking.join(60)
    assert raised and "generation 2 was rolled back, generation 1 is in force" in str(raised[0])
    assert outcomes(first) == [(2, "rolled back"), (1, "committed")]
    assert row(first, "channel", "more") is None
    out.finish()
    second.start()

    def is_back():
        with contextlib.suppress(errors.FabricError):
            return {r["name"]: r["state"] for r in second.call("ls", "module")} == {
                "one": "ready",
                "two": "ready",
            }
        return False

    wait_for("the plan in force on the node that was away", is_back, 40.0)
    settled(first, "live")
