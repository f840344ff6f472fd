"""The processes of the soak: ``python actors.py ROLE JSON``. They work until SIGTERM, verify all they get, and report.

A report is one JSON line on stdout: ``ready``, ``beat`` (work done), ``violation`` (something promised did not hold) or
``overran`` (a call outlived its deadline). Typed errors are expected here and counted; an internal error or one of
the protocol is a violation, and so are bytes that differ from what was sent.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import fabric
from fabric import _native, errors

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


class Leaving(Exception):
    """SIGTERM came."""


class Actor:
    """What all roles share: reports, the clock of every call, the way out."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.chance = random.Random(job["seed"])
        self.leaving = threading.Event()
        self.errors: Counter[str] = Counter()
        self.done = 0
        self._beat_at = 0.0
        self._lock = threading.Lock()
        self._bytes = np.random.default_rng(job["seed"]).integers(0, 256, 65 * MIB, np.uint8)
        signal.signal(signal.SIGTERM, lambda *_: self.leaving.set())

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
        start = self.chance.randrange(0, len(self._bytes) - size)
        return self._bytes[start : start + size]

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
    if fields.get("pattern") == "request":
        port.declare(job["channel"], Ask, reply=Ask, **{k: v for k, v in fields.items() if k != "pattern"})  # fmt: skip
    else:
        port.declare(job["channel"], Part, **fields)


# ------------------------------------------------------------------ sources and sinks
def source(actor: Actor) -> None:
    """Send numbered, checksummed messages of all sizes; at the end, wait for what was accepted."""
    job = actor.job
    number = 0

    def serve(port: Any) -> None:
        nonlocal number
        declare(port, job)
        out = port.sender(job["channel"], Part)
        actor.report(ready=True)
        while not actor.leaving.is_set():
            data = actor.payload()
            number += 1
            part = Part(job["seed"], number, _native.crc32c(data), data)
            key = f"{job['seed']}-{number % KEYS}" if job["keyed"] else None
            try:
                with actor.within("send", DEADLINE_S):
                    out.send(part, key=key, deadline=DEADLINE_S)
                    actor.beat()
            except (errors.DeadlineExceeded, errors.CapacityError):
                actor.pause(RETRY_S)
            actor.pause(job["pause_s"] + len(data) / COPY_BYTES_PER_S)
        with actor.within("flush", FLUSH_S):
            out.flush(FLUSH_S)

    actor.work(serve)


def sink(actor: Actor) -> None:
    """Receive and verify, hold some for a while and verify again, then acknowledge, or refuse, and release."""
    job = actor.job
    seen: dict[tuple[int, int, int], int] = {}
    held: deque[Any] = deque()

    def serve(port: Any) -> None:
        declare(port, job)
        inn = port.receiver(job["channel"], Part)
        actor.report(ready=True)
        held.clear()
        while not actor.leaving.is_set():
            with actor.within("receive", 0.2):
                part = inn.receive(timeout=0.2)
            if part is not None:
                check_order(actor, seen, part)
                held.append((part, time.monotonic() + actor.chance.uniform(0, job["hold_s"])))
                verify(actor, part)
            while held and (held[0][1] < time.monotonic() or len(held) > job["held_max"]):
                settle(actor, *held.popleft()[:1])
        while held:
            settle(actor, held.popleft()[0])

    actor.work(serve)


def check_order(actor: Actor, seen: dict[tuple[int, int, int], int], part: Any) -> None:
    """Of one producer's key, numbers rise, unless a message says that it came before."""
    header = part.header
    if not actor.job["keyed"] or header.redelivered:
        return
    key = (part.producer, header.producer, part.number % KEYS)
    if seen.get(key, 0) >= part.number:
        actor.violate(f"number {part.number} of {key} came behind {seen[key]}, unflagged")
    if len(seen) < SEEN_MAX:
        seen[key] = part.number


def verify(actor: Actor, part: Any) -> None:
    """The bytes are those that were sent."""
    try:
        data = part.data
        found = _native.crc32c(data)
    except (
        errors.FabricError
    ) as error:  # an error instead of bytes is right: the sender or its memory is gone
        actor.errors[error.code] += 1
        return
    if found != part.crc:
        actor.violate(f"message {part.number} of {part.producer}, {len(data)} bytes, is not what was sent")  # fmt: skip


def settle(actor: Actor, part: Any) -> None:
    """Verify once more after it was held, end it, give it back."""
    verify(actor, part)
    if actor.job["acks"] and actor.chance.random() < 0.03:
        part.nack()
    else:
        part.ack()
    part.release()
    actor.beat()


# ------------------------------------------------------------------ requests
def answerer(actor: Actor) -> None:
    """Answer every request with its own bytes."""
    job = actor.job

    def serve(port: Any) -> None:
        declare(port, job)
        responder = port.responder(job["channel"], Ask, Ask)
        actor.report(ready=True)
        while not actor.leaving.is_set():
            with actor.within("receive", 0.2):
                request = responder.receive(timeout=0.2)
            if request is not None:
                answer(actor, request)

    actor.work(serve)


def answer(actor: Actor, request: Any) -> None:
    asked = request.message
    try:
        with actor.within("reply", DEADLINE_S):
            request.reply(Ask(asked.number, asked.crc, asked.data))
            actor.beat()
    except errors.FabricError:
        pass  # the requester gave up or is gone; counted


def asker(actor: Actor) -> None:
    """Ask, and verify each answer. The sentinel is one that asks small things and is never harmed."""
    job = actor.job

    def serve(port: Any) -> None:
        declare(port, job)
        requester = port.requester(job["channel"], Ask, Ask)
        actor.report(ready=True)
        number = 0
        while not actor.leaving.is_set():
            number += 1
            data = actor.payload() if not job.get("is_sentinel") else actor._bytes[:64]
            try:
                with actor.within("call", DEADLINE_S):
                    back = requester.call(Ask(number, _native.crc32c(data), data), deadline=DEADLINE_S)  # fmt: skip
            except (errors.DeadlineExceeded, errors.BrokenError, errors.RemoteError) as error:
                if job.get("is_sentinel"):
                    actor.violate(f"a call that nothing should touch failed: {error!r}")
                actor.pause(RETRY_S)
                continue
            if back.number != number or _native.crc32c(back.data) != back.crc:
                actor.violate(f"answer {back.number} to {number} is not what was sent")
            back.release()
            actor.beat()
            actor.pause(job["pause_s"] + len(data) / COPY_BYTES_PER_S)

    actor.work(serve)


def main() -> None:
    actor = Actor(json.loads(sys.argv[2]))
    try:
        {"source": source, "sink": sink, "asker": asker, "answerer": answerer}[sys.argv[1]](actor)
    except Exception:
        actor.violate(traceback.format_exc()[-1500:])
        raise


if __name__ == "__main__":
    main()
