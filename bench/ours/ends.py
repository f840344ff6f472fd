"""One half of the fabric as the bench drives it: its public calls, bound once, over one attached port.

Near opens the sending ends ``X.out`` and the receiving ends ``X.back``, far the other ones. Messages are plain bytes,
but for the typed ones. Nothing here sets what a user would not set: the only option is `wait`, which `fabric.attach`
takes.
"""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

import fabric

READY_S = 60.0
READY_FILE = "ready.json"
CREDIT_BYTES = 1 << 30  # of the bulk channel: four of the largest arrays


@fabric.message("bench.typed", version=1)
class Typed:
    """Four scalars and a tensor, as a decode step sends them."""

    a: int
    b: int
    c: float
    text: str
    tensor: fabric.Tensor["n", "f32"]


class FabricEnd:
    """One half. `more` are closed after the port, in order."""

    def __init__(self, role: str, port: Any, *more: Any) -> None:
        self._port, self._more = port, more
        mine, theirs = ("out", "back") if role == "near" else ("back", "out")
        for way in ("out", "back"):
            port.declare(f"bytes.{way}", bytes)
            port.declare(f"typed.{way}", Typed)
        port.declare("bulk.out", bytes, klass="bulk")
        sender, receiver = (
            port.sender(f"bytes.{mine}", bytes),
            port.receiver(f"bytes.{theirs}", bytes),
        )
        self.send, self.send_many = sender.send, sender.send_many
        self.receive, self.receive_many = receiver.receive_bytes, receiver.receive_many_bytes
        self._send = port.sender(f"typed.{mine}", Typed).send
        self._receive = port.receiver(f"typed.{theirs}", Typed).receive
        if role == "near":
            self._lend = port.sender("bulk.out", bytes)
            self.send_array = self._lend.send
        else:
            self._take = port.receiver("bulk.out", bytes, bytes=CREDIT_BYTES).receive
        self._held: Any = None
        self._loan: AbstractContextManager[Any] | None = None

    # ---------------------------------------------------------------- typed
    def send_typed(self, a: int, b: int, c: float, text: str, tensor: Any) -> None:
        """Send one typed message."""
        self._send(Typed(a=a, b=b, c=c, text=text, tensor=tensor))

    def receive_typed(self) -> tuple[int, int, float, str, Any]:
        """Return the fields of the next one; the tensor is a view."""
        message = self._receive()
        return message.a, message.b, message.c, message.text, message.tensor

    # ---------------------------------------------------------------- large arrays
    def receive_array(self) -> Any:
        """Return the next array, a view of the memory in which it came."""
        self._held = self._take()
        return np.frombuffer(self._held, np.uint8)

    def release_array(self) -> None:
        """Give the memory back."""
        self._held.release()
        self._held = None

    def loan(self, size: int) -> Any:
        """Return memory to write in place."""
        self._loan = self._lend.loan(size)
        return np.frombuffer(self._loan.__enter__(), np.uint8)

    def send_loan(self) -> None:
        """Send it."""
        loan, self._loan = self._loan, None
        if loan is None:
            raise RuntimeError("send_loan without a loan")
        loan.__exit__(None, None, None)

    # ---------------------------------------------------------------- what the half itself does not use, and the end
    def daemons_cpu_ns(self) -> int:
        """Return what the daemons of the nodes that this half started have used so far."""
        return sum(each.cpu_ns() for each in self._more)

    def close(self) -> None:
        """Detach, then stop what this half started."""
        self._port.close()
        for each in self._more:
            each.stop()


def attach(role: str, socket: str, options: dict[str, Any]) -> Any:
    """Attach as `role`; the option `wait` is handed on."""
    given = {"wait": options["wait"]} if "wait" in options else {}
    return fabric.attach(role, socket=socket, **given)


def tell(folder: Path, sockets: dict[str, str]) -> None:
    """Let the far half know, in one step, where to attach."""
    fresh = folder / f"{READY_FILE}.new"
    fresh.write_text(json.dumps(sockets))
    fresh.rename(folder / READY_FILE)


def wait_for(folder: Path) -> dict[str, str]:
    """Return what the near half told.

    Raises
    ------
    TimeoutError
        It told nothing within `READY_S`.
    """
    deadline = time.monotonic() + READY_S
    while not (folder / READY_FILE).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the near half brought no node up within {READY_S:g} s")
        time.sleep(0.02)
    found: dict[str, str] = json.loads((folder / READY_FILE).read_text())
    return found
