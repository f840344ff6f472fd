"""What the processes of the step sweep do: `python step_roles.py ROLE NAME COUNT`, one JSON report a line on stdout."""

from __future__ import annotations

import json
import sys
import threading
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


def declare(port: Any) -> None:
    for channel, pattern in CHANNELS.items():
        port.declare(channel, Part, pattern=pattern, delivery="at_least_once")


def produce(name: str, count: int) -> None:
    """Send `count` parts on each channel; what is refused in a typed way is tried again, bounded."""
    with fabric.attach(name) as port:
        declare(port)
        outs = {channel: port.sender(channel, Part) for channel in CHANNELS}
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
    report(finished=True)


def send(out: Any, channel: str, part: Part) -> None:
    for attempt in range(5):
        try:
            out.send(part, key=f"k{part.number % 3}", deadline=10.0)
            return
        except FabricError as error:
            report(error=error.code, text=str(error), channel=channel, attempt=attempt)
    raise SystemExit(f"{part.number} was not taken on {channel}")


def consume(name: str, _: int) -> None:
    """Receive from every channel until stdin ends, then close in order and leave."""
    with fabric.attach(name) as port:
        declare(port)
        receivers = [port.receiver(channel, Part) for channel in CHANNELS]
        threads = [
            threading.Thread(target=take, args=(channel, receiver))
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


def take(channel: str, receiver: Any) -> None:
    try:
        for part in receiver:
            report(
                channel=channel,
                got=[part.producer, part.number],
                whole=bool((part.data == part.number).all()),
                redelivered=part.header.redelivered,
            )
            part.ack()
            part.release()
    except ClosedError:
        return


if __name__ == "__main__":
    {"produce": produce, "consume": consume}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
