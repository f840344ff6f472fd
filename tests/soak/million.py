"""A million messages, one consumer killed: ``python -m tests.soak.million [--messages N] [--pattern P] [--seed S]``.

Two producers, four consumers, 1 KiB, `at_least_once`. One consumer is killed (kill -9) on the way and started again.
What consumers wrote down before they acknowledged is then held against what was accepted (see `records`), the audit
is taken during the traffic and after it, and everything that the run held must be gone at its end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fabric import limits
from tests.integration.kill_nodes import Node, returned, wait_for
from tests.soak.million_roles import SEND_MANY
from tests.soak.records import Findings, examine, load

ROLES = Path(__file__).with_name("million_roles.py")
ROOT = ROLES.parent.parent.parent
PATTERNS = ("stream", "queue")
PRODUCERS, CONSUMERS, KEYS = 2, 4, 64
START_S = 20.0
RATE_MIN = 2_000  # messages a second below which the run is given up
STALL_S_MAX = (
    5.0  # the longest pause of a consumer that lives: kill, re-balancing and audits included
)
AUDIT_EVERY_S = 0.5
PACED_BELOW = 200_000
SECOND_HALF_S = (
    1.5  # a short run slows down behind its middle, so that the restarted consumer takes part
)


@dataclass
class Process:
    """One producer or consumer."""

    name: str
    output: Path
    popen: subprocess.Popen[bytes]

    def wait_ready(self) -> None:
        """Wait until it is attached."""
        self.wait_file(".ready", START_S)

    def begin(self) -> None:
        """Let a producer send."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(b"\n")
        self.popen.stdin.flush()

    def wait_file(self, ending: str, seconds: float) -> dict[str, Any]:
        """Return what it wrote to its result file `ending`."""
        path = Path(f"{self.output}{ending}")

        def is_there() -> bool:
            assert path.exists() or self.popen.poll() is None, self.trouble()
            return path.exists()

        try:
            wait_for(f"{path.name} of {self.name}", is_there, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.trouble()}") from None
        return dict(json.loads(path.read_text()))

    def trouble(self) -> str:
        """What it said, at its end or with the stacks of its threads so far."""
        log = self.output.with_suffix(".log").read_text()[-3000:]
        return f"{self.name}, exit code {self.popen.poll()}, said: {log}"

    def finish(self, seconds: float) -> None:
        """Wait for its end, which must be a success."""
        assert self.popen.wait(seconds) == 0, self.trouble()

    def close(self) -> None:
        """Kill what is left of it."""
        self.popen.kill()
        self.popen.wait(5.0)
        if self.popen.stdin is not None:
            self.popen.stdin.close()


