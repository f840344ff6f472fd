"""One half of the fabric as the bench drives it: its public calls, bound once, over one attached port.

Near opens the sending ends ``X.out`` and the receiving ends ``X.back``, far the other ones. Small messages use the
built-in bytes, large ones a message type of one tensor. Nothing here sets what a user would not set: the only option is
`wait`, which `fabric.attach` takes.
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


@fabric.message("bench.bytes", version=1)
class Bytes:
    """Some bytes."""

    data: fabric.Tensor["n", "u8"]


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
        for name, kind, klass in (("bytes", Bytes, "token"), ("typed", Typed, "token")):
            for way in ("out", "back"):
                port.declare(f"{name}.{way}", kind, klass=klass)
        port.declare("bulk.out", Bytes, klass="bulk")
        self._open_bytes(mine, theirs)
        self._send = port.sender(f"typed.{mine}", Typed).send
        self._receive = port.receiver(f"typed.{theirs}", Typed).receive
        if role == "near":
            self._bulk = port.sender("bulk.out", Bytes)
        else:
            self._receive_bulk = port.receiver("bulk.out", Bytes, bytes=CREDIT_BYTES).receive
        self._held: Any = None
        self._loan: AbstractContextManager[Any] | None = None

    # ---------------------------------------------------------------- bytes
    def _open_bytes(self, mine: str, theirs: str) -> None:
        sender = self._port.sender(f"bytes.{mine}", Bytes)
        receiver = self._port.receiver(f"bytes.{theirs}", Bytes)
        self._send_bytes, self._send_bytes_many = sender.send, sender.send_many
        self._receive_bytes, self.receive_views = receiver.receive, receiver.receive_many

    def send(self, data: Any) -> None:
        """Send one message of bytes."""
        self._send_bytes(Bytes(data=np.frombuffer(data, np.uint8)))

    def receive(self) -> Any:
        """Return the bytes of the next one."""
        return self._receive_bytes().data

    def send_many(self, batch: list[bytes]) -> None:
        """Send a batch in as few crossings as room allows."""
        messages = [Bytes(data=np.frombuffer(data, np.uint8)) for data in batch]
        sent = self._send_bytes_many(messages)
        while sent < len(messages):
            sent += self._send_bytes_many(messages[sent:])

    def receive_many(self, most: int) -> list[Any]:
        """Return what is there, at least one."""
        return [message.data for message in self.receive_views(most)]

    # ---------------------------------------------------------------- typed
    def send_typed(self, a: int, b: int, c: float, text: str, tensor: Any) -> None:
        """Send one typed message."""
        self._send(Typed(a=a, b=b, c=c, text=text, tensor=tensor))

    def receive_typed(self) -> tuple[int, int, float, str, Any]:
        """Return the fields of the next one; the tensor is a view."""
        message = self._receive()
        return message.a, message.b, message.c, message.text, message.tensor

    # ---------------------------------------------------------------- large arrays
    def send_array(self, array: Any) -> None:
        """Send one array: one copy, into shared memory."""
        self._bulk.send(Bytes(data=array))

    def receive_array(self) -> Any:
        """Return the next array, a view of that memory."""
        self._held = self._receive_bulk()
        return self._held.data

    def release_array(self) -> None:
        """Give the memory back."""
        self._held.release()
        self._held = None

    def loan(self, size: int) -> Any:
        """Return memory to write in place."""
        self._loan = self._bulk.loan(data=size)
        return self._loan.__enter__().data

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
