"""A process that leaves untidily, forks or becomes another program: it ends at once, and nothing of it stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.kill_nodes import Worker, balanced, clusters, returned, settled, wait_for

pytestmark = pytest.mark.promise("P1", "P3", "P9")
cluster = pytest.fixture(clusters)
ROLES = Path(__file__).with_name("exit_roles.py")
QUEUE = {"channel": "work", "pattern": "queue"}
EXIT_S = 3.0  # views, threads and rings hold no exit up
HELD = [0, 1, 2]


def leaver(cluster, node, short_dir, how):
    """Start one that will leave as `how` says; it holds the first three messages when this returns."""
    output = short_dir / "leaver.out"
    environment = {
        **os.environ, "FABRIC_SOCKET": node.socket,
        "PYTHONPATH": os.pathsep.join([str(ROLES.parent.parent.parent), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    with output.open("wb") as out, output.with_suffix(".err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, str(ROLES), how], stdin=subprocess.PIPE, stdout=out, stderr=err, env=environment
        )  # fmt: skip
    worker = Worker(process, output, "leaver")
    cluster.workers.append(worker)
    worker.wait_for("ready")
    return worker


def holding(cluster, node, short_dir, how):
    """A producer's ten messages, three of which the leaver holds; then it is told to go."""
    worker = leaver(cluster, node, short_dir, how)
    producer = cluster.worker(node, "produce", "out", count=10, floats=4096, **QUEUE)
    assert worker.wait_for("holding")[0]["holding"] == HELD
    producer.wait_for("sent", 10)
    worker.process.stdin.write(b"go\n")
    worker.process.stdin.close()
    return worker, producer


def redone(cluster, node, producer):
    """All ten are done by another consumer, those that were held again, and flagged."""
    survivor = cluster.worker(node, "consume", "survivor", **QUEUE)
    producer.finish()
    assert sorted(survivor.values("acked")) == list(range(10))
    assert {r["got"] for r in survivor.reports("got") if r["redelivered"]} >= set(HELD)
    survivor.kill()
    assert settled(node, "work")["delivered"] == 10


@pytest.mark.parametrize(
    ("how", "code"), [("return_from_main", 0), ("in_a_cycle", 0), ("by_exception", 1), ("at_once", 0)]
)  # fmt: skip
def test_exit_with_live_views_is_prompt_and_leaves_nothing(cluster, short_dir, how, code):
    node = cluster.node()
    before = node.footprint()
    worker, producer = holding(cluster, node, short_dir, how)
    started = time.monotonic()
    assert worker.process.wait(EXIT_S) == code, worker.trouble()
    assert time.monotonic() - started < EXIT_S
    redone(cluster, node, producer)
    returned(node, before)


def test_process_that_becomes_another_program_has_lost_its_port(cluster, short_dir):
    node = cluster.node()
    before = node.footprint()
    worker, producer = holding(cluster, node, short_dir, "by_exec")
    wait_for("the exec", lambda: b"time.sleep(60)" in cmdline(worker.process.pid))
    redone(cluster, node, producer)
    returned(node, before)
    assert worker.process.poll() is None, "the program itself lives on"
    worker.kill()


def cmdline(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_forked_child_keeps_nothing_of_its_dead_parent_alive(cluster, short_dir):
    node = cluster.node()
    before = node.footprint()
    worker, producer = holding(cluster, node, short_dir, "after_fork")
    child = worker.wait_for("child")[0]["child"]
    try:
        assert worker.process.wait(EXIT_S) == 0, worker.trouble()
        redone(cluster, node, producer)
        returned(node, before)
        assert psutil.pid_exists(child), "the child lives on, harmless"
        balanced(node)
    finally:
        os.kill(child, signal.SIGKILL)


def test_program_started_by_a_module_inherits_no_descriptor_of_the_fabric(cluster, short_dir):
    node = cluster.node()
    worker, producer = holding(cluster, node, short_dir, "list_descriptors")
    names = worker.wait_for("inherited")[0]["inherited"]
    assert names and not [name for name in names if "memfd" in name or "eventfd" in name]
    worker.process.wait(EXIT_S)
    producer.kill()
