"""The audit of real nodes: balanced under traffic; unbalanced for a lost or repeated record and a bad cursor."""

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

import fabric
from tests.integration.kill_nodes import balanced, clusters, wait_for
from tests.integration.kill_roles import Part

pytestmark = pytest.mark.promise("P1")

cluster = pytest.fixture(clusters)
JOB = {"channel": "far", "pattern": "queue"}


@fabric.message("audit.note", version=1)
class Note:
    """Something to lose."""

    number: int


def two_nodes(cluster, monkeypatch, fault):
    """Node a, and node b whose engine does `fault` once."""
    a = cluster.node("a")
    monkeypatch.setenv("FABRIC_FAULTS", "1")
    monkeypatch.setenv("FABRIC_ENGINE_FAULT", fault)
    b = cluster.node("b", join=a)
    monkeypatch.delenv("FABRIC_FAULTS")
    monkeypatch.delenv("FABRIC_ENGINE_FAULT")
    return a, b


def differences(node):
    report = node.audit()
    assert report["verdict"] == "unbalanced", report
    return " ".join(d["what"] for d in report["differences"])


def test_audit_under_traffic_over_two_nodes_is_balanced_and_short(cluster):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    inn = cluster.worker(b, "consume", "in", **JOB)
    inn.wait_for("ready")
    cluster.worker(a, "produce", "out", interval_s=0.001, floats=4096, **JOB)
    inn.wait_for("got", 20)
    took_ms = sorted(balanced(a)["duration_ms"] for _ in range(20))
    assert took_ms[len(took_ms) // 2] < 1000, took_ms
    assert inn.wait_for("got", len(inn.values("got")) + 20), "traffic goes on after the thaw"


def test_audit_taken_on_either_node_says_the_same(cluster):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    inn = cluster.worker(b, "consume", "in", **JOB)
    inn.wait_for("ready")
    cluster.worker(a, "produce", "out", count=50, **JOB).finish()
    wait_for("the end", lambda: balanced(a)["channels"][0]["delivered"] == 50)
    assert balanced(a)["channels"] == balanced(b)["channels"]


def test_lost_record_is_found(cluster, monkeypatch):
    a, b = two_nodes(cluster, monkeypatch, "lose_record:5")
    inn = cluster.worker(b, "consume", "in", **JOB)
    inn.wait_for("ready")
    cluster.worker(a, "produce", "out", count=5, **JOB)
    inn.wait_for("acked", 4)
    wait_for("the lost one", lambda: a.audit()["verdict"] == "unbalanced")
    assert "message 5 is outstanding and nowhere to be found" in differences(a)


def test_repeated_record_is_found(cluster, monkeypatch):
    a, b = two_nodes(cluster, monkeypatch, "repeat_record:5")
    with fabric.attach("out", socket=a.socket) as producer:
        producer.declare("far", Part, pattern="queue", delivery="at_least_once")
        out = producer.sender("far", Part)
        inn = cluster.worker(b, "consume", "in", **JOB)
        inn.wait_for("ready")
        parts = [Part("out", n, np.full(4, n, np.float32)) for n in range(6)]
        for part in parts[:2]:
            out.send(part, deadline=10.0)
        inn.wait_for("got", 2)
        # Nobody discards the repeat before it is seen, and nobody has found out yet that the consumer is stopped.
        inn.process.send_signal(signal.SIGSTOP)
        out.send_many(parts[2:], deadline=10.0)
        wait_for("the repeat", lambda: a.audit()["verdict"] == "unbalanced")
        assert "is twice in this lane" in differences(a)
        inn.kill()


@pytest.mark.parametrize(
    ("end", "fault", "found"),
    [
        ("consumer", "lose_drained", "drained,"),
        ("consumer", "repeat_drained", "is held twice"),
        ("producer", "miscount_fold", "ends are counted"),
    ],
)
def test_fault_inside_a_process_makes_fabricctl_audit_fail(cluster, monkeypatch, end, fault, found):
    monkeypatch.setenv("FABRIC_FAULTS", "1")
    node = cluster.node()
    socket = str(node.socket)
    with (
        fabric.attach("out", socket=socket) as producer,
        fabric.attach("in", socket=socket) as consumer,
    ):
        consumer.declare("notes", Note, pattern="queue", delivery="at_least_once")
        inn, out = consumer.receiver("notes", Note), producer.sender("notes", Note)
        out.send(Note(number=1))
        inn.receive(timeout=5.0).ack()
        out.flush(5.0)
        assert audit_command(socket).returncode == 0
        (consumer if end == "consumer" else producer).native.inject(fault, 1)
        out.send(Note(number=2))
        message = inn.receive(timeout=0.2)
        if end == "producer":
            message.ack()
            out.flush(5.0)
            out.stats()
        answer = audit_command(socket)
    assert answer.returncode == 1
    assert found in answer.stdout


def audit_command(socket):
    command = [sys.executable, "-m", "fabric.cli.main", "audit", "--socket", socket]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_corrupted_cursor_is_found(cluster):
    node = cluster.node()
    inn = cluster.worker(node, "consume", "in", **JOB)
    inn.wait_for("ready")
    producer = cluster.worker(node, "produce", "out", interval_s=0.01, **JOB)
    inn.wait_for("acked", 5)
    for worker in (inn, producer):
        worker.process.send_signal(signal.SIGSTOP)
    balanced(node)
    for path in lanes_of(node):
        fd = os.open(path, os.O_RDWR)
        os.pwrite(fd, struct.pack("<Q", 1 << 40), 4096 + 64)  # direction 0, records.tail
        os.pwrite(fd, struct.pack("<Q", 1 << 40), 4096 + 4 * 64 + 64)  # direction 1
        os.close(fd)
    assert "unreadable" in differences(node)


def lanes_of(node):
    """Descriptors of the daemon that are lanes, by their magic."""
    for path in Path(f"/proc/{psutil.Process(node.daemon_pid).pid}/fd").iterdir():
        if "memfd:" in os.readlink(path):
            with path.open("rb", buffering=0) as opened:
                if os.pread(opened.fileno(), 8, 0) == b"FABLANE1":
                    yield path
