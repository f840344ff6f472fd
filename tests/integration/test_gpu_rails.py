"""Two daemons of one machine with a tcp rail and one over GPU memory, by a fake driver: each opens the other's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.gpu import FakeCuda
from tests.integration.kill_nodes import Cluster, Node, balanced, settled, wait_for

pytestmark = [pytest.mark.promise("P4", "P5", "P9"), pytest.mark.usefixtures("fake_cuda")]
LARGE = {"channel": "far", "pattern": "stream", "floats": 1 << 18}


@pytest.fixture
def cluster(short_dir: Path) -> Iterator[Cluster]:
    made = Cluster(short_dir)
    try:
        yield made
    finally:
        made.close()


def nodes(cluster: Cluster, folder: Path) -> tuple[Node, Node]:
    a = Node(folder, "a", None, ("--listen", "cuda_ipc:127.0.0.1:0"))
    cluster.nodes.append(a)
    a.start()
    b = Node(folder, "b", a.listen, ())
    cluster.nodes.append(b)
    return a, b.start()


def rails(node: Node) -> dict[int, dict]:
    return {row["rail"]: row for row in node.call("path_ls")}


def all_up(*pair: Node) -> None:
    for node in pair:
        wait_for(
            f"both rails of {node.name}",
            lambda node=node: (
                [r["link"] for r in rails(node).values() if r["connections"] == 2]
                == ["tcp", "cuda_ipc"]
            ),
        )


def opened_by(node: Node) -> int:
    """How many memories of other processes a daemon has mapped: memfds of the fake driver that another one made."""
    lines = Path(f"/proc/{node.daemon_pid}/maps").read_text().splitlines()
    seen = [line.partition("/memfd:fake-cuda:")[2] for line in lines if "fake-cuda:" in line]
    return len([each for each in seen if int(each.split(":")[0]) != node.daemon_pid])


def test_messages_go_over_memory_of_gpus_and_a_killed_daemons_is_let_go_of(
    cluster: Cluster, short_dir: Path, fake_cuda: FakeCuda
):
    a, b = nodes(cluster, short_dir)
    all_up(a, b)
    a.call("path_pin", "b", [1])
    inn = cluster.worker(b, "consume", "in", **LARGE)
    inn.wait_for("ready")
    out = cluster.worker(a, "produce", "out", count=60, **LARGE)
    inn.wait_for("got", 20)
    assert opened_by(a) == opened_by(b) == 2, "a memory a connection"
    assert rails(a)[1]["delivered"] > 0
    b.kill_daemon()
    inn.wait_for("got", 60)
    out.wait_for("flushed")
    out.finish()
    all_up(a, b)
    deadline = time.monotonic() + 20
    while opened_by(a) != 2:
        assert time.monotonic() < deadline, "memory of the killed daemon is still mapped"
        time.sleep(0.05)
    settled(a, "far")
    balanced(a)
