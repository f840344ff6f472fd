"""The rig of the step sweep: two nodes that live through it, acts that reach the steps, and what must hold after each.

A step is a place that the code names (`fabric/steps.py`). An act is something that happens to the cluster; a recording
run of each act tells which steps it reaches, so a step is armed only in an act that will come by.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fabric import steps
from tests.integration.kill_nodes import Cluster, Node, balanced, wait_for
from tests.integration.step_roles import CHANNELS

ROOT = Path(__file__).parent.parent.parent
ROLES = Path(__file__).with_name("step_roles.py")
PARTS = 40
HEAL_S = 25.0

APPLIED = """\
version: 1
channels:
  sweep.extra: {type: sweep.part, pattern: queue, delivery: at_least_once, credit: {messages: %d}}
"""


def known_steps() -> list[str]:
    """Return the names of all steps in the source, in the order of names."""
    found = set()
    for path in (ROOT / "fabric").rglob("*.py"):
        found |= set(re.findall(r"steps\.at\(\s*\"([\w.]+)\"", path.read_text()))
    for path in (ROOT / "fabric" / "native").rglob("*.cpp"):
        found |= set(re.findall(r"[^_\w]step\(\"([\w.]+)\"\)", path.read_text()))
    return sorted(found)


class Worker:
    """One process of `step_roles.py`."""

    def __init__(self, node: Node, role: str, name: str, folder: Path) -> None:
        self.name, self.role, self.node = name, role, node
        self._output = folder / f"{name}.out"
        command = [sys.executable, str(ROLES), role, name, str(PARTS)]
        with self._output.open("wb") as out, self._output.with_suffix(".err").open("wb") as err:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                env={**os.environ, "FABRIC_SOCKET": node.socket},
                cwd=ROOT,
            )

    def reports(self, key: str) -> list[dict[str, Any]]:
        """Return the whole lines so far that have `key`."""
        lines = self._output.read_text().splitlines(keepends=True)
        read = [json.loads(line) for line in lines if line.endswith("\n")]
        return [line for line in read if key in line]

    def is_ready(self) -> bool:
        """Tell whether it receives; true also when it is gone, killed at a step."""
        return bool(self.reports("ready")) or self.process.poll() is not None

    def finish(self) -> int:
        """Let it leave in order; returns its exit status (negative: the signal that ended it)."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            return self.process.wait(HEAL_S + 20)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end: {self.trouble()}") from None

    def trouble(self) -> str:
        """Return the end of what it wrote."""
        errors = self._output.with_suffix(".err").read_text()[-2500:]
        return f"{errors}\n{[r for r in self.reports('error')][-3:]}"

    def kill(self) -> None:
        """Kill and collect it, whatever state it is in."""
        self.process.kill()
        self.process.wait(5)


