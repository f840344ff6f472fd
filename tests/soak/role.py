"""What the processes of the soak share: their messages, their reports, the clock of every call, the way in and out.

A report is one JSON line on stdout: ``ready``, ``beat`` (work done), ``violation`` (something promised did not hold) or
``overran`` (a call outlived its deadline). Typed errors are expected here and counted; an internal error or one of
the protocol is a violation, and so are bytes that differ from what was sent.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

import fabric
from fabric import errors

MIB = 1 << 20
# Sizes of payloads and how often each is drawn: inline, slots of every class, larger than a credit window.
SIZES = {0: 4, 1: 4, 100: 8, 4000: 6, 5000: 6, 70_000: 6, MIB: 3, 9 * MIB: 1, 64 * MIB: 0.2}
DEADLINE_S = 3.0
SLACK_S = 2.5  # over a deadline: an audit's freeze, a busy machine
FLUSH_S = 8.0
BEAT_S = 0.25
KEYS = 5
SEEN_MAX = 50_000
UNEXPECTED = ("internal", "peer_protocol")
RETRY_S = 0.1
COPY_BYTES_PER_S = 400e6  # a source paces itself by what it sends


@fabric.message("soak.part")
class Part:
    producer: int
    number: int
    crc: int
    data: fabric.Tensor["n", "u8"]


@fabric.message("soak.ask")
class Ask:
    number: int
    crc: int
    data: fabric.Tensor["n", "u8"]


@fabric.message("soak.rows")
class Rows:
    """Rows and the checksum of each; answered by the same rows, turned."""

    number: int
    crcs: fabric.Tensor["rows", "i64"]
    data: fabric.Tensor["rows dim", "u8"]


@fabric.message("soak.offer")
class Offer:
    """A lease and the name of the file in which its exposer keeps the state of it."""

    name: str
    lease: fabric.Lease


#: what a channel carries → its message and, where it is answered, the answer
CARRIED: dict[str, tuple[type, ...]] = {
    "part": (Part,), "ask": (Ask, Ask), "rows": (Rows, Rows), "offer": (Offer,)
}  # fmt: skip


class Leaving:
    """An event that a signal's handler may set: a `threading.Event` hangs when the signal comes inside its lock."""

    def __init__(self) -> None:
        self._is_set = False
        self._news: queue.SimpleQueue[None] = (
            queue.SimpleQueue()
        )  # its `put` may interrupt its `get`

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._news.put(None)

    def wait(self, seconds: float) -> None:
        with suppress(queue.Empty):
            self._news.get(timeout=seconds)
        if self._is_set:
            self._news.put(None)


class Actor:
    """What all roles share: reports, the clock of every call, the way out."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.pid = os.getpid()
        self.chance = random.Random(job["seed"])
        self.leaving = Leaving()
        self.errors: Counter[str] = Counter()
        self.done = 0
        self._beat_at = 0.0
        self._lock = threading.Lock()
        self.bytes = np.random.default_rng(job["seed"]).integers(0, 256, 65 * MIB, np.uint8)
        signal.signal(signal.SIGTERM, lambda *_: self.leaving.set())
        faulthandler.register(signal.SIGUSR1)  # where every thread is, for who waits for it in vain

    def report(self, **fields: Any) -> None:
        with self._lock:
            sys.stdout.write(json.dumps({"at": time.monotonic(), **fields}) + "\n")
            sys.stdout.flush()

    def beat(self) -> None:
        """Count one piece of work; say so now and then."""
        self.done += 1
        if time.monotonic() - self._beat_at > BEAT_S:
            self._beat_at = time.monotonic()
            self.report(beat=self.done, errors=self.errors)

    def violate(self, what: str) -> None:
        self.report(violation=f"{self.job['name']}: {what}")

    @contextmanager
    def within(self, what: str, seconds: float) -> Iterator[None]:
        """Count typed errors; report a call that outlives its deadline, and errors that must not be."""
        started = time.monotonic()
        try:
            yield
        except errors.FabricError as error:
            self.errors[error.code] += 1
            if error.code in UNEXPECTED:
                self.violate(f"{what}: {error!r}")
            if self.job.get("debug"):
                self.report(error=repr(error), what=what)
            raise
        finally:
            now = time.monotonic()
            if now - started > seconds + SLACK_S:
                self.report(
                    overran=f"{self.job['name']}: {what}",
                    since=started,
                    until=now,
                    allowed_s=seconds,
                )

    def payload(self) -> Any:
        """Return some of the random bytes, of a size drawn from `SIZES`."""
        size = self.chance.choices(list(SIZES), list(SIZES.values()))[0]
        start = self.chance.randrange(0, len(self.bytes) - size)
        return self.bytes[start : start + size]

    def work(self, serve: Callable[[Any], None]) -> None:
        """Attach and serve until SIGTERM; attach anew where the port was lost with its node."""
        while not self.leaving.is_set():
            try:
                with self.within("attach", fabric.limits.ATTACH_S):
                    port = fabric.attach(self.job["name"])
                try:
                    serve(port)
                finally:
                    with self.within("close", 2.0 + fabric.limits.BYE_S):
                        port.close()
            except errors.FabricError:
                self.leaving.wait(RETRY_S)
        self.report(left=self.done, errors=self.errors)

    def pause(self, seconds: float) -> None:
        self.leaving.wait(seconds)


def declare(port: Any, job: dict[str, Any]) -> None:
    """Declare the channel as the driver describes it."""
    fields = dict(job["declare"])
    if not fields:
        return  # the plan has declared it
    sent, *answer = CARRIED[job["carries"]]
    if answer:
        fields["reply"] = answer[0]
    port.declare(job["channel"], sent, **fields)
