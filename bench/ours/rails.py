"""One half of a stream over the fabric, attached to a node that the driver started in a namespace.

Options: ``{"near": SOCKET, "far": SOCKET, "channel": NAME}``. Messages of a stream are of class `bulk`, the receiver's
credit is the stream's window; pings are of class `control`, on channels of their own. One workload more:
``{"run": "expire", "after_s", "deadline_s", "count"}`` sends messages that cannot arrive in time, and says how many
ended.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

import fabric
from bench.paths.stream import Streaming, clock
from fabric import errors

ENDS_S = 15.0  # after which a message that has not ended counts as one without a reason


class RailEnd(Streaming):
    """One half: a port; ends are opened at the first order that needs them."""

    workloads = (*Streaming.workloads, "expire")

    def __init__(self, role: str, port: Any, channel: str) -> None:
        self._role, self._port, self._channel = role, port, channel
        self._ends: dict[str, Any] = {}
        self._held: Any = None
        self._bulk: Any = None
        self._loan: Any = None

    def prepare(self, order: dict[str, Any]) -> None:
        """Open what the order needs."""
        if order["run"] == "pings":
            mine, theirs = ("out", "back") if self._role == "near" else ("back", "out")
            self.send = self._end(f"ping.{mine}", "control", True).send
            self.receive = self._end(f"ping.{theirs}", "control", False).receive_bytes
        elif order["run"] == "expire":
            self._brief = self._end("brief", "token", self._role == "near")
        else:
            size, window = order["size"], order["window"]
            credit = {} if self._role == "near" else {"bytes": size * window, "messages": window}
            name = f"{size}x{window}"
            self._bulk = self._end(name, "bulk", self._role == "near", **credit)

    def _end(self, part: str, klass: str, is_sender: bool, **credit: int) -> Any:
        name = f"{self._channel}.{part}"
        if name not in self._ends:
            self._port.declare(name, bytes, klass=klass)
            make = self._port.sender if is_sender else self._port.receiver
            self._ends[name] = make(name, bytes, **credit)
        return self._ends[name]

    def borrow(self, size: int, until_ns: int) -> np.ndarray[Any, Any]:
        """Return a slot of the arena."""
        self._loan = self._bulk.loan(size, deadline=max(0.0, (until_ns - clock()) / 1e9))
        return np.frombuffer(self._loan.__enter__(), np.uint8)

    def post(self, array: np.ndarray[Any, Any], until_ns: int) -> None:
        """Hand the slot over, once there is credit."""
        try:
            self._loan.__exit__(None, None, None)
        except errors.DeadlineExceeded as error:
            raise TimeoutError(str(error)) from error

    def finish(self, handle: None, until_ns: int) -> None:
        """Nothing to wait for: the slot is the library's."""

    def take(self, until_ns: int) -> np.ndarray[Any, Any] | None:
        """Return a view of the next message."""
        self._held = self._bulk.receive(timeout=max(0.0, (until_ns - clock()) / 1e9))
        return None if self._held is None else np.frombuffer(self._held, np.uint8)

    def release(self) -> None:
        """Give the memory back."""
        self._held.release()
        self._held = None

    def expire(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Send `count` messages while nothing arrives; `ended` is how many of them ended otherwise than delivered."""
        if role == "far":
            return {}
        time.sleep(order["after_s"])
        refused, data, before = 0, bytes(order["size"]), self._ended()
        for _ in range(order["count"]):
            try:
                self._brief.send(data, deadline=order["deadline_s"])
            except errors.FabricError:
                refused += 1
        until, ended = clock() + int(ENDS_S * 1e9), 0
        while clock() < until and ended + refused < order["count"]:
            time.sleep(0.05)
            ended = self._ended() - before
        return {"ended": ended + refused}

    def _ended(self) -> int:
        """Return how many brief messages have ended as dropped or failed so far."""
        counted = self._brief.stats()
        return sum(n for end, n in counted.items() if end.startswith(("dropped", "failed")))

    def close(self) -> None:
        """Detach."""
        self._port.close()


def connect(role: str, folder: Path, options: dict[str, Any]) -> RailEnd:
    """Attach to this half's node."""
    name = f"{options['channel']}-{role}"
    return RailEnd(role, fabric.attach(name, socket=options[role]), options["channel"])
