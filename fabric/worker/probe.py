"""The two ends of a measurement: modules that a node starts for `fabricctl bench`, over three channels of plain bytes.

Near measures, far does what near's orders say: JSON on the same channel as the messages, so that their order is kept.
Large messages go on a channel of class bulk, which leaves the arena's reserve to others. Only what a user has is used:
senders and receivers of an attached port, with the default wait. Both ends are processes of low priority.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from fabric import limits, units
from fabric.errors import DeadlineExceeded
from fabric.worker.module import Module
from fabric.worker.probe_figures import Round, figures
from fabric.worker.probe_plan import (
    ARRAY,
    BATCH,
    BATCHED,
    LARGE,
    LOANED,
    ONE_WAY,
    SMALL,
    TRIPS,
    Budget,
    Step,
    plan,
    taken,
)

NICENESS = 10
IDLE = "idle"
CONFIRM = bytes(8)
_SAMPLES = 50_000  # of a 99th percentile, as in `bench`
_ROUND_NS = 0.1e9  # small messages go in rounds of this length: the budget is looked at between
_LARGE_ROUND_NS = 0.25e9  # every round fills its window anew
_FIRST = BATCH


class Usage:
    """What this process and its node's daemon have used, and how busy the machine was."""

    def __init__(self, daemon_pid: int) -> None:
        self._daemon_pid = daemon_pid

    def cpu_ns(self) -> dict[str, int]:
        """Return CPU so far: of this process, of the daemon (0 where it is not ours to count)."""
        return {"own": time.process_time_ns(), "daemon": self._daemon_ns()}

    def machine(self, seconds: float) -> dict[str, Any]:
        """Look at the machine for a while in which this process sleeps."""
        busy, all_ticks, daemon = *_ticks(), self._daemon_ns()
        started = time.perf_counter_ns()
        time.sleep(seconds)
        busy_after, all_after = _ticks()
        took_ns = time.perf_counter_ns() - started
        share = (busy_after - busy) / max(1, all_after - all_ticks)
        return {
            "cores": os.cpu_count(),
            "load_1m": round(os.getloadavg()[0], 2),
            "busy_percent": round(100 * share, 1),
            "daemon_percent": round(100 * (self._daemon_ns() - daemon) / took_ns, 1),
        }

    def _daemon_ns(self) -> int:
        used = 0
        for times in Path(f"/proc/{self._daemon_pid}/task").glob("*/schedstat"):
            with suppress(OSError):  # a thread that ended
                used += int(times.read_text().split()[0])
        return used


def lower_priority() -> None:
    """Let every thread of this process, and those that they start, come after what runs at normal priority."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it ended
            thread = int(task.name)
            os.setpriority(
                os.PRIO_PROCESS, thread, max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
            )


def _ticks() -> tuple[int, int]:
    """Return busy and all ticks of the machine's CPUs since it started."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # idle, iowait


class _Probe(Module):
    """What both ends have: ends of the channels, usage, the budget."""

    def start(self) -> None:
        lower_priority()
        self.budget = Budget(**self.config["budget"])
        self.steps = plan(self.budget)
        self.usage = Usage(int(self.config["daemon_pid"]))
        self._open(dict(self.config["channels"]))

    def _open(self, names: Mapping[str, str]) -> None:
        raise NotImplementedError


