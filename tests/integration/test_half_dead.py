"""A node whose control connection fails again and again while its data connections live, past the end of its lease."""

import contextlib
import socket
import time

import pytest

from tests.integration.kill_nodes import clusters, settled, wait_for
from tests.integration.test_link_cut import Borrowed, tcp_sockets, watched_by_epoll

cluster = pytest.fixture(clusters)
STORM_S = 5.0


def cut_control(pid: int) -> int:
    """Shut down the TCP connections that the daemon's own loop watches; the engine's live on. Returns how many."""
    sockets = dict(tcp_sockets(pid))
    listening = {fd for fd, is_listening in sockets.items() if is_listening}
    loops = [watched for watched in watched_by_epoll(pid) if watched & listening]
    chosen = (set(sockets) - listening) & set().union(*loops)
    with contextlib.closing(Borrowed(pid)) as borrowed:
        for fd in chosen:
            with contextlib.suppress(OSError), borrowed.socket(fd) as shared:
                shared.shutdown(socket.SHUT_RDWR)
    return len(chosen)


@pytest.mark.promise("P1")
@pytest.mark.promise("P3")
@pytest.mark.slow
def test_node_with_data_but_hardly_any_control_loses_nothing_and_comes_back(cluster):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    job = {"channel": "far", "pattern": "queue"}
    workers = [cluster.worker(node, "consume", f"in-{node.name}", **job) for node in (a, b)]
    for worker in workers:
        worker.wait_for("ready")
    producer = cluster.worker(a, "produce", "out", count=800, interval_s=0.008, **job)
    workers[1].wait_for("got", 5)
    cuts, until = 0, time.monotonic() + STORM_S
    while time.monotonic() < until:
        cuts += cut_control(b.daemon_pid)
    assert cuts > 5
    wait_for("the node back", lambda: a.call("ls", "node")[1]["state"] == "serving", 20.0)
    producer.finish(40.0)
    row = settled(a, "far")
    assert row["delivered"] == row["accepted"] == 800
    got = [r for worker in workers for r in worker.reports("got")]
    assert {r["got"] for r in got} == set(range(800))
    fresh = [r["got"] for r in got if not r["redelivered"]]
    assert len(fresh) == len(set(fresh)), "a repeat that is not flagged"
    before = len(workers[1].values("got"))
    more = cluster.worker(a, "produce", "more", count=100, **job)
    more.finish()
    wait_for("work for it again", lambda: len(workers[1].values("got")) > before)
