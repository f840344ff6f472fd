"""A plugin's life under steady load, as its author has it: written, tested, loaded, tried, replaced, removed."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest

import fabric
from fabric.cli import main
from fabric.errors import FabricError
from tests.integration.kill_nodes import balanced, clusters, wait_for

pytestmark = pytest.mark.promise("P7")

cluster = pytest.fixture(clusters)
EXAMPLE = Path(__file__).parents[2] / "examples/packages/acme_lines"


@fabric.message("mine.line")
class Line:
    text: str
    data: fabric.Tensor["n", "f32"]


@fabric.message("acme.line")
class AcmeLine:
    text: str
    data: fabric.Tensor["n", "f32"]


class Load:
    """One message after another on a channel, until told to stop; what arrives is kept in order."""

    def __init__(self, node, channel):
        self._ports = [fabric.attach(name, socket=node.socket) for name in ("life-out", "life-in")]
        out, inn = self._ports
        out.declare(channel, Line, pattern="stream", delivery="at_least_once")
        self._receiver, self._sender = inn.receiver(channel, Line), out.sender(channel, Line)
        self._is_stopped = threading.Event()
        self.sent, self.got = 0, []
        self.threads = [threading.Thread(target=body) for body in (self._send, self._receive)]
        for thread in self.threads:
            thread.start()

    def _send(self):
        while not self._is_stopped.wait(0.002):
            line = Line(f"a{self.sent}", np.full(4, self.sent, np.float32))
            self._sender.send(line, key="k", deadline=30)
            self.sent += 1

    def _receive(self):
        while not self._is_stopped.is_set() or len(self.got) < self.sent:
            message = self._receiver.receive(timeout=0.5)
            if message is not None:
                with message:
                    self.got.append((message.text, message.header.redelivered))
                    message.ack()

    def more(self, what, count=20):
        """Wait until some more have arrived, and return them."""
        start = len(self.got)
        wait_for(what, lambda: len(self.got) >= start + count, 30.0)
        return [text for text, _ in self.got[start:]]

    def until(self, prefix):
        wait_for(
            f"messages that begin with {prefix}",
            lambda: self.got and self.got[-1][0].startswith(prefix),
            30.0,
        )

    def stop(self):
        self._is_stopped.set()
        for thread in self.threads:
            thread.join(40)
        assert not any(thread.is_alive() for thread in self.threads), "the load does not end"
        for port in self._ports:
            port.close()

    def numbers(self):
        return [int(text.lstrip("aAB")) for text, _ in self.got]


@pytest.fixture
def fabricctl(monkeypatch, capfd):
    """Run fabricctl in this process; return its exit status and what it printed."""

    def run(node, *arguments):
        monkeypatch.setenv("FABRIC_SOCKET", node.socket)
        monkeypatch.setattr(sys, "argv", ["fabricctl", *map(str, arguments)])
        capfd.readouterr()
        status = main.run()
        return status, "".join(capfd.readouterr())

    return run


def install(package, folder):
    """Put a package where an installer would, with the entry points of its pyproject.toml."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    shutil.copytree(package / package.name, folder / package.name)
    about = folder / f"{package.name}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (about / "entry_points.txt").write_text("\n".join(lines))


