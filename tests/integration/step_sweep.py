"""The rig of the step sweep: two nodes that live through it, acts that reach the steps, and what must hold after each.

A step is a place that the code names (`fabric/steps.py`). An act is something that happens to the cluster; a recording
run of each act tells which steps it reaches, so a step is armed only in an act that will come by.
"""

from __future__ import annotations

import contextlib
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

from fabric import errors, steps
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


MODULE = """
import fabric
from tests.integration.step_roles import Part


class Sweeper(fabric.Module):
    extra: fabric.In[Part]

    def on_extra(self, part):
        pass
"""
MODULES = """\
version: 1
channels:
  extra: {{type: sweep.part, pattern: queue, delivery: at_least_once}}
modules:
  sweeper: {{class: "{path}:Sweeper"}}
"""
#: `test_generation_kills.py` and `test_joins.py` kill at each of these
ELSEWHERE = ("apply.", "plan.", "chain.", "join.")


def known_steps() -> list[str]:
    """Return the names of all steps in the source that this sweep is for, in the order of names."""
    found = set()
    for path in (ROOT / "fabric").rglob("*.py"):
        found |= set(re.findall(r"steps\.at\(\s*\"([\w.]+)\"", path.read_text()))
    for path in (ROOT / "fabric" / "native").rglob("*.cpp"):
        found |= set(re.findall(r"[^_\w]step\(\"([\w.]+)\"\)", path.read_text()))
    return sorted(name for name in found if not name.startswith(ELSEWHERE))