class Sweep:
    """A cluster with a page that arms steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._page = folder / "page"
        self._page.write_bytes(bytes(steps.PAGE_BYTES))
        os.environ |= {"FABRIC_FAULTS": "1", "FABRIC_STEP_PAGE": str(self._page)}
        self.cluster = Cluster(folder)
        self.a = self.cluster.node("a")
        self.b = self.cluster.node("b", self.a)
        self.acts: dict[str, Callable[[], None]] = {
            "traffic": self.traffic,
            "loss": self.loss,
            "apply": self.apply,
            "daemon": self.restart_daemons,
            "node": self.restart_node,
        }
        self.reach: dict[str, list[str]] = defaultdict(list)
        self._hit: list[Node] = []
        self._turn = 0
        self._workers: list[Worker] = []

    def close(self) -> None:
        """End everything and disarm."""
        self._write("")
        for worker in self._workers:
            worker.kill()
        self.cluster.close()
        del os.environ["FABRIC_FAULTS"], os.environ["FABRIC_STEP_PAGE"]

    # ---------------------------------------------------------------- arming
    def _write(self, text: str) -> None:
        with self._page.open("r+b") as file:
            file.write(text.encode() + b"\0")

    def _beside(self, ending: str) -> Path:
        return Path(f"{self._page}.{ending}")

    def record(self) -> None:
        """Play every act once and note which steps it reaches."""
        for name, act in self.acts.items():
            self._beside("seen").unlink(missing_ok=True)
            self._write("*")
            act()
            self._write("")
            self.heal()
            self.check(0)
            seen = self._beside("seen")
            for step in set(seen.read_text().split()) if seen.exists() else ():
                self.reach[step].append(name)

    def hit(self, step: str, action: str) -> int:
        """Arm a step, play the first act that reaches it; returns the pid that was hit, 0 if none came by."""
        mark = self._beside("done")
        mark.unlink(missing_ok=True)
        self._write(f"{step}:{action}")
        try:
            self.acts[self.reach[step][0]]()
        finally:
            self._write("")
        return int(mark.read_text()) if mark.exists() else 0

    # ---------------------------------------------------------------- acts
    def traffic(self) -> None:
        """Two consumers and a producer attach, exchange, and leave in order."""
        consumers = [self._worker(node, "consume") for node in (self.a, self.b)]
        for consumer in consumers:
            wait_for(f"{consumer.name} receiving", consumer.is_ready)
        producer = self._worker(self.a, "produce")
        self._finish([producer, *consumers])

    def loss(self) -> None:
        """A consumer is killed while it receives; another one takes over."""
        victim, survivor = self._worker(self.b, "consume"), self._worker(self.a, "consume")
        for consumer in (victim, survivor):
            wait_for(f"{consumer.name} receiving", consumer.is_ready)
        producer = self._worker(self.a, "produce")
        wait_for("a part", lambda: victim.reports("got") or victim.process.poll() is not None)
        victim.kill()
        self._finish([producer, survivor])

    def apply(self) -> None:
        """A plan with one channel comes and changes; what is refused on the way is typed."""
        path = self.folder / "fabric.yaml"
        for messages in (64 + self._turn, 65 + self._turn):
            path.write_text(APPLIED % messages)
            command = [sys.executable, "-m", "fabric.cli.main", "apply", str(path)]
            done = subprocess.run(
                [*command, "--socket", self.b.socket], capture_output=True, text=True, timeout=60
            )
            assert "Traceback" not in done.stderr, done.stderr
            wait_for("both nodes", self._both_serve, HEAL_S)

    def restart_daemons(self) -> None:
        """Both daemons are killed while a producer sends."""
        consumer = self._worker(self.b, "consume")
        wait_for(f"{consumer.name} receiving", consumer.is_ready)
        producer = self._worker(self.a, "produce")
        for node in (self.a, self.b):
            pid = self._daemon_of(node)
            if pid:
                os.kill(pid, signal.SIGKILL)
        self._finish([producer, consumer])

    def restart_node(self) -> None:
        """Node b leaves in order and comes back."""
        self.b.stop()
        self.b.start()

    def _worker(self, node: Node, role: str) -> Worker:
        self._turn += 1
        worker = Worker(node, role, f"{role}{self._turn}", self.folder)
        self._workers.append(worker)
        return worker

    def _finish(self, workers: list[Worker]) -> None:
        for worker in workers:
            worker.finish()

    # ---------------------------------------------------------------- what must hold
    def heal(self) -> None:
        """Bring back what was hit: nodes whose keeper is gone; then everything serves, joined."""
        self._hit = [node for node in (self.a, self.b) if not node.is_running()]
        for node in self._hit:
            node.start()
        wait_for("both nodes to serve", self._both_serve, HEAL_S)

    def _both_serve(self) -> bool:
        try:
            if not all(node.is_running() for node in (self.a, self.b)):
                return True  # its keeper was hit: heal() starts it again
            views = [node.call("topology")["nodes"] for node in (self.a, self.b)]
        except Exception:
            return False
        alive = [{n["name"] for n in view if n["state"] == "serving"} for view in views]
        return alive == [{"a", "b"}, {"a", "b"}]

    def _daemon_of(self, node: Node) -> int:
        try:
            return node.daemon_pid
        except Exception:
            return 0

    def check(self, hit: int) -> None:
        """Verify what the last act left: whole payloads, repeats flagged, nothing lost, a balanced audit, no port."""
        got: dict[tuple[str, str, int], list[bool]] = defaultdict(list)
        for worker in self._workers:
            for report in worker.reports("got"):
                assert report["whole"], f"{worker.name} got a torn part: {report}"
                got[(report["channel"], *report["got"])].append(report["redelivered"])
        unflagged = [key for key, flags in got.items() if flags.count(False) > 1]
        assert not unflagged, f"came twice, unflagged: {unflagged[:5]}"
        for worker in self._workers:
            if (
                worker.role == "produce"
                and worker.process.pid != hit
                and worker.node not in self._hit
            ):
                self._check_producer(worker, set(got))
        self._workers.clear()
        for node in (self.a, self.b):
            balanced(node)
            wait_for(f"rest at node {node.name}", lambda n=node: self._is_at_rest(n), HEAL_S)

    def _check_producer(self, producer: Worker, got: set[tuple[str, str, int]]) -> None:
        assert producer.process.poll() == 0, producer.trouble()
        for report in producer.reports("ends"):
            assert report["ends"]["delivered"] == PARTS, f"{producer.name}: {report}"
        wanted = {(c, producer.name, n) for c in CHANNELS for n in range(PARTS)}
        assert wanted <= got, f"lost: {sorted(wanted - got)[:5]}"

    def _is_at_rest(self, node: Node) -> bool:
        rows = node.audit()["channels"]
        ports = [p for p in node.call("topology")["ports"] if p["kind"] != "gateway"]
        return not any(row["in_flight"] for row in rows) and not ports
