"""kill -9, SIGSTOP for 5 s and SIGTERM of every role, under one workload over two nodes: nothing lost, nothing left."""

import json
import os
import signal
import time

import psutil
import pytest

from tests.integration.kill_nodes import balanced, clusters, wait_for
from tests.integration.test_scale import MODULE

pytestmark = [pytest.mark.sweep, pytest.mark.deadline(90), pytest.mark.promise("P1", "P3", "P9")]
cluster = pytest.fixture(clusters)

STOP_S = 5.0
COUNT = 250
INTERVAL_S = 0.008

YAML = """
version: 1
plugins: ["{folder}/passing.py"]
channels:
  work: {{type: kill.part, pattern: queue, delivery: at_least_once}}
  order: {{type: kill.part, pattern: stream, delivery: at_least_once, transforms: [passing]}}
modules:
  worker: {{class: "{folder}/worker.py:Worker", node: b, config: {{folder: "{folder}"}}}}
"""

PLUGIN = """
import fabric

@fabric.message("kill.part")
class Part:
    stream: str
    number: int
    data: fabric.Tensor["n", "f32"]

@fabric.transform("passing", accepts=Part, produces=Part, max_expansion=2.0)
class Passing:
    def apply(self, batch, ctx):
        return [Part(part.stream, part.number, part.data) for part in batch]
"""


class Workload:
    """A queue and a transformed stream from node a; consumers: a client on each node and a module on b."""

    def __init__(self, cluster, folder):
        (folder / "worker.py").write_text(MODULE)
        (folder / "passing.py").write_text(PLUGIN)
        self.folder = folder
        self.cluster = cluster
        self.a = cluster.node("a")
        self.b = cluster.node("b", join=self.a)
        self.a.call("apply", YAML.format(folder=folder))
        wait_for("the module", lambda: self.row("module", "worker").get("state") == "ready", 30.0)
        queue = {"channel": "work", "pattern": "queue"}
        self.consumers = [
            cluster.worker(self.a, "take", "near", **queue),
            cluster.worker(self.b, "take", "far", **queue),
            cluster.worker(self.a, "take", "spare", channel="order", pattern="stream"),
        ]
        for consumer in self.consumers:
            consumer.wait_for("ready")
        self.jobs = [("work", "w0"), ("order", "k0"), ("order", "k1")]
        self.producers = [
            cluster.worker(
                self.a,
                "produce",
                name,
                channel=channel,
                declared=True,
                count=COUNT,
                interval_s=INTERVAL_S,
            )
            for channel, name in self.jobs
        ]
        self.consumers[1].wait_for("got", 5)
        wait_for("the module's work", lambda: len(self.module_rows()) > 5)

    def row(self, kind, name):
        return next((r for r in self.a.call("ls", kind) if r["name"] == name), {})

    def victims(self, role):
        """Return the processes of a role."""
        if role == "daemons":
            return [psutil.Process(n.daemon_pid) for n in (self.a, self.b)]
        pid = {
            "module": lambda: self.row("module", "worker")["pid"],
            "stage": lambda: self.row("plugin", "passing")["pid"],
            "client": lambda: self.consumers[1].process.pid,
            "daemon": lambda: self.b.daemon_pid,
            "keeper": lambda: self.b.keeper.pid,
        }[role]()
        return [psutil.Process(pid)]

    def module_rows(self):
        found = []
        for file in self.folder.glob("worker*.jsonl"):
            found += [
                json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")
            ]
        return found

    def taken(self):
        """Everything that was recorded before it was acknowledged, oldest first."""
        rows = self.module_rows()
        for consumer in self.consumers:
            channel = "order" if consumer.name == "spare" else "work"
            rows += [
                {
                    "at": r["at"],
                    "channel": channel,
                    "of": r["stream"],
                    "n": r["got"],
                    "again": r["redelivered"],
                }
                for r in consumer.reports("got")
            ]
        return sorted(rows, key=lambda row: row["at"])

    def check(self):
        """Wait until every message ended; then the union is complete and no repeat is silent."""
        for producer in self.producers:
            producer.finish(60.0)
        rows = {}

        def all_ended():
            rows.update({r["name"]: r for r in balanced(self.a)["channels"]})
            return all(rows[c]["in_flight"] == 0 for c in ("work", "order"))

        wait_for("the end of every message", all_ended, 30.0)
        taken = self.taken()
        for channel, producer in self.jobs:
            mine = [r for r in taken if (r["channel"], r["of"]) == (channel, producer)]
            assert {r["n"] for r in mine} == set(range(COUNT)), (channel, producer)
            fresh = [r["n"] for r in mine if not r["again"]]
            assert len(fresh) == len(set(fresh)), f"{producer}: a repeat that is not flagged"
        for channel in ("work", "order"):
            assert rows[channel]["failed"] == rows[channel]["dropped"] == 0, rows[channel]

    def end(self):
        """Stop everything; nothing may be left."""
        found = []
        for node in (self.a, self.b):
            try:
                keeper = node.keeper
                found += [keeper, *keeper.children(recursive=True)]
            except Exception:
                continue  # this node has ended already
        self.cluster.close()
        _, left = psutil.wait_procs(found, 10.0)
        assert not left, f"left behind: {left}"
        for node in (self.a, self.b):
            assert not os.path.exists(node.socket) and not os.path.exists(node.socket + ".ctl")


def strike(victims, number):
    for victim in victims:
        victim.send_signal(number)
    if number == signal.SIGSTOP:
        time.sleep(STOP_S)
        for victim in victims:
            try:
                victim.send_signal(signal.SIGCONT)
            except psutil.NoSuchProcess:
                continue  # it was killed for its silence: a module, a stage host, a daemon


@pytest.mark.promise("P1")
@pytest.mark.promise("P3")
@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], ids=lambda n: n.name
)
@pytest.mark.parametrize("role", ["module", "stage", "client", "daemon", "daemons", "keeper"])
def test_signal_to_any_role_loses_no_message_and_leaves_nothing(cluster, short_dir, role, number):
    workload = Workload(cluster, short_dir)
    victims = workload.victims(role)
    ends = number != signal.SIGSTOP and role == "keeper"
    tree = [p for v in victims for p in v.children(recursive=True)] if ends else []
    workload.consumers[1].killed = ends or (role == "client" and number != signal.SIGSTOP)
    strike(victims, number)
    if ends:
        _, left = psutil.wait_procs(tree, 20.0)
        assert not left, f"the node's processes are left: {left}"
        workload.b.wait_ended()
    workload.check()
    if ends:
        workload.b.start()  # the same state directory serves again
    workload.end()
