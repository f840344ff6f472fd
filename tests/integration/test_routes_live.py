"""Policies on a real node: broken ones hurt nobody, shares are kept, a replica dies, a package brings one.

The node, its plugin and the installed package are shared by all tests of this file; each has channels of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import fabric
from tests.integration.kill_nodes import Cluster, wait_for

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "examples" / "packages" / "session_routes"
HOSTILE = """
import threading
import fabric

@fabric.route("raises", fallback="round_robin")
def raises(header, targets):
    raise RuntimeError("not today")

@fabric.route("nonsense", fallback="round_robin", per="batch")
def nonsense(header, targets):
    return "the second one"

@fabric.route("hangs", fallback="round_robin")
def hangs(header, targets):
    threading.Event().wait()
"""


@fabric.message("routed.job", version=1)
class Job:
    n: int
    session: str = ""


@pytest.fixture(scope="module")
def node() -> Iterator[Any]:
    with (
        tempfile.TemporaryDirectory(prefix="fr", dir="/tmp") as short,
        pytest.MonkeyPatch.context() as patch,
    ):
        folder, source = Path(short) / "site", Path(short) / "source"
        shutil.copytree(PACKAGE, source)
        install = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
        ]
        subprocess.run([*install, "--target", str(folder), str(source)], check=True, timeout=60)
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        cluster = Cluster(Path(short))
        try:
            yield cluster.node()
        finally:
            cluster.close()


def ends(stack: ExitStack, node: Any, channel: str, names: list[str], **declared: Any) -> Any:
    """Return a sender of a queue and its receivers, each on a port of the name given; all flows are open."""
    port = stack.enter_context(fabric.attach("asks", socket=node.socket))
    port.declare(channel, Job, pattern="queue", **declared)
    receivers = [
        stack.enter_context(fabric.attach(name, socket=node.socket)).receiver(channel, Job)
        for name in names
    ]
    out = port.sender(channel, Job)
    wait_for("every flow", lambda: len(out.stats()["flows"]) == len(names), 20)
    return out, receivers


def taken(receivers: list[Any], count: int) -> list[list[int]]:
    """Receive `count` messages in all; returns the numbers by receiver."""
    got: list[list[int]] = [[] for _ in receivers]

    def look() -> bool:
        for mine, receiver in zip(got, receivers, strict=True):
            for message in receiver.receive_many(64, 0):
                mine.append(message.n)
                message.ack()
        return sum(map(len, got)) == count

    wait_for(f"{count} messages", look, 20)
    return got


def cost(node: Any, policy: str) -> dict[str, Any]:
    routes = [r for row in node.call("ls", "plugin") for r in row["routes"]]
    return next((r for r in routes if r["name"] == policy), {})


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("raises", "not today"),
        ("nonsense", "the second one"),
        ("hangs", "hostile_routes|no answer|busy|within"),
    ],
)
def test_a_policy_that_breaks_its_contract_is_recorded_and_its_fallback_decides(node, policy, said):
    if not any(row["name"] == "hostile_routes" for row in node.call("ls", "plugin")):
        node.call("plugin_load", "hostile_routes.py", HOSTILE)
    with ExitStack() as stack:
        out, receivers = ends(stack, node, f"live.{policy}", ["one", "two"], route=policy)
        for n in range(20):
            out.send(Job(n), key=f"k{n}", deadline=20)
        got = taken(receivers, 20)
        assert all(len(mine) == 10 for mine in got), "the fallback is round_robin"
        assert sorted(n for mine in got for n in mine) == list(range(20))
    found = cost(node, policy)
    assert found["fallbacks"] >= 1 and found["decisions"] == 0
    assert any(word in found["last_error"] for word in said.split("|")), found["last_error"]
    events = [e for e in node.call("events")["events"] if e["kind"] == "route policy failed"]
    assert any(e["channel"] == f"live.{policy}" and e["reason"] for e in events)


def test_shares_are_kept_by_the_names_of_modules(node):
    route = {"name": "weighted", "weights": {"stable": 9, "canary": 1}}
    with ExitStack() as stack:
        names = ["stable", "stable-1", "canary"]
        out, receivers = ends(stack, node, "live.shares", names, route=route)
        for n in range(100):
            out.send(Job(n), deadline=20)
        assert [len(mine) for mine in taken(receivers, 100)] == [45, 45, 10]


def test_a_policy_of_an_installed_package_decides_once_for_a_session(node):
    with ExitStack() as stack:
        route = {"name": "sessions", "most": 100}
        out, receivers = ends(stack, node, "live.sessions", ["a", "b"], route=route)
        wait_for(
            "the package",
            lambda: any(r["name"] == "sessions" for r in node.call("ls", "plugin")),
            20,
        )
        wait_for("its host", lambda: _decides(out, receivers, node), 20)
        asked = cost(node, "sessions")["decisions"]
        for n in range(40):
            out.send(Job(n, f"s{n % 4}"), deadline=20)
        got = taken(receivers, 40)
        homes = [{n % 4 for n in mine} for mine in got]
        assert not homes[0] & homes[1] and len(homes[0]) == len(homes[1]) == 2
        assert cost(node, "sessions")["decisions"] - asked <= 4, "the rest were remembered"


def _decides(out: Any, receivers: list[Any], node: Any) -> bool:
    """Send one to see whether the policy is up; it is taken away again."""
    out.send(Job(-1, "probe"), deadline=20)
    taken(receivers, 1)
    return bool(cost(node, "sessions").get("decisions"))


def test_what_a_dead_replica_had_goes_to_another_and_keys_of_others_stay(node):
    with ExitStack() as stack:
        out, receivers = ends(
            stack, node, "live.death", ["one", "two"], route="hash_key", delivery="at_least_once"
        )
        code = (
            "import sys, fabric\n"
            "with fabric.attach('three', sys.argv[1]) as port:\n"
            "    inn = port.receiver('live.death')\n"
            "    print('ready', flush=True)\n"
            "    sys.stdin.read()\n"
        )
        dying = subprocess.Popen(
            [sys.executable, "-c", code, node.socket], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        stack.callback(dying.wait)
        stack.callback(dying.kill)
        assert dying.stdout is not None and dying.stdin is not None
        assert dying.stdout.readline() == b"ready\n"
        wait_for("its flow", lambda: len(out.stats()["flows"]) == 3, 20)
        for n in range(60):
            out.send(Job(n), key=f"k{n}", deadline=20)
        flows = Counter({f["target_endpoint"]: f["outstanding"] for f in out.stats()["flows"]})
        assert min(flows.values()) > 0, "each had some"
        dying.kill()
        got = taken(receivers, 60)
        assert sorted(n for mine in got for n in mine) == list(range(60))
        out.flush(20)
        dying.stdin.close()
        dying.stdout.close()
