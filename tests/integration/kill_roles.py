"""What the processes of the kill tests do: `python kill_roles.py ROLE JSON`, one JSON report a line on stdout.

Everything uses the public API only. A role ends by itself when its work is done, or is killed.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import numpy as np

import fabric
from fabric.errors import FabricError


@fabric.message("kill.part")
class Part:
    stream: str
    number: int
    data: fabric.Tensor["n", "f32"]


@fabric.message("kill.ask")
class Ask:
    number: int
    steps: int


@fabric.message("kill.answer")
class Answer:
    number: int
    step: int


def report(**fields: Any) -> None:
    sys.stdout.write(json.dumps({"at": time.monotonic(), **fields}) + "\n")
    sys.stdout.flush()


def declare(port: Any, job: dict[str, Any]) -> None:
    if job.get("declared"):
        return  # by a fabric.yaml
    port.declare(
        job["channel"],
        Part,
        pattern=job.get("pattern", "stream"),
        delivery=job.get("delivery", "at_least_once"),
    )


def checked(part: Part) -> bool:
    """The data says which message it belongs to, so a torn or stale one is seen."""
    return bool((part.data == part.number).all())


def produce(job: dict[str, Any]) -> None:
    """Send `count` parts (0: until killed), `interval_s` apart, then wait for their ends."""
    with fabric.attach(job["name"]) as port:
        declare(port, job)
        out = port.sender(job["channel"], Part)
        number = failures = 0
        while not job.get("count") or number < job["count"]:
            data = np.full(job.get("floats", 16), number, np.float32)
            try:
                out.send(Part(job["name"], number, data), key=job["name"].encode(), deadline=10.0)
                report(sent=number)
            except FabricError as error:
                failures += 1
                report(error=error.code, number=number)
            number += 1
            time.sleep(job.get("interval_s", 0.002))
        out.flush(timeout=20.0)
        report(
            flushed=True,
            failures=failures,
            ends={k: v for k, v in out.stats().items() if k != "flows"},
        )


def consume(job: dict[str, Any]) -> None:
    """Receive, hold for `hold_s`, acknowledge, report; `keep` unacknowledged ones at most, until killed."""
    with fabric.attach(job["name"]) as port:
        declare(port, job)
        inn = port.receiver(job["channel"], Part)
        report(ready=True)
        for part in inn:
            number, header = part.number, part.header
            report(
                got=number, stream=part.stream, whole=checked(part), redelivered=header.redelivered
            )
            time.sleep(job.get("hold_s", 0.0))
            part.ack()
            part.release()
            report(acked=number, stream=part.stream)


def take(job: dict[str, Any]) -> None:
    """Receive from a channel that a fabric.yaml declares; record, then acknowledge, until killed or cut off."""
    with fabric.attach(job["name"]) as port:
        inn = port.receiver(job["channel"], Part)
        report(ready=True)
        for part in inn:
            header = part.header
            report(got=part.number, stream=part.stream, redelivered=header.redelivered)
            part.ack()
            part.release()


def leave(job: dict[str, Any]) -> None:
    """Take `take` parts, close the receiver, then acknowledge the first of them only."""
    with fabric.attach(job["name"]) as port:
        declare(port, job)
        inn = port.receiver(job["channel"], Part)
        report(ready=True)
        taken = [inn.receive() for _ in range(job["take"])]
        report(got=[part.number for part in taken])
        inn.close()
        report(closed=True)
        taken[0].ack()
        report(acked=taken[0].number)
        time.sleep(job.get("stay_s", 3.0))


def respond(job: dict[str, Any]) -> None:
    """Answer every request with `steps` streamed replies, `interval_s` apart."""
    with fabric.attach(job["name"]) as port:
        port.declare(job["channel"], Ask, reply=Answer)
        responder = port.responder(job["channel"], Ask, Answer)
        report(ready=True)
        for request in responder:
            threading.Thread(target=answer, args=(request, job), daemon=True).start()


def answer(request: Any, job: dict[str, Any]) -> None:
    asked = request.message
    report(asked=asked.number)
    try:
        for step in range(asked.steps):
            request.send(Answer(asked.number, step))
            time.sleep(job.get("interval_s", 0.01))
        request.end()
        report(answered=asked.number)
    except FabricError as error:
        report(error=error.code, number=asked.number)


def ask(job: dict[str, Any]) -> None:
    """Ask `count` requests one after the other and report every step, or the typed error."""
    with fabric.attach(job["name"]) as port:
        port.declare(job["channel"], Ask, reply=Answer)
        requester = port.requester(job["channel"], Ask, Answer)
        for number in range(job.get("count", 1)):
            started = time.monotonic()
            try:
                steps = 0
                for reply in requester.stream(
                    Ask(number, job["steps"]), deadline=job.get("deadline_s", 15.0)
                ):
                    steps += 1
                    report(step=reply.step, number=number)
                report(done=number, steps=steps)
            except FabricError as error:
                report(error=error.code, number=number, after_s=time.monotonic() - started)


def generate(job: dict[str, Any]) -> None:
    """Ask the `generate` channel for each of `jobs` ({prompt, new} lengths) in turn, with seeded prompts."""
    from fabric_modules.types import Generate, Token

    with fabric.attach(job["name"]) as port:
        requester = port.requester("generate", Generate, Token)
        for number, size in enumerate(job["jobs"]):
            prompt = np.random.default_rng(size["prompt"]).integers(3, 97, size["prompt"])
            asked = Generate(f"{job['name']}-{number}", prompt.astype(np.int64), size["new"], -1)
            report(asked=number)
            tokens = []
            try:
                for token in requester.stream(asked, deadline=60.0):
                    tokens.append(token.token)
                    report(token=token.index, of=number)
                report(job=number, tokens=tokens)
            except FabricError as error:
                report(job=number, error=error.code)


if __name__ == "__main__":
    roles = {
        "produce": produce,
        "consume": consume,
        "leave": leave,
        "take": take,
        "respond": respond,
        "ask": ask,
        "generate": generate,
    }
    roles[sys.argv[1]](json.loads(sys.argv[2]))