class Far(_Probe):
    """Takes orders until it is stopped, or hears nothing for longer than a measurement may take."""

    def _open(self, names: Mapping[str, str]) -> None:
        credit = max((s.size * s.window for s in taken(self.steps)), default=SMALL)
        self._in = self.port.receiver(names["out"], bytes)
        self._bulk = self.port.receiver(names["bulk"], bytes, bytes=credit)
        self._back = self.port.sender(names["back"], bytes)

    def run(self) -> None:
        silent_s = 0.0
        while not self.stopping.is_set():
            text = self._in.receive_bytes(limits.MODULE_POLL_S)
            silent_s = silent_s + limits.MODULE_POLL_S if text is None else 0.0
            if silent_s > limits.BENCH_START_S:
                raise DeadlineExceeded(f"no order came within {limits.BENCH_START_S:g} s")
            if text is not None:
                self._obey(json.loads(text))

    def _obey(self, order: dict[str, Any]) -> None:
        if order["run"] == IDLE:
            answer: dict[str, Any] = self.usage.machine(order["seconds"])
        else:
            before = self.usage.cpu_ns()
            _FAR[order["run"]](self, order["count"])
            answer = _less(self.usage.cpu_ns(), before)
        self._back.send(json.dumps(answer).encode())

    def _echo(self, count: int) -> None:
        receive, send = self._in.receive_bytes, self._back.send
        for _ in repeat(None, count):
            send(receive())

    def _take(self, count: int) -> None:
        receive = self._in.receive_bytes
        for _ in repeat(None, count):
            data = receive()
        if data is None:
            raise DeadlineExceeded("the near end went silent")
        self._back.send(CONFIRM)

    def _take_many(self, count: int) -> None:
        receive_many = self._in.receive_many_bytes
        while count:
            found = len(receive_many(min(BATCH, count)))
            if not found:
                raise DeadlineExceeded("the near end went silent")
            count -= found
        self._back.send(CONFIRM)

    def _take_large(self, count: int) -> None:
        receive, send = self._bulk.receive, self._back.send
        for _ in repeat(None, count):
            message = receive()
            message.release()
            send(CONFIRM)


_FAR = {
    TRIPS: Far._echo,
    ONE_WAY: Far._take,
    BATCHED: Far._take_many,
    **dict.fromkeys(LARGE, Far._take_large),
}