@dataclass
class Run:
    """One pattern, from the first process to the last check."""

    folder: Path
    pattern: str
    messages: int
    chance: random.Random
    say: Callable[[str], None] = print
    processes: list[Process] = field(default_factory=list)
    audits: list[dict[str, Any]] = field(default_factory=list)

    def execute(self) -> Findings:
        """Run it; what does not hold is in the findings."""
        node = Node(self.folder, "a").start()
        try:
            before = node.footprint()
            findings = self._traffic(node)
            returned(node, before)
            return findings
        except AssertionError as error:
            log = (node.folder / "log").read_text()[-3000:]
            raise AssertionError(f"{error}\nthe node said: {log}") from error
        finally:
            for process in self.processes:
                process.close()
            node.stop()

    def _traffic(self, node: Node) -> Findings:
        victim = self.chance.randrange(CONSUMERS)
        stop_after = int(self.messages / CONSUMERS * self.chance.uniform(0.2, 0.5))
        consumers = [
            self._start(
                node, "consume", f"in{n}", {"stop_after": stop_after} if n == victim else {}
            )
            for n in range(CONSUMERS)
        ]
        for consumer in consumers:
            consumer.wait_ready()
        producers = [self._producer(node, number) for number in range(PRODUCERS)]
        for producer in producers:
            producer.wait_ready()
        for producer in producers:
            producer.begin()
        started = time.monotonic()
        consumers.append(self._kill_and_restart(node, consumers[victim], started))
        ends = self._watch(node, producers, started)
        living = [c for number, c in enumerate(consumers) if number != victim]
        found = self._examine([load(c.output) for c in consumers], victim, ends)
        self._audit_end(node, found)
        self._leave(producers, living, found)
        return found

    def _producer(self, node: Node, number: int) -> Process:
        count = self.messages // PRODUCERS + (number < self.messages % PRODUCERS)
        keys = KEYS if self.pattern == "stream" else 0
        pause_s = SECOND_HALF_S / (count / 2 / SEND_MANY) if self.messages < PACED_BELOW else 0.0
        job = {
            "producer": number,
            "count": count,
            "keys": keys,
            "consumers": CONSUMERS,
            "pause_s": pause_s,
        }
        return self._start(node, "produce", f"out{number}", job)

    def _start(self, node: Node, role: str, name: str, job: dict[str, Any]) -> Process:
        output = self.folder / f"{name}.{len(self.processes)}"
        common = {
            "name": name,
            "channel": "million",
            "pattern": self.pattern,
            "output": str(output),
        }
        command = [sys.executable, str(ROLES), role, json.dumps({**common, **job})]
        environment = {**os.environ, "FABRIC_SOCKET": node.socket, "PYTHONPATH": str(ROOT)}
        with output.with_suffix(".log").open("wb") as log:
            popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
            )
        self.processes.append(Process(name, output, popen))
        return self.processes[-1]

    # ---- the fault
    def _kill_and_restart(self, node: Node, victim: Process, started: float) -> Process:
        """kill -9 the consumer that stopped between writing down and acknowledging; start it again at once."""
        state = psutil.Process(victim.popen.pid).status
        wait_for(f"{victim.name} stopping", lambda: state() == psutil.STATUS_STOPPED, self._seconds)
        victim.popen.kill()
        victim.popen.wait(5.0)
        self.say(f"  {victim.name} killed after {time.monotonic() - started:.1f} s")
        again = self._start(node, "consume", victim.name, {})
        again.wait_ready()
        return again

    @property
    def _seconds(self) -> float:
        return 20.0 + self.messages / RATE_MIN

    def _watch(self, node: Node, producers: list[Process], started: float) -> list[dict[str, Any]]:
        """Audit while the producers send; return what they say at their end."""
        while not all(p.output.exists() for p in producers):
            assert all(p.popen.poll() is None for p in self.processes if p in producers)
            assert time.monotonic() - started < self._seconds, "the producers do not end"
            self.audits.append(node.audit())
            time.sleep(AUDIT_EVERY_S)
        return [p.wait_file("", START_S) for p in producers]

    # ---- what must hold
    def _examine(self, files: list[Any], victim: int, ends: list[dict[str, Any]]) -> Findings:
        sent = [end["accepted"] for end in ends]
        window = limits.CREDIT_MESSAGES * PRODUCERS
        found = examine(files, victim, sent, window, keyed=self.pattern == "stream")
        seconds = max(end["seconds"] for end in ends)
        found.figures.update(
            accepted=sum(sent), seconds=round(seconds, 2), rate_k_per_s=round(sum(sent) / seconds / 1e3, 1)
        )  # fmt: skip
        if sum(sent) != self.messages:
            found.violations.append(f"{self.messages} were to be sent, {sum(sent)} were accepted")
        for end in ends:
            if end["ends"]["delivered"] != end["accepted"] or end["held"] or end["slots_taken"]:
                found.violations.append(f"a producer's end: {end}")
        self._check_pauses(found, files, victim)
        return found

    def _check_pauses(self, found: Findings, files: list[Any], victim: int) -> None:
        gaps = [
            int((rows["at_ns"][1:] - rows["at_ns"][:-1]).max()) / 1e9
            for number, rows in enumerate(files)
            if number != victim and len(rows) > 1
        ]
        found.figures["longest_pause_s"] = round(max(gaps), 3)
        if max(gaps) > STALL_S_MAX:
            found.violations.append(f"a consumer had nothing for {max(gaps):.1f} s")

    def _audit_end(self, node: Node, found: Findings) -> None:
        verdicts = [audit["verdict"] for audit in self.audits]
        took = sorted(a["duration_ms"] for a in self.audits if a["verdict"] == "balanced")
        found.figures["audits"] = {v: verdicts.count(v) for v in sorted(set(verdicts))}
        found.figures["audit_ms_median"] = took[len(took) // 2] if took else None
        if "unbalanced" in verdicts or "balanced" not in verdicts:
            wrong = [a["differences"][:3] for a in self.audits if a["verdict"] == "unbalanced"]
            found.violations.append(f"audits during the traffic: {verdicts} {wrong[:2]}")
        last = node.audit()
        row = next(r for r in last["channels"] if r["name"] == "million")
        counts = (
            row["accepted"],
            row["delivered"],
            row["dropped"],
            row["failed"],
            row["in_flight"],
        )
        if last["verdict"] != "balanced" or counts != (self.messages, self.messages, 0, 0, 0):
            found.violations.append(f"the last audit: {last}")

    def _leave(self, producers: list[Process], consumers: list[Process], found: Findings) -> None:
        """Everybody leaves; nobody may hold an entry or a slot then."""
        for consumer in consumers:
            consumer.popen.send_signal(signal.SIGTERM)
        for consumer in consumers:
            held = consumer.wait_file(".end", START_S)
            if any(held.values()):
                found.violations.append(f"{consumer.name} still holds {held}")
        for process in [*producers, *consumers]:
            if process.popen.stdin is not None:
                process.popen.stdin.close()
            process.finish(START_S)


def main(arguments: list[str]) -> int:
    """Run each pattern, print figures, and return 1 when something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.million", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--pattern", choices=PATTERNS, action="append")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    options = parser.parse_args(arguments)
    broken = 0
    for pattern in options.pattern or PATTERNS:
        print(f"{pattern}: {options.messages} messages of 1 KiB, seed {options.seed}")
        print(f"  {PRODUCERS} producers, {CONSUMERS} consumers, one killed and started again")
        with tempfile.TemporaryDirectory(prefix="fab-", dir="/tmp") as folder:
            run = Run(Path(folder), pattern, options.messages, random.Random(options.seed))
            found = run.execute()
        for name, value in found.figures.items():
            print(f"  {name}: {value}")
        for violation in found.violations:
            print(f"  NOT HELD: {violation}")
        broken += len(found.violations)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
