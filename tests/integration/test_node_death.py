"""A whole node dies, sleeps past its lease, or stops in order: what was on it ends, and nothing of it stays."""

import os
import signal
import socket
import time

import psutil
import pytest

from tests.integration.kill_nodes import balanced, clusters, settled, wait_for

pytestmark = pytest.mark.promise("P3", "P9")

cluster = pytest.fixture(clusters)


def tree(node):
    keeper = node.keeper
    return [keeper, *keeper.children(recursive=True)]


def wait_gone(processes, seconds=10.0):
    _, left = psutil.wait_procs(processes, seconds)
    assert not left, f"left behind: {left}"


def test_work_for_a_node_killed_whole_is_redone_elsewhere(cluster):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    job = {"channel": "far", "pattern": "queue"}
    there = cluster.worker(b, "consume", "there", hold_s=0.05, **job)
    here = cluster.worker(a, "consume", "here", hold_s=0.01, **job)
    for worker in (there, here):
        worker.wait_for("ready")
    producer = cluster.worker(a, "produce", "out", count=300, interval_s=0.01, **job)
    there.wait_for("got", 5)
    processes = tree(b)
    for process in (b.keeper, psutil.Process(b.daemon_pid)):
        process.kill()
    b.wait_ended()
    there.kill()
    killed_at = time.monotonic()
    wait_for("redelivery", lambda: any(r.get("redelivered") for r in here.reports("got")), 20.0)
    assert time.monotonic() - killed_at < 10.0, "the lease of 3 s, a tick, and a busy machine"
    producer.finish(40.0)
    acked = {n for w in (there, here) for n in w.values("acked")}
    assert acked == set(range(300))
    assert settled(a, "far")["delivered"] == 300
    assert [n["state"] for n in a.call("ls", "node")] == ["serving", "dead"]
    wait_gone(processes)


def test_kill_of_the_keeper_takes_the_node_and_its_sockets_along(cluster):
    node = cluster.node()
    processes = tree(node)
    node.keeper.kill()
    node.wait_ended()
    wait_gone(processes)
    for path in (node.socket, node.socket + ".ctl"):
        wait_for(f"{path} gone", lambda path=path: not os.path.exists(path), 5.0)


def test_orderly_stop_leaves_no_process_socket_or_lock(cluster):
    node = cluster.node()
    worker = cluster.worker(node, "consume", "in", channel="c")
    worker.wait_for("ready")
    processes = tree(node)
    node.stop()
    wait_gone(processes)
    assert not os.path.exists(node.socket) and not os.path.exists(node.socket + ".ctl")
    node.start()  # the same state directory serves again


@pytest.mark.promise("P3")
def test_node_that_slept_past_its_lease_joins_again_and_nothing_is_delivered_twice(cluster):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    job = {"channel": "far", "pattern": "queue"}
    there = cluster.worker(b, "consume", "there", hold_s=0.02, **job)
    there.wait_for("ready")
    producer = cluster.worker(a, "produce", "out", count=400, interval_s=0.02, **job)
    there.wait_for("got", 10)
    sleeping = [
        b.keeper,
        psutil.Process(b.daemon_pid),
    ]  # a keeper awake would kill its silent daemon
    for process in sleeping:
        process.suspend()

    def state():
        return a.call("ls", "node")[1]["state"]

    wait_for("suspicion", lambda: state() == "suspect", 5.0)
    wait_for("the lease's end", lambda: state() == "dead", 15.0)
    for process in reversed(sleeping):
        process.resume()
    wait_for("the node back", lambda: state() == "serving", 15.0)
    assert sleeping[1].pid == b.daemon_pid, "fenced and back, not restarted"
    assert [e for e in b.call("status")["events"] if e["event"] == "lease ended; joining again"]
    producer.finish(40.0)
    row = settled(a, "far")
    assert row["delivered"] == 400
    assert set(there.values("acked")) == set(range(400))
    balanced(a)