class Near(_Probe):
    """Measures when its node pushes `probe_run`; answers with the figures."""

    def start(self) -> None:
        super().start()
        self._data = bytes(SMALL)
        size = max((s.size for s in taken(self.steps) if s.run == ARRAY), default=0)
        self._source = np.random.default_rng(1).integers(0, 256, size, np.uint8)
        self._sent_bytes = 0
        self._ns_per_byte = 0.0  # of large messages, as last seen
        self.port.on_push("probe_run", self._measure_all)

    def _open(self, names: Mapping[str, str]) -> None:
        self._out = self.port.sender(names["out"], bytes)
        self._bulk = self.port.sender(names["bulk"], bytes)
        self._back = self.port.receiver(names["back"], bytes)

    def _measure_all(self, _: dict[str, Any]) -> dict[str, Any]:
        self._out.send(
            json.dumps({"run": IDLE, "seconds": 0}).encode(), deadline=limits.BENCH_START_S
        )
        self._answer()  # they have met: the clock of the budget begins
        started = time.monotonic()
        self._order(IDLE, seconds=self.budget.idle_s)
        load = {"near": self.usage.machine(self.budget.idle_s), "far": self._answer()}
        rows, ends_at = list[dict[str, Any]](), started + self.budget.idle_s
        for step in self.steps:
            ends_at += step.seconds  # what a step does not need, those after it may use
            rows.append(self._measure(step, ends_at))
        used = {"seconds": round(time.monotonic() - started, 3), "bytes": self._sent_bytes}
        return {"steps": rows, "load": load, "used": used}

    # ---------------------------------------------------------------- one step, round by round
    def _measure(self, step: Step, ends_at: float) -> dict[str, Any]:
        row = {"name": step.name}
        if step.left_out:
            return {**row, "left_out": step.left_out}
        left = step.size_bytes // step.payload
        left, first = (min(left, _SAMPLES), _FIRST) if step.run == TRIPS else (left, _FIRST)
        if step.run in LARGE:
            first = step.window + 1
            if self._large_ns(step) * first > (ends_at - time.monotonic()) * 1e9:
                return {**row, "left_out": _too_slow(self._large_ns(step), step)}
        each_ns = self._round(step, first).ns / first  # it warms up, and says how many fit
        left -= first
        rounds: list[Round] = []
        while count := _fitting(step, left, each_ns, ends_at):
            rounds.append(self._round(step, count))
            each_ns = rounds[-1].ns / count
            left -= count
        if step.run in LARGE:
            self._ns_per_byte = each_ns / step.size
        if not rounds:
            return {**row, "left_out": _too_slow(each_ns, step)}
        return {**row, **figures(step, rounds)}

    def _large_ns(self, step: Step) -> float:
        """Return what a large message will take, as far as the ones before say."""
        return self._ns_per_byte * step.size

    def _round(self, step: Step, count: int) -> Round:
        before = self.usage.cpu_ns()
        self._order(step.run, count=count)
        started = time.perf_counter_ns()
        times = _NEAR[step.run](self, step, count)
        ns = time.perf_counter_ns() - started
        far, own = self._answer(), _less(self.usage.cpu_ns(), before)
        self._sent_bytes += count * step.payload
        daemons_ns = own["daemon"] + far["daemon"]
        return Round(count, ns, own["own"] + far["own"], daemons_ns, times)

    def _order(self, run: str, **more: Any) -> None:
        self._out.send(json.dumps({"run": run, **more}).encode())

    def _answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._confirmed())
        return answer

    def _confirmed(self) -> bytes:
        found: bytes | None = self._back.receive_bytes()
        if found is None:
            raise DeadlineExceeded("the far end went silent")
        return found

    # ---------------------------------------------------------------- the timed parts
    def _trips(self, step: Step, count: int) -> list[int]:
        send, receive, clock = self._out.send, self._back.receive_bytes, time.perf_counter_ns
        data, times = self._data, list[int]()
        for _ in repeat(None, count):
            start = clock()
            send(data)
            receive()
            times.append(clock() - start)
        return times

    def _one_way(self, step: Step, count: int) -> list[int]:
        send, data = self._out.send, self._data
        for _ in repeat(None, count):
            send(data)
        self._confirmed()
        return []

    def _batched(self, step: Step, count: int) -> list[int]:
        send_many, full = self._out.send_many, [self._data] * BATCH
        for _ in repeat(None, count // BATCH):
            send_many(full)
        self._confirmed()
        return []

    def _large(self, step: Step, count: int) -> list[int]:
        send = self._send_loan if step.run == LOANED else self._send_array
        for number in range(count):
            if number >= step.window:
                self._confirmed()
            send(step.size, number)
        for _ in range(min(step.window, count)):
            self._confirmed()
        return []

    def _send_loan(self, size: int, number: int) -> None:
        """Send memory that was written once before: the sender's data are born in place."""
        with self._bulk.loan(size) as data:
            np.frombuffer(data, np.uint8)[:SMALL] = number % 251

    def _send_array(self, size: int, number: int) -> None:
        """Send another part of the source each time, so that none is in the cache only because it was just sent."""
        start = number * size % len(self._source)
        self._bulk.send(self._source[start : start + size])


_NEAR = {
    TRIPS: Near._trips,
    ONE_WAY: Near._one_way,
    BATCHED: Near._batched,
    **dict.fromkeys(LARGE, Near._large),
}


def _fitting(step: Step, left: int, each_ns: float, ends_at: float) -> int:
    """Return how many messages the next round has; 0 where too few fit in what is left."""
    room_ns = (ends_at - time.monotonic()) * 1e9
    is_large = step.run in LARGE
    round_ns, least = (_LARGE_ROUND_NS, step.window + 1) if is_large else (_ROUND_NS, BATCH)
    count = int(min(left, room_ns / each_ns, max(least, round_ns / each_ns)))
    if step.run == BATCHED:
        count -= count % BATCH
    return count if count >= least else 0


def _too_slow(each_ns: float, step: Step) -> str:
    """Say that a step did not fit in its time."""
    each, share = units.format_seconds(each_ns / 1e9), units.format_seconds(step.seconds)
    return f"one takes {each}, its share of --seconds is {share}"


def _less(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {key: after[key] - before[key] for key in after}
