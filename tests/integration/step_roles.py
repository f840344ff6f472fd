"""What the processes of the step sweep do: `python step_roles.py ROLE NAME COUNT HOLD_S`, a JSON report a line."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import fabric
from fabric.errors import ClosedError, FabricError

CHANNELS = {"sweep.queue": "queue", "sweep.stream": "stream"}
LARGE_EVERY, LARGE_FLOATS, SMALL_FLOATS = (
    8,
    16384,
    16,
)  # 64 KiB go through a segment, 64 bytes inline


@fabric.message("sweep.part")
class Part:
    producer: str
    number: int
    data: fabric.Tensor["n", "f32"]


def report(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def again(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call; what was refused only because a daemon restarted is asked again, as its error says."""
    for attempt in range(10):
        try:
            return call(*arguments, **options)
        except FabricError as error:
            if not error.retryable or attempt == 9:
                raise
            report(error=error.code, text=str(error), attempt=attempt)
            time.sleep(0.2)
    return None


def declare(port: Any) -> None:
    for channel, pattern in CHANNELS.items():
        again(port.declare, channel, Part, pattern=pattern, delivery="at_least_once")


def produce(name: str, count: int, linger_s: float) -> None:
    """Send `count` parts on each channel, trying typed refusals again, bounded; then stay for `linger_s`."""
    with again(fabric.attach, name) as port:
        declare(port)
        outs = {channel: again(port.sender, channel, Part) for channel in CHANNELS}
        for number in range(count):
            floats = LARGE_FLOATS if number % LARGE_EVERY == 0 else SMALL_FLOATS
            part = Part(name, number, np.full(floats, number, np.float32))
            for channel, out in outs.items():
                send(out, channel, part)
        for channel, out in outs.items():
            out.flush(timeout=20.0)
            ends = {k: v for k, v in out.stats().items() if k != "flows"}
            report(channel=channel, ends=ends)
            out.close()
        time.sleep(linger_s)
    report(finished=True)


def send(out: Any, channel: str, part: Part) -> None:
    for attempt in range(5):
        try:
            out.send(part, key=f"k{part.number % 3}", deadline=10.0)
            return
        except FabricError as error:
            report(error=error.code, text=str(error), channel=channel, attempt=attempt)
    raise SystemExit(f"{part.number} was not taken on {channel}")


def consume(name: str, _: int, hold_s: float) -> None:
    """Receive from every channel until stdin ends, then close in order and leave."""
    with again(fabric.attach, name) as port:
        declare(port)
        receivers = [again(port.receiver, channel, Part) for channel in CHANNELS]
        threads = [
            threading.Thread(target=take, args=(channel, receiver, hold_s))
            for channel, receiver in zip(CHANNELS, receivers, strict=True)
        ]
        for thread in threads:
            thread.start()
        report(ready=True)
        sys.stdin.read()
        for receiver in receivers:
            receiver.close()
        for thread in threads:
            thread.join(10.0)
    report(finished=True)


def take(channel: str, receiver: Any, hold_s: float) -> None:
    try:
        for part in receiver:
            report(
                channel=channel,
                got=[part.producer, part.number],
                whole=bool((part.data == part.number).all()),
                redelivered=part.header.redelivered,
            )
            time.sleep(hold_s)
            part.ack()
            part.release()
    except ClosedError:
        return


def ask(name: str, count: int, _: float) -> None:
    """Ask `count` requests of the responders that are there; errors are typed and reported."""
    with again(fabric.attach, name) as port:
        again(port.declare, "sweep.ask", Part, reply=Part)
        requester = again(port.requester, "sweep.ask", Part, Part)
        for number in range(count):
            part = Part(name, number, np.full(4, number, np.float32))
            try:
                with requester.call(part, deadline=5.0) as answer:
                    report(answered=number, whole=bool((answer.data == number).all()))
            except FabricError as error:
                report(error=error.code, text=str(error), number=number)
    report(finished=True)


def respond(name: str, _: int, __: float) -> None:
    """Answer with what came until stdin ends."""
    with again(fabric.attach, name) as port:
        again(port.declare, "sweep.ask", Part, reply=Part)
        responder = again(port.responder, "sweep.ask", Part, Part)
        thread = threading.Thread(target=answer_all, args=(responder,))
        thread.start()
        report(ready=True)
        sys.stdin.read()
        responder.close()
        thread.join(10.0)
    report(finished=True)


def answer_all(responder: Any) -> None:
    try:
        for request in responder:
            asked = request.message
            request.reply(Part(asked.producer, asked.number, np.array(asked.data)))
    except ClosedError:
        return


if __name__ == "__main__":
    roles = {"produce": produce, "consume": consume, "ask": ask, "respond": respond}
    roles[sys.argv[1]](sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