@pytest.mark.promise("P1", "P2")
def test_what_runs_on_a_node_goes_on_while_the_others_believe_it_dead(cluster):
    """The view in which a node is dead reaches it before it has joined again; its own flows are none of that."""
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    job = {"channel": "near", "pattern": "queue"}
    inn = cluster.worker(b, "consume", "in", hold_s=0.02, **job)
    inn.wait_for("ready")
    producer = cluster.worker(b, "produce", "out", count=600, interval_s=0.01, **job)
    inn.wait_for("got", 10)
    sleeping = [b.keeper, psutil.Process(b.daemon_pid)]
    for process in sleeping:
        process.suspend()
    wait_for("the lease's end", lambda: a.call("ls", "node")[1]["state"] == "dead", 15.0)
    for process in reversed(sleeping):
        process.resume()
    wait_for("the node back", lambda: a.call("ls", "node")[1]["state"] == "serving", 15.0)
    producer.finish(40.0)
    row = settled(b, "near")
    assert row["delivered"] == row["accepted"] == 600
    assert sorted(inn.values("acked")) == list(range(600))
    assert not [r for r in inn.reports("got") if r.get("redelivered")], "a living flow was lost"
    balanced(a)


def test_node_that_was_dialled_before_it_knew_who_is_there_is_connected_all_the_same(cluster):
    """A daemon that is started again is dialled at once; who the others are it learns from the registry, later."""
    a = cluster.node("a")
    b, c = cluster.node("b", join=a), cluster.node("c", join=a)
    job = {"channel": "side", "pattern": "queue"}
    inn = cluster.worker(c, "consume", "in", **job)
    inn.wait_for("ready")
    registry = [a.keeper, psutil.Process(a.daemon_pid)]
    for process in registry:
        process.suspend()
    b.kill_daemon()

    def is_dialled():
        ours = psutil.Process(c.daemon_pid).net_connections("tcp")
        there = {x.laddr.port for x in psutil.Process(b.daemon_pid).net_connections("tcp")}
        return any(x.raddr and x.raddr.port in there and x.status == "ESTABLISHED" for x in ours)

    wait_for("a connection from c", is_dialled, 10.0)
    for process in reversed(registry):
        process.resume()
    producer = cluster.worker(b, "produce", "out", count=50, interval_s=0.01, **job)
    producer.finish(40.0)
    wait_for("all", lambda: set(inn.values("acked")) == set(range(50)), 20.0)


def test_stopped_process_is_suspect_and_recovers_when_it_goes_on(cluster):
    node = cluster.node()
    worker = cluster.worker(node, "consume", "in", channel="c")
    worker.wait_for("ready")

    def state():
        return {p["name"]: p["state"] for p in node.call("topology")["ports"]}["in"]

    wait_for("its heartbeat", lambda: state() == "ready")
    worker.process.send_signal(signal.SIGSTOP)
    wait_for("suspicion", lambda: state() == "suspect", 10.0)
    worker.process.send_signal(signal.SIGCONT)
    wait_for("recovery", lambda: state() == "ready", 10.0)


def test_stranger_without_the_secret_is_refused_and_the_node_serves_on(cluster):
    node = cluster.node()
    host, _, port = node.listen.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        stranger.settimeout(10)
        assert b"HTTP" not in stranger.recv(4096)
    assert node.call("status")["state"] == "serving"


@pytest.mark.sweep
def test_node_that_cannot_join_says_in_its_status_why(cluster):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and is no fabricd
        nobody = type("Address", (), {"listen": f"127.0.0.1:{silent.getsockname()[1]}"})()
        node = cluster.node("b", join=nobody)
        silent.close()
        trouble = wait_for("the reason", lambda: node.call("status").get("trouble"))
        assert nobody.listen in trouble
        assert node.call("status")["state"] == "joining"


def test_node_of_a_taken_name_is_refused_while_the_first_lives(cluster):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    (b.folder.parent / "twin").mkdir()
    twin = type(b)(b.folder.parent / "twin", "b", a.listen)
    cluster.nodes.append(twin)
    twin.start()
    assert twin.call("status")["state"] == "joining"
    assert [n["state"] for n in a.call("ls", "node")] == ["serving", "serving"]


def test_joined_nodes_talk_directly_and_go_on_while_the_registry_node_is_gone(cluster):
    a = cluster.node("a")
    b, c = cluster.node("b", join=a), cluster.node("c", join=a)
    job = {"channel": "side", "pattern": "queue"}
    inn = cluster.worker(c, "consume", "in", **job)
    inn.wait_for("ready")
    producer = cluster.worker(b, "produce", "out", count=400, interval_s=0.01, **job)
    inn.wait_for("got", 20)
    registry = psutil.Process(a.daemon_pid)
    registry.suspend()
    inn.wait_for("got", len(inn.values("got")) + 100)
    registry.resume()
    producer.finish(40.0)
    wait_for("all", lambda: set(inn.values("acked")) == set(range(400)))
    row = settled(b, "side")
    assert row["delivered"] == row["accepted"] == 400
