"""Death within 50 ms, suspicion within a second, the end of a silent module at its lease, and no false alarm."""

import os
import signal
import statistics
import time

import psutil
import pytest

from tests.integration.kill_nodes import clusters, settled, wait_for

cluster = pytest.fixture(clusters)

HOLDER = """
import ctypes
import fabric

class Holder(fabric.Module):
    def run(self):
        ctypes.PyDLL(None).usleep(200_000)
        for _ in range(3):
            ctypes.PyDLL(None).usleep(1_000_000)  # one call each: the lock is never given away in it
        self.stopping.wait()

class Sleeper(fabric.Module):
    def run(self):
        self.stopping.wait()
"""


def events(node, name):
    return [e for e in node.call("status")["events"] if e["event"] == name]


def start_module(node, folder, cls):
    source = folder / "mods.py"
    source.write_text(HOLDER)
    node.call("apply", f'version: 1\nmodules:\n  m: {{class: "{source}:{cls}"}}\n')
    wait_for("the module", lambda: module(node)["state"] == "ready", 30.0)
    return module(node)


def module(node):
    return next((r for r in node.call("ls", "module") if r["name"] == "m"), {"state": ""})


@pytest.mark.promise("P3")
def test_death_of_a_process_is_noticed_within_50_ms(cluster):
    node = cluster.node()
    took = []
    for number in range(20):
        worker = cluster.worker(node, "consume", f"w{number}", channel="c")
        worker.wait_for("ready")
        before = len(events(node, "process ended"))
        at = time.time()
        worker.kill()

        def ended(before=before):
            return events(node, "process ended")[before:] if before < 10 else None

        seen = wait_for("the event", lambda n=number: of_port(node, f"w{n}"), 5.0)
        took.append(seen["at_s"] - at)
    assert statistics.median(took) <= 0.05, took


def of_port(node, name):
    found = [e for e in events(node, "process ended") if e["port"] == name]
    return found[0] if found else None


@pytest.mark.promise("P3")
def test_module_that_holds_its_interpreter_lock_for_3_s_is_never_suspect(cluster, short_dir):
    node = cluster.node()
    start_module(node, short_dir, "Holder")
    pid = module(node)["pid"]
    deadline = time.monotonic() + 4.0
    while time.monotonic() < deadline:
        assert not events(node, "port suspect")
        time.sleep(0.1)
    assert module(node)["pid"] == pid and module(node)["restarts"] == 0


@pytest.mark.promise("P3")
def test_stopped_module_is_suspect_then_killed_at_its_lease_and_started_again(cluster, short_dir):
    node = cluster.node()
    pid = start_module(node, short_dir, "Sleeper")["pid"]
    stopped_at = time.time()
    os.kill(pid, signal.SIGSTOP)
    suspect = wait_for("suspicion", lambda: events(node, "port suspect"), 5.0)[0]
    assert suspect["at_s"] - stopped_at < 1.5
    killed = wait_for("the kill", lambda: events(node, "silent process killed"), 10.0)[0]
    assert 2.5 < killed["at_s"] - stopped_at < 5.0
    back = wait_for(
        "the restart", lambda: (row := module(node))["state"] == "ready" and row["restarts"] and row
    )
    assert back["pid"] != pid and back["restarts"] == 1


@pytest.mark.promise("P3")
def test_client_that_is_stopped_for_5_s_is_suspect_and_loses_nothing(cluster):
    node = cluster.node()
    worker = cluster.worker(node, "consume", "in", channel="c")
    worker.wait_for("ready")
    producer = cluster.worker(node, "produce", "out", channel="c", count=300, interval_s=0.002)
    worker.wait_for("got", 5)
    worker.process.send_signal(signal.SIGSTOP)
    time.sleep(5.0)
    assert events(node, "port suspect") and not events(node, "silent process killed")
    worker.process.send_signal(signal.SIGCONT)
    producer.finish()
    worker.wait_for("acked", 300)
    assert worker.values("got") == list(range(300))
    wait_for("the end of suspicion", lambda: events(node, "port back"))


@pytest.mark.promise("P3")
def test_daemon_that_stood_still_judges_nobody_by_its_own_pause(cluster, short_dir):
    node = cluster.node()
    pid = start_module(node, short_dir, "Sleeper")["pid"]
    daemon = psutil.Process(node.daemon_pid)
    holder = psutil.Process(pid)
    daemon.suspend()
    holder.suspend()  # both stand still, as on a machine that was paused
    time.sleep(2.0)
    holder.resume()
    daemon.resume()
    wait_for("the daemon's own note", lambda: events(node, "daemon stood still"), 10.0)
    time.sleep(1.0)
    assert not events(node, "silent process killed")
    assert module(node)["pid"] == pid


@pytest.mark.promise("P3")
@pytest.mark.promise("P4")
@pytest.mark.parametrize("where", ["same node", "other node"])
def test_queue_gives_a_silent_consumer_nothing_new_and_goes_on_with_the_others(cluster, where):
    a = cluster.node("a")
    home = a if where == "same node" else cluster.node("b", join=a)
    job = {"channel": "q", "pattern": "queue"}
    silent = cluster.worker(home, "consume", "silent", **job)
    busy = cluster.worker(a, "consume", "busy", **job)
    for worker in (silent, busy):
        worker.wait_for("ready")
    producer = cluster.worker(a, "produce", "out", interval_s=0.005, **job)
    silent.wait_for("got", 5)
    silent.process.send_signal(signal.SIGSTOP)
    wait_for("suspicion", lambda: events(home, "port suspect"), 5.0)
    time.sleep(0.5)  # the senders are told
    first = producer.values("sent")[-1]
    producer.wait_for("sent", first + 200)
    later = set(range(first + 1, first + 150))
    wait_for("later work, done by the other", lambda: later <= set(busy.values("acked")), 10.0)
    silent.process.send_signal(signal.SIGCONT)
    before = len(silent.values("got"))
    silent.wait_for("got", before + 5)
    assert not any(r["redelivered"] for r in busy.reports("got")), "nothing was taken from it"


@pytest.mark.promise("P1")
@pytest.mark.promise("P3")
def test_sender_that_sleeps_while_its_consumer_closes_loses_nothing_when_it_wakes(cluster):
    """It may still send on the flow that it was not told to leave: nobody may forget that flow before."""
    node = cluster.node()
    job = {"channel": "q", "pattern": "queue"}
    leaving = cluster.worker(node, "leave", "leaving", take=3, stay_s=12.0, **job)
    leaving.wait_for("ready")
    producer = cluster.worker(node, "produce", "out", count=400, interval_s=0.001, **job)
    leaving.wait_for("got")
    producer.process.send_signal(signal.SIGSTOP)
    staying = cluster.worker(node, "consume", "staying", **job)
    staying.wait_for("ready")
    leaving.wait_for("closed")
    time.sleep(7.0)  # more than a push may take
    producer.process.send_signal(signal.SIGCONT)
    producer.finish(30.0)
    row = settled(node, "q")
    assert row["delivered"] == row["accepted"] == 400