def test_a_plugin_lives_under_load_and_nothing_is_lost_repeated_or_reordered(
    cluster, tmp_path, fabricctl
):
    node = cluster.node()
    assert fabricctl(node, "plugin", "new", "transform", "mine", "--in", tmp_path)[0] == 0
    file = tmp_path / "mine.py"
    status, said = fabricctl(node, "plugin", "test", file)
    assert status == 0, said
    load = Load(node, "live")
    try:
        load.more("the first messages")
        assert fabricctl(node, "plugin", "load", file, "-c", "live")[0] == 0
        load.until("A")
        version(node, 1)

        same = tmp_path / "same.py"
        same.write_text(file.read_text() + "\n# the same, written otherwise\n")
        status, said = fabricctl(
            node, "plugin", "canary", "mine", same, "--messages", 30, "--promote"
        )
        assert status == 0 and "passed" in said, said
        version(node, 2)

        other = tmp_path / "other.py"
        other.write_text(file.read_text().replace("m.text.upper()", '"B" + m.text[1:]'))
        status, said = fabricctl(node, "plugin", "canary", "mine", other, "--messages", 30)
        assert status == 1 and "the running version makes" in said, said
        assert set(text[0] for text in load.more("after a canary")) == {"A"}, (
            "its outputs go nowhere"
        )
        crash = tmp_path / "crash.py"
        crash.write_text(file.read_text().replace("return [", "import os; os._exit(9); return ["))
        status, said = fabricctl(node, "plugin", "canary", "mine", crash, "--messages", 30)
        assert status == 1 and "ended its process: exit status 9" in said, said

        assert fabricctl(node, "plugin", "reload", "mine", other)[0] == 0
        load.until("B")
        assert fabricctl(node, "plugin", "rollback", "mine")[0] == 0
        load.until("A")
        row = node.call("show", "plugin", "mine")
        assert [each["how"] for each in row["versions"]] == [
            "load",
            "promote",
            "reload",
            "rollback",
        ]
        with pytest.raises(FabricError, match="no version 99"):
            node.call("plugin_change", "rollback", "mine", version=99)

        assert row["restarts"] == 0
        assert fabricctl(node, "plugin", "unload", "mine")[0] == 0
        load.until("a")
        wait_for("mine to be gone", lambda: node.call("ls", "plugin") == [], 30.0)
    finally:
        load.stop()
    assert not any(redelivered for _, redelivered in load.got)
    assert load.numbers() == list(range(load.sent)), "each once, in order, over every change"
    balanced(node)


def test_a_host_in_the_foreground_takes_over_and_gives_back(cluster, tmp_path, fabricctl):
    node = cluster.node()
    assert fabricctl(node, "plugin", "new", "transform", "mine", "--in", tmp_path)[0] == 0
    load = Load(node, "live")
    try:
        assert fabricctl(node, "plugin", "load", tmp_path / "mine.py", "-c", "live")[0] == 0
        load.until("A")
        pid = node.call("show", "plugin", "mine")["pid"]
        debug = subprocess.Popen(
            [sys.executable, "-m", "fabric.cli.main", "plugin", "debug", "mine"],
            env={**os.environ, "FABRIC_SOCKET": node.socket}, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait_for(
            "the supervised host to leave",
            lambda: node.call("show", "plugin", "mine")["state"] == "debugged",
        )
        load.more("messages through the host in the foreground")
        os.killpg(debug.pid, signal.SIGKILL)
        debug.wait()
        wait_for(
            "a supervised host",
            lambda: node.call("show", "plugin", "mine")["pid"] not in (0, pid),
            30.0,
        )
        load.more("messages through the supervised host")
    finally:
        load.stop()
    assert sorted(set(load.numbers())) == list(range(load.sent))
    balanced(node)


def test_an_installed_package_is_used_through_its_entry_points_alone(
    cluster, tmp_path, monkeypatch, fabricctl
):
    install(EXAMPLE, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    node = cluster.node()
    status, said = fabricctl(node, "plugin", "test", "acme_packed")
    assert status == 0 and "held" in said, said
    with (
        fabric.attach("out", socket=node.socket) as out,
        fabric.attach("in", socket=node.socket) as inn,
    ):
        out.declare("acme", AcmeLine, pattern="stream", delivery="at_least_once")
        receiver, sender = inn.receiver("acme", AcmeLine), out.sender("acme", AcmeLine)
        status, said = fabricctl(node, "plugin", "load", "acme_shout", "-c", "acme")
        assert status == 0, said

        def arrived():
            sender.send(AcmeLine("quiet", np.ones(3, np.float32)), deadline=30)
            with receiver.receive(timeout=30) as message:
                message.ack()
                return message.text

        wait_for("a message through the installed transform", lambda: arrived() == "QUIET")
        assert fabricctl(node, "plugin", "reload", "acme_shout")[0] == 0
    balanced(node)


def version(node, number):
    wait_for(f"version {number}", lambda: node.call("show", "plugin", "mine")["version"] == number)
