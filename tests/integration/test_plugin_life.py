"""A plugin's life under steady load, as its author has it: written, tested, loaded, tried, replaced, removed."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import fabric
from fabric.errors import FabricError
from tests.integration.kill_nodes import balanced, clusters, wait_for

pytestmark = pytest.mark.promise("P7")

cluster = pytest.fixture(clusters)


@fabric.message("mine.line")
class Line:
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


def fabricctl(node, *arguments, folder=None):
    environment = {**os.environ, "FABRIC_SOCKET": node.socket}
    command = [sys.executable, "-m", "fabric.cli.main", *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=90,
        env=environment,
        cwd=folder,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_plugin_lives_under_load_and_nothing_is_lost_repeated_or_reordered(cluster, tmp_path):
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


def test_a_host_in_the_foreground_takes_over_and_gives_back(cluster, tmp_path):
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


def version(node, number):
    wait_for(f"version {number}", lambda: node.call("show", "plugin", "mine")["version"] == number)
