"""The fabric's broadcast: one large array to several receivers, each a process of its own, until the last has it.

Subject ``bench.ours.broadcast``; the near half runs the node and the receivers, the far one only answers. Workloads:

- ``{"run": "broadcast", "size": …, "receivers": 1 | 8, "count": …}``: ``figures {"ms"}``, the median time from the
  call of `send` to the moment at which the last `receive` returned. Every receiver was waiting before.
- ``{"run": "broadcast_allowance", "size": …, "receivers": 8, "count": …}``: ``figures {"ms"}``, what it may take: half
  as much again as one receiver takes, and a wake-up for each further one. A wake-up is that of a process which
  sleeps in `read` of a pipe, from the call of `write`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import fabric
from bench.node import BenchNode
from bench.ours.ends import attach

RECEIVERS = 8
SHARE_OF_ONE = 1.5
SETTLE_S = 0.003  # a receiver that has said "armed" sleeps in its wait by then
PAUSE_S = 0.03  # nobody asks for moments while they may still be made
WAIT_S = 30.0
SEED = 5


class Group:
    """The near half: a node, receivers, and one sender for each number of receivers."""

    workloads = ("broadcast", "broadcast_allowance")

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self._node = BenchNode(folder)
        self._receivers: list[Receiver] = []
        self._node.start()
        try:
            self._port = attach("near", str(self._node.socket), options)
            self._senders = {count: self._sender(count) for count in (1, RECEIVERS)}
            socket = str(self._node.socket)
            self._receivers = [Receiver(socket, number) for number in range(RECEIVERS)]
            self._wait_for_flows()
        except BaseException:
            self.close()
            raise

    def _sender(self, count: int) -> Any:
        name = channel_of(count)
        self._port.declare(name, bytes, pattern="broadcast", klass="bulk")
        return self._port.sender(name, bytes)

    def _wait_for_flows(self) -> None:
        """A broadcast goes to those that are there."""
        deadline = time.monotonic() + WAIT_S
        for count, sender in self._senders.items():
            while len(sender.stats()["flows"]) < count:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{count} receivers did not open within {WAIT_S:g} s")
                time.sleep(0.02)

    def broadcast(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Serve the workload of this name."""
        times = self._times(order["receivers"], order["size"], order["count"])
        return {"figures": {"ms": statistics.median(times) / 1e6}}

    def broadcast_allowance(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Serve the workload of this name."""
        one = statistics.median(self._times(1, order["size"], order["count"]))
        wake_up = statistics.median(self._wake_ups(order["count"]))
        allowed = SHARE_OF_ONE * one + (order["receivers"] - 1) * wake_up
        return {"figures": {"ms": allowed / 1e6}, "one_ms": one / 1e6, "wake_up_us": wake_up / 1e3}

    def _times(self, receivers: int, size: int, count: int) -> list[int]:
        """Return nanoseconds from each `send` to the last `receive`."""
        send = self._senders[receivers].send
        found, chosen = [], self._receivers[:receivers]
        arrays = [np.random.default_rng(SEED + n).integers(0, 256, size, np.uint8) for n in (0, 1)]
        for number in range(count):
            array = arrays[number % 2]
            for receiver in chosen:
                receiver.arm(channel_of(receivers))
            time.sleep(SETTLE_S)
            start = time.monotonic_ns()
            send(array)
            time.sleep(PAUSE_S)
            answers = [receiver.answer() for receiver in chosen]
            sent = (int(array[0]), int(array[-1]), size)
            if any(answer[1:] != sent for answer in answers):
                raise AssertionError(f"{answers} came where {size} bytes were sent")
            found.append(max(answer[0] for answer in answers) - start)
        return found

    def _wake_ups(self, count: int) -> list[int]:
        """Return nanoseconds from each write into a pipe to its reader's return."""
        receiver, found = self._receivers[0], []
        for _ in range(count):
            receiver.arm("pipe")
            time.sleep(SETTLE_S)
            start = time.monotonic_ns()
            receiver.poke()
            time.sleep(SETTLE_S)
            found.append(receiver.answer()[0] - start)
        return found

    def daemons_cpu_ns(self) -> int:
        """Return what the node has used so far."""
        return self._node.cpu_ns()

    def close(self) -> None:
        """End the receivers, detach, stop the node."""
        for receiver in self._receivers:
            receiver.close()
        if hasattr(self, "_port"):
            self._port.close()
        self._node.stop()


class Receiver:
    """The near half's handle on one receiving process: a line on its stdin arms it, a line of it says when."""

    def __init__(self, socket: str, number: int) -> None:
        command = [sys.executable, "-m", __name__, socket, str(number)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self._answers = self._process.stdin, self._process.stdout

    def arm(self, what: str) -> None:
        """Let it wait for the next message of a channel, or for a byte in the pipe."""
        self._orders.write(f"{what}\n".encode())
        self._orders.flush()
        self._line()

    def poke(self) -> None:
        """Write the byte."""
        os.write(self._orders.fileno(), b"\n")

    def answer(self) -> tuple[int, ...]:
        """Return when it came (CLOCK_MONOTONIC, ns), its first and last byte and its length."""
        return tuple(int(word) for word in self._line().split())

    def _line(self) -> bytes:
        line = self._answers.readline()
        if not line:
            raise RuntimeError("a receiver has ended; its error is above")
        return line

    def close(self) -> None:
        """End it with its stdin."""
        self._orders.close()
        try:
            self._process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Nobody:
    """The far half: it takes part in nothing."""

    workloads = Group.workloads

    def broadcast(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Answer."""
        return {}

    broadcast_allowance = broadcast

    def close(self) -> None:
        """Nothing is open."""


def connect(role: str, folder: Path, options: dict[str, Any]) -> Group | Nobody:
    """Near runs everything."""
    return Group(folder, options) if role == "near" else Nobody()


def channel_of(receivers: int) -> str:
    """Return the channel that has so many receivers."""
    return f"to.{receivers}"


def receive(socket: str, number: int) -> None:
    """Be one receiver, until stdin ends: orders as `Receiver` gives them."""
    with fabric.attach(f"receiver-{number}", socket=socket) as port:
        ends = {}
        for count in (1, RECEIVERS):
            if number < count:
                name = channel_of(count)
                port.declare(name, bytes, pattern="broadcast", klass="bulk")
                ends[name] = port.receiver(name, bytes)
        while line := os.read(0, 64):
            what = line.decode().strip()
            os.write(1, b"armed\n")
            if what == "pipe":
                os.read(0, 1)
                os.write(1, b"%d\n" % time.monotonic_ns())
                continue
            message = ends[what].receive()
            moment = time.monotonic_ns()
            if message is None:
                raise TimeoutError(f"nothing came on {what}")
            data = memoryview(message)
            os.write(1, b"%d %d %d %d\n" % (moment, data[0], data[-1], len(data)))
            del data
            message.release()


if __name__ == "__main__":
    receive(sys.argv[1], int(sys.argv[2]))
