"""Connections between living nodes are cut: both sides dial again, and every message arrives once."""

import contextlib
import ctypes
import errno
import os
import socket
from pathlib import Path

import pytest

from tests.integration.kill_nodes import balanced, clusters, settled, wait_for

pytestmark = pytest.mark.promise("P2", "P6")

cluster = pytest.fixture(clusters)
JOB = {"channel": "far", "pattern": "stream"}
PIDFD_GETFD = 438


def cut_connections(pid: int, data_only: bool) -> int:
    """Shut down TCP connections of a daemon, through duplicates of its descriptors; returns how many.

    The engine's are those that no event loop of the daemon's watches: the one that watches a listening socket.
    """
    sockets = dict(tcp_sockets(pid))
    listening = {fd for fd, is_listening in sockets.items() if is_listening}
    loops = [watched for watched in watched_by_epoll(pid) if watched & listening]
    chosen = set(sockets) - listening - (set().union(*loops) if data_only else set())
    cut = 0
    with contextlib.closing(Borrowed(pid)) as borrowed:
        for fd in chosen:
            with contextlib.suppress(OSError), borrowed.socket(fd) as shared:  # it may have ended
                shared.shutdown(socket.SHUT_RDWR)
                cut += 1
    return cut


class Borrowed:
    """Duplicates of another process's descriptors."""

    def __init__(self, pid: int) -> None:
        self.pidfd = os.pidfd_open(pid)
        self.libc = ctypes.CDLL(None, use_errno=True)

    def socket(self, number: int) -> socket.socket:
        fd = self.libc.syscall(PIDFD_GETFD, self.pidfd, number, 0)
        if fd < 0:
            code = ctypes.get_errno()
            if code in (errno.EPERM, errno.ENOSYS):
                pytest.skip("this machine does not let tests share descriptors (pidfd_getfd)")
            raise OSError(code, os.strerror(code))  # closed since it was listed
        return socket.socket(fileno=fd)

    def close(self) -> None:
        os.close(self.pidfd)


def tcp_sockets(pid: int):
    """Yield (descriptor, is it listening) of the TCP sockets of a process."""
    with contextlib.closing(Borrowed(pid)) as borrowed:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(entry).startswith("socket:"):
                    with borrowed.socket(int(entry.name)) as shared:
                        if shared.family == socket.AF_INET:
                            option = shared.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                            yield int(entry.name), bool(option)


def watched_by_epoll(pid: int) -> list[set[int]]:
    """Return what each epoll descriptor of a process watches."""
    found = []
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            lines = [line.split() for line in entry.read_text().splitlines()]
            found.append({int(words[1]) for words in lines if words and words[0] == "tfd:"})
    return found


@pytest.mark.parametrize("data_only", [True, False], ids=["data", "all"])
@pytest.mark.parametrize("side", ["a", "b"])
def test_every_message_arrives_once_and_in_order_although_connections_are_cut(
    cluster, side, data_only
):
    nodes = {"a": cluster.node("a")}
    nodes["b"] = cluster.node("b", join=nodes["a"])
    inn = cluster.worker(nodes["b"], "consume", "in", **JOB)
    inn.wait_for("ready")
    out = cluster.worker(
        nodes["a"], "produce", "out", count=600, interval_s=0.002, floats=4096, **JOB
    )
    for seen in (50, 200, 350):
        inn.wait_for("got", seen)
        # Those of the last cut may not be dialled again yet, when what they had carried was still to be handed over.
        wait_for("a connection to cut", lambda: cut_connections(nodes[side].daemon_pid, data_only))
    out.finish()
    assert settled(nodes["a"], "far")["delivered"] == 600
    assert [n for n in inn.values("got")] == list(range(600))
    balanced(nodes["a"])