class Worker:
    """One process of `step_roles.py`."""

    def __init__(self, node: Node, role: str, name: str, folder: Path, hold_s: float) -> None:
        self.name, self.role, self.node = name, role, node
        self._output = folder / f"{name}.out"
        command = [sys.executable, str(ROLES), role, name, str(PARTS), str(hold_s)]
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
        """Tell whether it receives; true also when it is gone or its node is, killed at a step."""
        return bool(self.reports("ready")) or self.is_gone()

    def finish(self) -> int:
        """Let it leave in order; returns its exit status (negative: the signal that ended it)."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            wait_for(f"{self.name} gone or its node", self.is_gone, HEAL_S + 20)
            if not self.node.is_running():
                self.kill()  # nobody serves it any more: it would ask until its own deadlines
            return self.process.wait(5)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end: {self.trouble()}") from None

    def is_gone(self) -> bool:
        """Tell whether it ended, or the keeper of its node did."""
        return self.process.poll() is not None or not self.node.is_running()

    def trouble(self) -> str:
        """Return the end of what it wrote."""
        errors = self._output.with_suffix(".err").read_text()[-2500:]
        return f"{errors}\n{[r for r in self.reports('error')][-3:]}"

    def kill(self) -> None:
        """Kill and collect it, whatever state it is in."""
        self.process.kill()
        self.process.wait(5)
        if self.process.stdin is not None:
            self.process.stdin.close()


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
        for node in (self.a, self.b):
            node.address = node.listen
        self.acts: dict[str, Callable[[], None]] = {
            "traffic": self.traffic,
            "loss": self.loss,
            "apply": self.apply,
            "daemon": self.restart_daemons,
            "node": self.restart_node,
            "leave": self.leave_with_unread,
            "ask": self.ask,
            "modules": self.modules,
            "clean": self.restart_daemon_in_order,
            "nap": self.nap,
        }
        self.reach: dict[str, list[str]] = defaultdict(list)
        self._hit: list[Node] = []
        self._has_modules = False
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
        producer = self._worker(self.a, "produce", hold_s=0.5)
        self._finish([producer, *consumers])

    def loss(self) -> None:
        """A consumer is killed while it receives; another one takes over."""
        victim = self._worker(self.b, "consume", hold_s=0.05)
        wait_for(f"{victim.name} receiving", victim.is_ready)
        producer = self._worker(self.a, "produce")
        wait_for("a part", lambda: victim.reports("got") or victim.is_gone())
        survivor = self._worker(self.a, "consume")
        wait_for(f"{survivor.name} receiving", survivor.is_ready)
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
        consumers = [self._worker(node, "consume") for node in (self.a, self.b)]
        for consumer in consumers:
            wait_for(f"{consumer.name} receiving", consumer.is_ready)
        producer = self._worker(self.a, "produce")
        for node in (self.a, self.b):
            pid = self._daemon_of(node)
            if pid:
                os.kill(pid, signal.SIGKILL)
        self._finish([producer, *consumers])

    def restart_node(self) -> None:
        """Node b leaves in order and comes back."""
        self.b.stop()
        self.b.start()

    def leave_with_unread(self) -> None:
        """A slow consumer leaves in order while much is queued for it; another one takes the rest."""
        slow = self._worker(self.a, "consume", hold_s=0.05)
        wait_for(f"{slow.name} receiving", slow.is_ready)
        producer = self._worker(self.a, "produce")
        wait_for("a part", lambda: slow.reports("got") or slow.is_gone())
        other = self._worker(self.b, "consume")
        slow.finish()
        self._finish([producer, other])

    def ask(self) -> None:
        """Requests and replies between the nodes."""
        responders = [self._worker(node, "respond") for node in (self.a, self.b)]
        for responder in responders:
            wait_for(f"{responder.name} serving", responder.is_ready)
        self._finish([self._worker(self.b, "ask"), *responders])

    def modules(self) -> None:
        """A module comes with a plan, is scaled up and down, dies once, and leaves with the next plan."""
        self._has_modules = True
        path = self.folder / "sweep_module.py"
        path.write_text(MODULE)
        self._control("apply", MODULES.format(path=path))
        for replicas in (2, 1):
            self._control("module_scale", "sweeper", replicas)
            wait_for("ready replicas", self._modules_rest, HEAL_S)
        for row in self._control("ls", "module") or ():
            if row.get("pid"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(row["pid"]), signal.SIGKILL)
        wait_for("a ready replica", self._modules_rest, HEAL_S)
        self._control("module_drain", "sweeper", 5.0)
        self._control("apply", APPLIED % (200 + self._turn))

    def _modules_rest(self) -> bool:
        if not self.a.is_running():
            return True
        rows = self._control("ls", "module")
        return rows is not None and all(row["state"] == "ready" for row in rows)

    def _control(self, verb: str, *arguments: Any) -> Any:
        """Call node a; a refusal is typed, a node that was hit is no answer."""
        wait_for("node a", self._both_serve, HEAL_S)
        try:
            return self.a.call(verb, *arguments)
        except errors.FabricError:
            return None

    def restart_daemon_in_order(self) -> None:
        """SIGTERM to the daemon of node b: its keeper starts it again with everything handed over."""
        consumers = [self._worker(node, "consume") for node in (self.a, self.b)]
        for consumer in consumers:
            wait_for(f"{consumer.name} receiving", consumer.is_ready)
        producer = self._worker(self.a, "produce")
        pid = self._daemon_of(self.b)
        if pid:
            os.kill(pid, signal.SIGTERM)
        self._finish([producer, *consumers])

    def nap(self) -> None:
        """Node b sleeps past its lease, and wakes."""
        pids = [self._daemon_of(self.b), self.b.keeper_pid]
        for pid in filter(None, pids):
            os.kill(pid, signal.SIGSTOP)
        wait_for("node b dead for node a", lambda: not self._both_alive(), HEAL_S)
        for pid in filter(None, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        wait_for("both nodes", self._both_serve, HEAL_S)

    def _worker(self, node: Node, role: str, hold_s: float = 0.0) -> Worker:
        self._turn += 1
        worker = Worker(node, role, f"{role}{self._turn}", self.folder, hold_s)
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
        if self._has_modules:  # the plan without them may have been refused while a node was away
            plan = APPLIED % (300 + self._turn)
            wait_for("a plan without modules", lambda: self._control("apply", plan), HEAL_S)
            self._has_modules = False

    def _both_serve(self) -> bool:
        try:
            if not all(node.is_running() for node in (self.a, self.b)):
                return True  # its keeper was hit: heal() starts it again
            views = [node.call("topology")["nodes"] for node in (self.a, self.b)]
        except Exception:
            return False
        return self._all_serve(views)

    @staticmethod
    def _all_serve(views: list[list[dict[str, Any]]]) -> bool:
        serving = [{n["name"] for n in view if n["state"] == "serving"} for view in views]
        return all(names == {"a", "b"} for names in serving)

    def _both_alive(self) -> bool:
        try:
            return self._all_serve([self.a.call("topology")["nodes"]])
        except Exception:
            return False

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
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        for node in (self.a, self.b):
            balanced(node)
            wait_for(f"rest at node {node.name}", lambda n=node: self._is_at_rest(n), HEAL_S)

    def _check_producer(self, producer: Worker, got: set[tuple[str, str, int]]) -> None:
        assert producer.process.poll() == 0, producer.trouble()
        for report in producer.reports("ends"):
            assert report["ends"].get("delivered") == PARTS, f"{producer.name}: {report}"
        wanted = {(c, producer.name, n) for c in CHANNELS for n in range(PARTS)}
        assert wanted <= got, f"lost: {sorted(wanted - got)[:5]}"

    def _is_at_rest(self, node: Node) -> bool:
        rows = node.audit()["channels"]
        ports = [p for p in node.call("topology")["ports"] if p["kind"] != "gateway"]
        return not any(row["in_flight"] for row in rows) and not ports
