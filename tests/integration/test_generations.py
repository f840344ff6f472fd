"""Generations on real nodes: one graph a message, all or nothing, back again, and what a kill in the middle leaves."""

import threading

import pytest

from fabric import errors
from tests.integration.generation_files import (
    apply,
    channel,
    outcomes,
    row,
    spec,
    write_module,
    write_plugin,
)
from tests.integration.kill_nodes import clusters, settled, wait_for

cluster = pytest.fixture(clusters)


def marks(worker):
    """The set of chains that messages have gone through, each as its marks in order."""
    return {r["stream"].partition(" ")[2] for r in worker.reports("got")}


@pytest.mark.promise("P7")
@pytest.mark.deadline(90)
@pytest.mark.parametrize("pattern", ["stream", "queue"])
def test_message_sees_one_graph_whatever_is_applied_meanwhile(cluster, short_dir, pattern):
    """Insert, lengthen, change the code of, and take out a chain under traffic: no message saw half of two."""
    node = cluster.node()
    apply(node, spec({"live": channel(pattern=pattern)}))
    inn = cluster.worker(node, "consume", "in", channel="live", declared=True)
    inn.wait_for("ready")
    out = cluster.worker(
        node, "produce", "out", channel="live", count=1500, interval_s=0.002, declared=True
    )
    steps = [("1", ("one",)), ("2", ("one", "two")), ("3", ("two", "one")), ("3", ())]
    for version, transforms in steps:
        inn.wait_for("got", len(inn.reports("got")) + 60)
        plugins = (write_plugin(short_dir, version, "one"), write_plugin(short_dir, version, "two"))
        answer = apply(node, spec({"live": channel(transforms, pattern=pattern)}, plugins))
        last = " ".join(f"{name}.{version}" for name in transforms)
        wait_for(f"messages through {last!r}", lambda last=last: last in marks(inn))
    assert answer["generation"] == 5
    out.finish()
    inn.wait_for("acked", 1500)
    got = inn.values("got")
    assert sorted(got) == list(range(1500))
    if pattern == "stream":
        assert got == sorted(got), "the order of a key holds over every change"
    assert marks(inn) == {"", "one.1", "one.2 two.2", "two.3 one.3"}
    assert not any(r["redelivered"] for r in inn.reports("got"))
    settled(node, "live")
    wait_for("older generations closed", lambda: node.call("history")["live"] == [5])


def test_apply_removes_what_the_file_no_longer_names_and_leaves_what_processes_declared(
    cluster, short_dir
):
    node = cluster.node()
    own = cluster.worker(node, "consume", "own", channel="mine")
    own.wait_for("ready")
    worker = write_module(short_dir, "worker")
    first = spec(
        {"live": channel(("one",)), "old": channel()},
        (write_plugin(short_dir, "1", "one"),),
        {"w": f'{{class: "{worker}:Worker"}}'},
    )
    assert {c["action"] for c in apply(node, first)["changes"]} == {"added"}
    assert row(node, "module", "w")["state"] == "ready", (
        "an apply answers when its modules are ready"
    )
    plan = node.call("plan", first)
    assert {c["action"] for c in plan["changes"]} == {"unchanged"}
    assert apply(node, first)["generation"] == 1, "nothing differs, so no generation is made"
    second = spec({"live": channel(credit="{messages: 16}")})
    changes = {(c["kind"], c["name"]): c for c in apply(node, second)["changes"]}
    assert changes["plugin", "one"]["action"] == changes["module", "w"]["action"] == "removed"
    assert changes["channel", "old"]["action"] == "removed"
    detail = changes["channel", "live"]["detail"]
    assert "credit.messages 256 → 16" in detail and "transforms ['one'] → []" in detail
    names = {r["name"] for r in node.call("ls", "channel")}
    assert names == {"live", "mine"}
    wait_for("the plugin unloaded", lambda: not node.call("ls", "plugin"))
    assert not node.call("ls", "module")
    back = node.call("rollback")
    assert back["generation"] == 3
    assert row(node, "module", "w")["state"] == "ready" and row(node, "plugin", "one")
    assert row(node, "channel", "live")["transforms"] == ["one"]
    assert outcomes(node) == [(3, "committed"), (2, "committed"), (1, "committed")]
    difference = node.call("diff", 1, 3)["changes"]
    assert {c["action"] for c in difference} == {"unchanged"}
    status = node.call("status")
    assert status["generation"] == 3 and status["epoch"] > 3


