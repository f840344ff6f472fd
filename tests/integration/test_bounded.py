"""Limits of a node: senders without end, arenas and descriptors used up, a thousand receivers that do not read."""

import json
import os
import resource
import subprocess
import sys

import pytest

import fabric
from fabric import errors, limits
from tests.integration.kill_nodes import balanced, clusters, returned, settled, wait_for
from tests.integration.kill_roles import Part

cluster = pytest.fixture(clusters)

MIB = 1 << 20


@pytest.mark.promise("P8")
def test_process_opens_and_closes_senders_without_end_and_every_message_is_counted(cluster):
    node = cluster.node()
    inn = cluster.worker(node, "consume", "in", channel="c", pattern="queue")
    inn.wait_for("ready")
    count = limits.ENDPOINTS_PER_PORT_MAX + 200  # more than a port has ledgers
    with fabric.attach("opener", node.socket) as port:
        for number in range(count):
            with port.sender("c", Part) as out:
                out.send(Part("s", number, numbers(4, number)), key=b"k", deadline=10.0)
                out.flush(timeout=10.0)
        wait_for("few flows", lambda: port.stats()["flows_out"] < 8, 10.0)
        row = settled(node, "c")
        assert row["delivered"] == row["accepted"] == count
    balanced(node)


def numbers(count, value):
    import numpy as np

    return np.full(count, value, np.float32)


@pytest.mark.promise("P8")
def test_arena_of_a_user_is_bounded_and_bulk_leaves_a_reserve_to_tokens(cluster):
    node = cluster.node("a", None, "--arena-bytes", "64MiB")
    with (
        fabric.attach("greedy", node.socket) as port,
        fabric.attach("reader", node.socket) as other,
    ):
        port.declare("bulk", Part, klass="bulk")
        port.declare("token", Part, klass="token")
        receivers = [other.receiver(c, Part, bytes=256 * MIB) for c in ("bulk", "token")]
        bulk, token = port.sender("bulk", Part), port.sender("token", Part)
        big = numbers(2 * MIB, 1)  # 8 MiB each
        sent = 0
        with pytest.raises((errors.CapacityError, errors.DeadlineExceeded)) as full:
            for _ in range(40):
                bulk.send(Part("b", sent, big), deadline=1.0 if sent == 7 else 30.0)
                sent += 1
        assert "arena" in str(full.value) and "greedy" in str(full.value)
        assert sent == 7, "56 of 64 MiB"
        token.send(Part("t", 0, numbers(MIB // 2, 2)), deadline=5.0)  # 2 MiB of the reserve
        assert receivers[1].receive(timeout=5.0).number == 0
        for number in range(sent):
            with receivers[0].receive(timeout=5.0) as part:
                assert part.number == number
        bulk.send(Part("b", sent, big), deadline=5.0)  # released slots are used again


CROWD = """
import json, sys, time
import fabric
from tests.integration.kill_roles import Part

name, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ports, opened, refused = [], 0, {}
for index in range(count):
    if index % 50 == 0:
        ports.append(fabric.attach(f"{name}-{index}"))
    try:
        ports[-1].receiver(f"crowd-{first + index}", Part, messages=16)
        opened += 1
    except fabric.errors.FabricError as error:
        refused[error.code] = refused.get(error.code, 0) + 1
print(json.dumps({"opened": opened, "refused": refused}), flush=True)
sys.stdin.readline()
"""


@pytest.mark.promise("P4")
@pytest.mark.promise("P8")
@pytest.mark.slow
@pytest.mark.deadline(120)
def test_thousand_receivers_that_do_not_read_disturb_nobody_and_leave_nothing(cluster):
    node = cluster.node()
    calm_in = cluster.worker(node, "consume", "calm-in", channel="calm")
    calm_in.wait_for("ready")
    before = node.footprint()
    kind = "{type: kill.part, pattern: queue, credit: {messages: 16}}"
    channels = "".join(f"  crowd-{n}: {kind}\n" for n in range(1000))
    node.call("apply", "version: 1\nchannels:\n" + channels)
    environment = {**os.environ, "FABRIC_SOCKET": node.socket, "PYTHONPATH": os.getcwd()}
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", CROWD, f"crowd{n}", str(n * 250), "250"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        )
        for n in range(4)
    ]  # fmt: skip
    try:
        answers = [json.loads(process.stdout.readline()) for process in crowd]
        assert sum(a["opened"] for a in answers) == 1000, answers
        flood(node)
        calm = cluster.worker(node, "produce", "calm-out", channel="calm", count=300)
        calm.finish()
        calm_in.wait_for("acked", 300)
    finally:
        for process in crowd:
            process.stdin.close()
            process.wait(10)
            process.stdout.close()
    balanced(node)
    returned(node, before, 30.0)


def flood(node):
    """Fill 60 of the channels until their receivers' room is used up: each refusal is typed."""
    with fabric.attach("flooder", node.socket) as port:
        for number in range(0, 1000, 17):
            out = port.sender(f"crowd-{number}", Part)
            with pytest.raises(errors.DeadlineExceeded, match="credit"):
                for count in range(40):
                    out.send(Part("f", count, numbers(4, 0)), deadline=5.0 if count == 0 else 0.05)


@pytest.mark.promise("P8")
def test_daemon_short_of_descriptors_refuses_what_is_new_and_serves_on(cluster):
    node = cluster.node()
    inn = cluster.worker(node, "consume", "in", channel="c")
    inn.wait_for("ready")
    producer = cluster.worker(node, "produce", "out", channel="c", count=1000, interval_s=0.005)
    inn.wait_for("got", 5)
    before = node.footprint()
    limit = before.daemon_fds + limits.DESCRIPTORS_RESERVED + 20
    resource.prlimit(node.daemon_pid, resource.RLIMIT_NOFILE, (limit, limit))
    ports = []
    with pytest.raises(errors.CapacityError, match="RLIMIT_NOFILE"):
        while len(ports) < 100:
            ports.append(fabric.attach(f"p{len(ports)}", node.socket))
    assert 2 <= len(ports) < 20
    inn.wait_for("got", len(inn.values("got")) + 100)
    assert node.call("status")["state"] == "serving"
    for port in ports:
        port.close()
    wait_for("room again", lambda: can_attach(node), 10.0)
    producer.finish()
    assert settled(node, "c")["delivered"] == 1000


def can_attach(node):
    try:
        with fabric.attach("late", node.socket):
            return True
    except errors.CapacityError:
        return False
