"""What a node does when the registry's disk takes nothing, its file is damaged, or its node is gone for a while."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

import fabric
from fabric import errors
from fabric.controlplane.keeper import REFUSED
from fabric.controlplane.main import EXIT_REFUSED
from tests.integration.generation_files import apply, channel, outcomes, row, spec, write_module
from tests.integration.kill_nodes import Node, clusters, settled, wait_for
from tests.integration.kill_roles import Part

cluster = pytest.fixture(clusters)
needs_mount = pytest.mark.netns  # a file system of its own takes the same rights


@pytest.fixture
def small_disk(short_dir):
    """A state directory on a file system of 2 MiB."""
    state = short_dir / "a" / "state"
    state.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(state)], check=True)
    yield state
    subprocess.run(["umount", "-l", str(state)], check=True)


@pytest.fixture
def node(small_disk, cluster, monkeypatch):
    """A node whose folder exists already."""
    monkeypatch.setattr(type(small_disk), "mkdir", _mkdir_again(type(small_disk).mkdir))
    return cluster.node()


def _mkdir_again(mkdir):
    def made(path, *arguments, **options):
        with contextlib.suppress(FileExistsError):
            mkdir(path, *arguments, **options)

    return made


def fill(state):
    """Leave no byte free."""
    with (state / "fill").open("wb", buffering=0) as file:
        for size in (1 << 16, 4096, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


@needs_mount
@pytest.mark.promise("P8")
def test_full_disk_refuses_what_is_new_and_serves_what_is_there(node, cluster, small_disk):
    apply(node, spec({"live": channel()}))
    inn = cluster.worker(node, "consume", "in", channel="live", declared=True)
    inn.wait_for("ready")
    out = cluster.worker(
        node, "produce", "out", channel="live", count=200, interval_s=0.01, declared=True
    )
    inn.wait_for("got", 5)
    fill(small_disk)
    with fabric.attach("late", socket=node.socket) as port:
        with pytest.raises(
            errors.StorageError, match=r"registry\.db cannot be written: .* free some space"
        ):
            for number in range(40):  # the file may have a free page or two
                port.declare(f"late{number}", Part, pattern="queue")
        with pytest.raises(errors.StorageError, match="free some space"):
            apply(node, spec({name: channel() for name in ("live", *(f"c{i}" for i in range(40)))}))
        assert outcomes(node) == [(1, "committed")]
        out.finish()
        inn.wait_for("acked", 200)
        (small_disk / "fill").unlink()
        port.declare("later", Part, pattern="queue")
    assert apply(node, spec({"live": channel(), "more": channel()}))["generation"] == 2
    settled(node, "live")


@needs_mount
def test_fabricd_refuses_to_start_on_a_read_only_or_damaged_state(small_disk, short_dir):
    command = [sys.executable, "-m", "fabric.controlplane.main", "--name", "a"]
    command += ["--socket", str(short_dir / "s"), "--state", str(small_disk)]

    def refusal():
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode in (EXIT_REFUSED, REFUSED), done.stderr
        return done.stderr

    (small_disk / "registry.db").write_bytes(b"no registry".ljust(8192, b"."))
    assert "registry.db is damaged" in refusal() and "move it away" in refusal()
    (small_disk / "registry.db").unlink()
    fill(small_disk)
    assert "cannot be written" in (said := refusal()) and "free some space" in said
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "is on a read-only file system; choose another with --state" in refusal()


@pytest.mark.promise("P3")
@pytest.mark.deadline(120)
def test_registry_node_lost_and_back_agrees_with_everybody(cluster, short_dir):
    """Nodes serve on what they have; what needs the registry fails typed, in time; then plans and endpoints agree."""
    first = cluster.node("a")
    address = first.listen
    second = cluster.node("b", first)
    worker = write_module(short_dir, "worker")
    apply(first, spec(
        {"live": channel()}, (), {"w": f'{{class: "{worker}:Worker", node: a}}'}
    ))  # fmt: skip
    inn = cluster.worker(second, "consume", "in", channel="other", pattern="queue")
    inn.wait_for("ready")
    out = cluster.worker(
        second, "produce", "out", channel="other", pattern="queue", interval_s=0.02
    )
    inn.wait_for("got", 5)
    modules = [row(first, "module", "w")["pid"]]
    os.kill(first.keeper.pid, signal.SIGKILL)
    first.wait_ended()
    before = len(inn.reports("got"))
    started = time.monotonic()
    with fabric.attach("probe", socket=second.socket) as port:
        with pytest.raises(errors.BrokenError):
            port.declare("late", Part, pattern="queue")
        with pytest.raises(errors.BrokenError):
            second.call("apply", spec({"live": channel(), "late": channel()}))
    assert time.monotonic() - started < 5.0
    inn.wait_for("got", before + 20)
    wait_for("the module gone with its node", lambda: not _is_there(modules[0]))
    again = _restarted(first, address)
    wait_for("b back", lambda: _alive(again) == {"a", "b"}, 30.0)
    assert outcomes(again) == [(1, "committed")] == outcomes(second)
    wait_for("the plan's module", lambda: (row(again, "module", "w") or {}).get("state") == "ready")
    wait_for("b's ends", lambda: (row(again, "channel", "other") or {}).get("receivers") == 1)
    assert {c["name"] for c in second.call("ls", "channel")} == {"live", "other"}
    more = spec(
        {"live": channel(), "late": channel()}, (), {"w": f'{{class: "{worker}:Worker", node: a}}'}
    )
    assert apply(second, more)["generation"] == 2
    assert outcomes(second) == [(2, "committed"), (1, "committed")]
    got = len(inn.reports("got"))
    inn.wait_for("got", got + 20)
    assert not out.reports("error")


def _is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _alive(node):
    with contextlib.suppress(errors.FabricError):
        return {n["name"] for n in node.call("ls", "node") if n["state"] == "serving"}
    return set()


def _restarted(node: Node, address: str) -> Node:
    """Start a killed node again with its state directory, where the others look for it."""
    command = [sys.executable, "-m", "fabric.controlplane.main", "--name", node.name]
    command += ["--socket", node.socket, "--state", str(node.folder / "state")]
    command += ["--listen", address, "--secret-file", str(node.folder.parent / "secret")]
    with (node.folder / "log").open("ab") as log:
        node._process = subprocess.Popen(command, stdout=log, stderr=log)
    wait_for("the node serving again", node._is_serving, 20.0)
    return node