@pytest.mark.promise("P7")
def test_failed_apply_leaves_the_last_good_one_and_names_it(cluster, short_dir):
    node = cluster.node()
    good = write_module(short_dir, "good")
    text = spec({"live": channel()}, (), {"w": f'{{class: "{good}:Worker"}}'})
    apply(node, text)
    pid = row(node, "module", "w")["pid"]
    inn = cluster.worker(node, "produce", "out", channel="live", count=60, declared=True)
    bad = write_module(short_dir, "bad", start="raise SystemExit('no model here')")
    with pytest.raises(
        errors.PeerLostError, match="generation 2 was rolled back, generation 1 is in force"
    ):
        apply(node, spec(
            {"live": channel(("one",)), "more": channel()}, (write_plugin(short_dir, "1", "one"),),
            {"w": f'{{class: "{good}:Worker"}}', "x": f'{{class: "{bad}:Worker"}}'},
        ))  # fmt: skip
    inn.finish()
    assert inn.reports("flushed")[0]["failures"] == 0
    rows = node.call("history")["rows"]
    assert (rows[0]["outcome"], rows[1]["outcome"]) == ("rolled back", "committed")
    assert "no model here" in rows[0]["why"] and "'x'" in rows[0]["why"]
    assert row(node, "module", "w")["pid"] == pid and row(node, "module", "x") is None
    assert row(node, "channel", "live")["transforms"] == [] and row(node, "channel", "more") is None
    wait_for("the tried plugin unloaded", lambda: not node.call("ls", "plugin"))
    assert node.call("status")["generation"] == 1
    settled(node, "live")


@pytest.mark.promise("P4")
def test_apply_that_leaves_a_channel_alone_does_not_touch_its_flows(cluster):
    node = cluster.node()
    apply(node, spec({"live": channel(), "other": channel()}))
    inn = cluster.worker(node, "consume", "in", channel="live", declared=True)
    inn.wait_for("ready")
    out = cluster.worker(node, "produce", "out", channel="live", count=100, declared=True)
    inn.wait_for("got", 5)

    def flows():
        found = next(c for c in node.call("topology")["channels"] if c["name"] == "live")
        return [(f["flow"], f["generation"], f["state"]) for f in found["flows"]]

    before = flows()
    assert apply(node, spec({"live": channel(), "more": channel()}))["generation"] == 2
    assert flows() == before and before[0][1:] == (1, "open")
    assert node.call("history")["live"] == [2]
    out.finish()
    settled(node, "live")


def test_plugin_that_does_not_load_is_refused_before_anything_is_touched(cluster, short_dir):
    node = cluster.node()
    apply(node, spec({"live": channel()}))
    broken = short_dir / "broken.py"
    broken.write_text("import fabric\nraise ValueError('not today')\n")
    with pytest.raises(errors.PluginError, match="not today"):
        apply(node, spec({"live": channel()}, (broken,)))
    with pytest.raises(errors.ConfigError, match="no transform 'nosuch'"):
        apply(node, spec({"live": channel(("nosuch",))}))
    assert outcomes(node) == [(1, "committed")], "a refusal is no generation"
    assert not node.call("ls", "plugin")


def test_neighbours_of_one_plugin_are_refused(cluster, short_dir):
    """Both would be one process, which has no lane to itself."""
    node = cluster.node()
    plugin = write_plugin(short_dir, "1", "one", "two")
    with pytest.raises(errors.ConfigError, match="'one' and 'two' follow each other"):
        apply(node, spec({"live": channel(("one", "two"))}, (plugin,)))


