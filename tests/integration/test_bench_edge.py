"""`fabricctl bench edge` on running nodes: its figures, its budget, and that nothing of it is left, however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from typing import ClassVar

import grpc
import psutil
import pytest

from fabric import limits
from fabric.controlplane.api.v1 import control_pb2 as pb
from fabric.controlplane.api.v1 import control_pb2_grpc as pb_grpc
from tests.integration.kill_nodes import balanced, clusters, returned, settled, wait_for

cluster = pytest.fixture(clusters)
MIB = 1 << 20
FIGURES = {
    "64 B round trip, default wait": ("p50_us", "p99_us", "cpu_us", "daemons_cpu_us"),
    "64 B, one call a message": ("k_per_s", "cpu_us", "daemons_cpu_us"),
    "64 B, 64 a call": ("k_per_s", "cpu_us", "daemons_cpu_us"),
    "1 MiB loaned, window 1": ("gb_per_s", "cpu_s_per_gb", "daemons_cpu_s_per_gb"),
    "1 MiB send(array), window 8": ("gb_per_s", "cpu_s_per_gb", "daemons_cpu_s_per_gb"),
    "16 MiB loaned, window 1": ("gb_per_s", "cpu_s_per_gb", "daemons_cpu_s_per_gb"),
    "16 MiB send(array), window 1": ("gb_per_s", "cpu_s_per_gb", "daemons_cpu_s_per_gb"),
}
GONE_S = 10.0  # an end that is asked to leave has a second, then its port is settled


@pytest.fixture(autouse=True)
def no_bench_outlives_its_test():
    yield
    for bench in Bench.started:
        if bench.process.poll() is None:
            bench.process.kill()
            bench.process.communicate()
    Bench.started.clear()


class Bench:
    """One `fabricctl bench edge` beside the test."""

    started: ClassVar[list] = []

    def __init__(self, node, *arguments):
        command = [
            sys.executable,
            "-m",
            "fabric.cli.main",
            "bench",
            "edge",
            *arguments,
            "-o",
            "json",
        ]
        environment = {**os.environ, "FABRIC_SOCKET": node.socket}
        pipe = subprocess.PIPE
        Bench.started.append(self)
        self.process = subprocess.Popen(
            command, stdout=pipe, stderr=pipe, env=environment, text=True
        )

    def figures(self):
        out, err = self.process.communicate(timeout=50)
        assert self.process.returncode == 0, err
        return json.loads(out)

    def failure(self):
        _, err = self.process.communicate(timeout=50)
        assert self.process.returncode == 1, err
        return err


def ends(*nodes):
    """Return the processes of measurements by the name of their port, on all nodes."""
    return {
        row["name"]: row["pid"]
        for node in nodes
        for row in node.call("topology")["ports"]
        if row["kind"] == "probe"
    }


def measuring(node, *, channel="out"):
    """Tell whether both ends are there and messages pass."""
    rows = [c for c in node.call("ls", "channel") if c["name"].startswith("fabric.bench")]
    return any(c["name"].endswith(f".{channel}") and c["delivered"] > 100 for c in rows)


def nothing_left(*nodes):
    """Wait until no end, channel or supervised process of a measurement is left."""
    living = [node for node in nodes if node.is_running()]
    wait_for("its ends gone", lambda: not ends(*living), GONE_S)
    for node in living:
        wait_for("its channels gone", lambda node=node: not bench_channels(node), GONE_S)
        assert not [e for e in node.call("ls", "module") if "bench" in e["name"]]
        assert not list(node.folder.glob("state/logs/bench*"))
        wait_for("its labels gone", lambda node=node: not bench_labels(node))
        commands = [p.cmdline() for p in node.keeper.children(recursive=True)]
        assert not [c for c in commands if "fabric.worker.host" in c]


def arena_bytes(node):
    return node.call("status")["arena_bytes"]


def bench_labels(node):
    """Return the lines of the metrics that name channels of a measurement, or channels that are gone."""
    lines = node.call("metrics").splitlines()
    return [line for line in lines if 'channel="fabric.' in line or 'channel="#' in line]


def bench_channels(node):
    return [c["name"] for c in node.call("ls", "channel") if c["name"].startswith("fabric.")]


# ---------------------------------------------------------------- what it says
@pytest.mark.parametrize("target", ["a", "b"])
def test_edge_gets_the_figures_of_the_bench_within_its_budget_and_leaves_nothing(cluster, target):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    report = Bench(a, "a", target, "--seconds", "8").figures()
    steps = {row["name"]: row for row in report["steps"]}
    for name, keys in FIGURES.items():
        assert all(steps[name][key] >= 0 for key in keys), steps[name]
    assert steps["16 MiB loaned, window 8"]["left_out"] == "needs 176.0 MiB of --memory"
    assert report["used"]["seconds"] <= 8.0 + 0.5, "a round that was begun is finished"
    assert report["used"]["bytes"] <= 1 << 30
    link = "shm" if target == "a" else "tcp"
    assert {row["channel"]: row["path"] for row in report["path"]} == {
        "out": link, "bulk": link, "back": link,
    }  # fmt: skip
    assert {row["checksums"] for row in report["path"]} == {None if target == "a" else True}
    assert [row["node"] for row in report["load"]] == (["a"] if target == "a" else ["a", "b"])
    assert all(row["cores"] == os.cpu_count() for row in report["load"])
    assert a.call("topology")["generation"] == 0, "no plan was made of it"
    nothing_left(a, b)
    assert balanced(a)["channels"] == []


@pytest.mark.sweep
def test_edge_between_nodes_that_fabricctl_does_not_talk_to_is_measured_by_their_daemons(cluster):
    a = cluster.node("a")
    b, c = cluster.node("b", join=a), cluster.node("c", join=a)
    report = Bench(a, "b", "c", "--seconds", "1", "--bytes", "64MiB").figures()
    assert (report["source"], report["target"]) == ("b", "c")
    assert report["steps"][0]["p50_us"] > 0
    assert [row["node"] for row in report["load"]] == ["b", "c"]
    nothing_left(a, b, c)


@pytest.mark.sweep
def test_slow_link_leaves_large_rows_out_with_the_time_that_one_takes_and_keeps_the_time(
    cluster, monkeypatch
):
    monkeypatch.setenv("FABRIC_FAULTS", "1")
    monkeypatch.setenv("FABRIC_ENGINE_FAULT", f"link_rate_bytes:{8 * MIB}")
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    report = Bench(a, "a", "b", "--seconds", "4").figures()
    why = {row["name"]: row.get("left_out", "") for row in report["steps"]}
    assert not why["64 B round trip, default wait"]
    for name in ("16 MiB loaned, window 1", "16 MiB send(array), window 1"):
        assert why[name].startswith("one takes ") and "share of --seconds" in why[name]
    assert report["used"]["seconds"] <= 4.0 + 1.0, "one window of 1 MiB more than it may"
    nothing_left(a, b)


@pytest.mark.sweep
@pytest.mark.promise("P8")
@pytest.mark.parametrize("memory", [24, 64])
@pytest.mark.parametrize("target", ["a", "b"])
def test_memory_of_a_measurement_stays_within_its_budget_on_every_node(cluster, target, memory):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    bench = Bench(a, "a", target, "--seconds", "4", "--memory", f"{memory}MiB")
    most = dict.fromkeys("ab", 0)
    while bench.process.poll() is None:
        for node in (a, b):
            most[node.name] = max(most[node.name], arena_bytes(node))
    left_out = {row["name"]: row.get("left_out", "") for row in bench.figures()["steps"]}
    too_large = [name for name, why in left_out.items() if "--memory" in why]
    assert too_large and all(name.startswith("16 MiB") for name in too_large)
    assert 0 < most["a"] <= memory * MIB
    assert most["b"] <= memory * MIB and (most["b"] > 0) == (target == "b")


# ---------------------------------------------------------------- beside others
@pytest.mark.promise("P1")
@pytest.mark.promise("P4")
def test_live_traffic_beside_it_loses_nothing_and_every_cut_balances(cluster):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    job = {"channel": "work", "pattern": "queue", "floats": 4096}
    workers = [cluster.worker(node, "consume", f"in-{node.name}", **job) for node in (a, b)]
    for worker in workers:
        worker.wait_for("ready")
    producer = cluster.worker(a, "produce", "out", count=1500, interval_s=0.003, **job)
    producer.wait_for("sent", 50)
    bench = Bench(a, "a", "b", "--seconds", "3")
    cuts = 0
    while bench.process.poll() is None:
        balanced(a)
        cuts += 1
        time.sleep(0.2)
    assert cuts >= 3
    assert bench.figures()["steps"][0]["p50_us"] > 0
    producer.finish(40.0)
    row = settled(a, "work")
    assert row["delivered"] == row["accepted"] == 1500
    got = [r for worker in workers for r in worker.reports("got")]
    assert sorted(r["got"] for r in got) == list(range(1500)), "each once"
    assert all(r["whole"] and not r["redelivered"] for r in got)
    nothing_left(a, b)


@pytest.mark.sweep
@pytest.mark.promise("P4")
def test_every_thread_of_both_ends_comes_after_those_of_others(cluster):
    a = cluster.node("a")
    bench = Bench(a, "a", "--seconds", "2")
    wait_for("messages", lambda: measuring(a))
    for pid in ends(a).values():
        threads = [thread.id for thread in psutil.Process(pid).threads()]
        assert len(threads) > 2
        assert min(os.getpriority(os.PRIO_PROCESS, thread) for thread in threads) >= 10
    bench.figures()
    nothing_left(a)


@pytest.mark.sweep
def test_two_measurements_of_one_edge_at_once_have_names_of_their_own_and_both_work(cluster):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    both = [Bench(node, "a", "b", "--seconds", "2", "--bytes", "64MiB") for node in (a, b)]
    wait_for("both", lambda: len(ends(a)) == 4)
    for bench in both:
        assert bench.figures()["steps"][0]["p50_us"] > 0
    nothing_left(a, b)


# ---------------------------------------------------------------- however it ends
def interrupt(bench, _):
    bench.process.send_signal(signal.SIGINT)
    _, err = bench.process.communicate(timeout=20)
    assert bench.process.returncode == 130 and "Traceback" not in err


def kill(bench, _):
    bench.process.kill()
    bench.process.communicate(timeout=20)


def kill_end(role):
    def act(bench, nodes):
        name, pid = next((n, p) for n, p in ends(*nodes).items() if n.endswith(role))
        os.kill(pid, signal.SIGKILL)
        assert f"{name} on node 'a' ended before the measurement was over" in bench.failure()

    return act


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    "end",
    [interrupt, kill, kill_end("near"), kill_end("far")],
    ids=["ctrl-c", "fabricctl-killed", "near-end-killed", "far-end-killed"],
)
def test_whatever_ends_it_takes_everything_away(cluster, end):
    a = cluster.node("a")
    before = a.footprint()
    bench = Bench(a, "a", "--seconds", "30", "--bytes", "60GiB")
    wait_for("messages", lambda: measuring(a))
    end(bench, [a])
    nothing_left(a)
    assert not [r for r in balanced(a)["channels"] if "bench" in r["name"]]
    returned(a, before)


@pytest.mark.sweep
@pytest.mark.promise("P9")
def test_deadline_of_the_call_takes_everything_away(cluster):
    a = cluster.node("a")
    before = a.footprint()
    request = pb.BenchEdgeRequest(
        source="a", target="a", seconds=30.0, size_bytes=60 << 30, memory_bytes=64 * MIB
    )
    with grpc.insecure_channel(f"unix:{a.socket}.ctl") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            pb_grpc.ControlStub(channel).BenchEdge(request, timeout=3.0)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    nothing_left(a)
    returned(a, before)


@pytest.mark.promise("P9")
def test_death_of_the_far_node_is_told_and_nothing_is_left_on_the_near_one(cluster):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    Bench(a, "a", "b", "--seconds", "1", "--bytes", "64MiB").figures()  # the gateway is there
    nothing_left(a, b)
    bench = Bench(a, "a", "b", "--seconds", "30", "--bytes", "60GiB")
    wait_for("messages", lambda: measuring(a))
    for process in (b.keeper, psutil.Process(b.daemon_pid)):
        process.kill()
    b.wait_ended()
    said = bench.failure()
    assert "is gone" in said or "node 'b' was lost" in said
    nothing_left(a)
    balanced(a)


@pytest.mark.sweep
@pytest.mark.promise("P3", "P9")
def test_far_node_that_sleeps_past_its_lease_is_told_and_keeps_nothing_when_it_wakes(cluster):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    bench = Bench(a, "a", "b", "--seconds", "30", "--bytes", "60GiB")
    wait_for("messages", lambda: measuring(a))
    sleeping = [b.keeper, psutil.Process(b.daemon_pid)]
    for process in sleeping:
        process.suspend()
    said = bench.failure()
    for process in reversed(sleeping):
        process.resume()
    assert "node 'b' was lost" in said or "is gone" in said
    wait_for("the node back", lambda: a.call("ls", "node")[1]["state"] == "serving", 15.0)
    nothing_left(a, b)
    balanced(a)


@pytest.mark.sweep
@pytest.mark.promise("P9")
def test_death_of_the_daemon_that_was_asked_leaves_no_end_on_the_others(cluster):
    a = cluster.node("a")
    b, c = cluster.node("b", join=a), cluster.node("c", join=a)
    bench = Bench(a, "b", "c", "--seconds", "30", "--bytes", "60GiB")
    wait_for("messages", lambda: measuring(a))
    a.kill_daemon()
    bench.failure()
    wait_for(
        "its ends gone", lambda: not ends(a, b, c), GONE_S
    )  # its channels go when unused for long
    balanced(a)


@pytest.mark.sweep
@pytest.mark.promise("P9")
def test_death_of_the_daemon_of_an_end_leaves_nothing_behind(cluster):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    bench = Bench(a, "b", "a", "--seconds", "30", "--bytes", "60GiB")
    wait_for("messages", lambda: measuring(a))
    b.kill_daemon()
    bench.failure()
    nothing_left(a, b)
    balanced(a)


@pytest.mark.sweep
@pytest.mark.slow
def test_memory_of_a_measurement_between_nodes_comes_back_on_both(cluster):
    keep_little = ("--arena-bytes", "512MiB")  # of empty segments
    a = cluster.node("a", None, *keep_little)
    b = cluster.node("b", a, *keep_little)
    Bench(a, "a", "b", "--seconds", "1", "--bytes", "2MiB").figures()  # the gateways are there
    nothing_left(a, b)
    idle_s = 2 * limits.SEGMENT_IDLE_S + 5.0
    for node in (a, b):
        wait_for("no arena", lambda node=node: not arena_bytes(node), idle_s)
    before = [node.footprint() for node in (a, b)]
    Bench(a, "a", "b", "--seconds", "2").figures()
    nothing_left(a, b)
    for node, was in zip((a, b), before, strict=True):
        returned(node, was, idle_s)


# ---------------------------------------------------------------- what is refused
def test_unknown_node_and_impossible_budget_are_refused_by_name(cluster):
    a = cluster.node("alpha")
    assert "there is no node 'alhpa'; did you mean 'alpha'?" in Bench(a, "alhpa").failure()
    small = Bench(a, "alpha", "--seconds", "0.1").failure()
    assert "--seconds is 0.1 s: give 0.5 s to 60 s" in small
    assert ends(a) == {}


@pytest.mark.sweep
def test_suspect_node_is_refused_by_name(cluster):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    sleeping = [b.keeper, psutil.Process(b.daemon_pid)]
    for process in sleeping:
        process.suspend()
    wait_for("suspicion", lambda: a.call("ls", "node")[1]["state"] == "suspect", 10.0)
    said = Bench(a, "a", "b").failure()
    for process in reversed(sleeping):
        process.resume()
    assert "node 'b' is suspect" in said or "node 'b' is dead" in said
    assert "fabricctl node ls" in said
