"""The processes of the soak: ``python actors.py ROLE JSON``. They work until SIGTERM, verify all they get, and report.

Here are the roles that send messages and ask; `leases` and `scatters` have theirs. `role` says what a report is.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from fabric import _native, errors, limits
from tests.soak.leases import exposer, getter
from tests.soak.role import (
    COPY_BYTES_PER_S,
    DEADLINE_S,
    FLUSH_S,
    KEYS,
    RETRY_S,
    SEEN_MAX,
    Actor,
    Ask,
    Part,
    declare,
)  # fmt: skip
from tests.soak.scatters import expert, scatterer


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
        with actor.within("read", limits.CONTROL_CALL_S):  # the daemon may have to be asked
            data = asked.data
        with actor.within("reply", DEADLINE_S):
            request.reply(Ask(asked.number, asked.crc, data))
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
            data = actor.payload() if not job.get("is_sentinel") else actor.bytes[:64]
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


ROLES: dict[str, Callable[[Actor], None]] = {
    "source": source, "sink": sink, "asker": asker, "answerer": answerer,
    "scatterer": scatterer, "expert": expert, "exposer": exposer, "getter": getter,
}  # fmt: skip


def main() -> None:
    actor = Actor(json.loads(sys.argv[2]))
    try:
        ROLES[sys.argv[1]](actor)
    except Exception:
        actor.violate(traceback.format_exc()[-1500:])
        raise


if __name__ == "__main__":
    main()