def test_pattern_of_a_channel_in_use_is_refused_naming_who_has_it(cluster):
    node = cluster.node()
    apply(node, spec({"live": channel()}))
    inn = cluster.worker(node, "consume", "in", channel="live", declared=True)
    inn.wait_for("ready")
    wait_for("the receiver known", lambda: row(node, "channel", "live")["receivers"])
    with pytest.raises(errors.ConfigError, match=r"pattern cannot change .* 'in' has it open"):
        apply(node, spec({"live": channel(pattern="queue")}))
    with pytest.raises(errors.ConfigError, match="no longer in the file, and 'in' has it open"):
        apply(node, spec({}))
    assert outcomes(node) == [(1, "committed")]


def test_of_two_applies_one_wins_and_the_other_is_told_who_is_at_it(cluster, short_dir):
    node = cluster.node()
    slow = write_module(short_dir, "slow", start="import time; time.sleep(2)")
    text = spec({"live": channel()}, (), {"w": f'{{class: "{slow}:Worker"}}'})
    answers = []
    first = threading.Thread(target=lambda: answers.append(apply(node, text)))
    first.start()
    wait_for("the first at work", lambda: (1, "switched") in outcomes(node))
    with pytest.raises(errors.BusyError, match=r"\d+@a is applying a plan"):
        apply(node, spec({"other": channel()}))
    first.join(30)
    assert answers[0]["generation"] == 1 and outcomes(node) == [(1, "committed")]


def test_plugin_on_a_channel_that_is_not_there_leaves_nothing_loaded(cluster, short_dir):
    node = cluster.node()
    plugin = write_plugin(short_dir, "1", "one")
    with pytest.raises(errors.ConfigError, match="'nosuch' is not declared"):
        node.call("plugin_load", str(plugin), plugin.read_text(), channel="nosuch")
    assert not node.call("ls", "plugin")
    apply(node, spec({"live": channel(pattern="broadcast", delivery="at_most_once")}))
    with pytest.raises(errors.ConfigError, match="transforms run on stream and queue"):
        node.call("plugin_load", str(plugin), plugin.read_text(), channel="live")
    assert not node.call("ls", "plugin")


@pytest.mark.promise("P8")
@pytest.mark.deadline(90)
def test_fifth_live_generation_is_refused_naming_what_is_in_flight(cluster):
    """Messages that nobody takes keep each generation that routed them; once they are taken, the next apply goes."""
    node = cluster.node()

    def version(number):
        return spec({"live": channel(pattern="queue", credit=f"{{messages: {100 + number}}}")})

    apply(node, version(1))
    stuck = cluster.worker(node, "consume", "stuck", channel="live", declared=True, hold_s=60.0)
    stuck.wait_for("ready")
    out = cluster.worker(
        node, "produce", "out", channel="live", declared=True, count=60, interval_s=0.1
    )
    for number in (2, 3, 4):
        out.wait_for("sent", len(out.reports("sent")) + 3)
        apply(node, version(number))
    out.wait_for("sent", len(out.reports("sent")) + 3)
    assert node.call("history")["live"] == [1, 2, 3, 4]
    refused = r"GENERATIONS_MAX \(4\) .* the oldest, 1, still has \d+ messages in \d+ flows of channel 'live'"
    with pytest.raises(errors.CapacityError, match=refused):
        apply(node, version(5))
    assert node.call("status")["generation"] == 4 and len(outcomes(node)) == 4
    inn = cluster.worker(node, "consume", "in", channel="live", declared=True)
    inn.wait_for("ready")
    stuck.kill()
    wait_for("the older generations closed", lambda: node.call("history")["live"] == [4])
    assert apply(node, version(5))["generation"] == 5
    out.finish()
    settled(node, "live")
