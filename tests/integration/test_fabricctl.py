"""fabricctl and a real node: up, apply, send and echo, audit, down; nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fabric._native")

STEP_S = 40
SPEC = """\
version: 1
channels:
  lines: {type: demo.line, pattern: queue, delivery: at_least_once}
"""
CONSUMER = """\
import fabric

@fabric.message("demo.line")
class Line:
    number: int
    pixels: fabric.Tensor["height width", "u8"]

with fabric.attach("consumer") as port:
    receiver = port.receiver("lines", Line)
    print("open", flush=True)
    for _ in range(2):
        message = receiver.receive(timeout=30)
        print(message.number, message.pixels.sum(), flush=True)
        message.ack()
        message.release()
"""


class Node:
    """A node of its own folder, spoken to only through fabricctl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "FABRIC_SOCKET": str(folder / "a.sock")}

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fabric.cli.main", *arguments]
        return subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=STEP_S,
            check=False,
        )

    def json(self, *arguments: str):
        result = self.ctl(*arguments, "-o", "json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)


@pytest.fixture
def node(short_dir):
    made = Node(short_dir)
    started = made.ctl("up", "--state", str(short_dir / "state"))
    assert started.returncode == 0, started.stderr
    yield made
    made.ctl("down")


def test_a_node_lives_and_ends_by_fabricctl_alone(node):
    status = node.json("status")
    assert (status["node"], status["state"]) == ("a", "serving")
    pids = [status["pid"], status["keeper_pid"]]
    assert node.ctl("up", "--state", str(node.folder / "state")).stdout.startswith(
        "node a is up already"
    )
    ended = node.ctl("down")
    assert ended.returncode == 0, ended.stderr
    assert not any(Path(f"/proc/{pid}").exists() and not is_zombie(pid) for pid in pids)
    assert not list(node.folder.glob("*.sock*"))
    assert "start one: fabricctl up" in node.ctl("status").stderr


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_messages_sent_by_fabricctl_arrive_and_the_audit_balances(node):
    file = node.folder / "f.yaml"
    file.write_text(SPEC)
    assert node.ctl("validate", str(file)).returncode == 0
    assert [change["action"] for change in node.json("apply", str(file))["changes"]] == ["added"]
    assert [row["name"] for row in node.json("channel", "ls")] == ["lines"]
    program = node.folder / "consumer.py"
    program.write_text(CONSUMER)
    with subprocess.Popen(
        [sys.executable, str(program)], env=node.environment, stdout=subprocess.PIPE, text=True
    ) as consumer:
        assert consumer.stdout.readline() == "open\n"
        lines = [
            '{"number": 1, "pixels": [[1, 2]]}',
            '{"number": 2, "pixels": {"shape": [3, 4], "fill": 7}}',
        ]
        sent = node.ctl("channel", "send", "lines", *lines)
        assert (sent.returncode, sent.stderr) == (0, "2 sent\n")
        assert consumer.stdout.read().splitlines() == ["1 3", "2 84"]
        consumer.wait(STEP_S)
    audit = node.json("audit")
    assert audit["verdict"] == "balanced"
    assert [(row["name"], row["accepted"], row["delivered"]) for row in audit["channels"]] == [
        ("lines", 2, 2)
    ]


@pytest.mark.parametrize("key", ["transforms: [nope]", "route: nope"])
def test_a_name_that_no_plugin_exports_is_refused_before_anything_changes(node, key):
    file = node.folder / "f.yaml"
    file.write_text(f"version: 1\nchannels:\n  lines: {{type: demo.line, {key}}}\n")
    for verb in ("validate", "apply"):
        refused = node.ctl(verb, str(file))
        assert refused.returncode == 1
        assert "'nope'" in refused.stderr and "fabricctl plugin load" in refused.stderr
    assert node.json("channel", "ls") == []


def test_an_installed_plugin_is_known_by_its_name(node):
    file = node.folder / "f.yaml"
    file.write_text("version: 1\nchannels:\n  lines: {type: demo.line, transforms: [tap]}\n")
    assert node.ctl("validate", str(file)).returncode == 0


def test_a_second_node_in_the_same_state_folder_is_refused_with_its_reason(node):
    result = node.ctl(
        "up",
        "--name",
        "b",
        "--socket",
        str(node.folder / "b.sock"),
        "--state",
        str(node.folder / "state"),
    )
    assert result.returncode == 1
    assert "ended while it started" in result.stderr
    assert "is in use by fabricd" in result.stderr
