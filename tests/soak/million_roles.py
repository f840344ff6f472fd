"""The processes of the million: ``python million_roles.py ROLE JSON``; public API only.

A producer sends numbered, checksummed messages of 1 KiB; a consumer writes each down before it acknowledges it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

import fabric
from tests.soak.records import GOT, MARK, RECORD

SEND_MANY, RECEIVE_MANY = 64, 64
DATA_BYTES = 1024
POLL_S = 0.2
FLUSH_S = 60.0
FLOWS_S = 12.0  # less than who started us waits, so that what was missing is in our log


@fabric.message("million.part")
class Part:
    """1 KiB that says what it is."""

    producer: int
    number: int
    key: int
    crc: int
    data: fabric.Tensor["n", "u8"]


def declare(port: Any, job: dict[str, Any]) -> None:
    port.declare(job["channel"], Part, pattern=job["pattern"], delivery="at_least_once")


def write_json(path: str, value: dict[str, Any]) -> None:
    """Leave a result where only whole ones are seen."""
    Path(path + ".part").write_text(json.dumps(value))
    os.replace(path + ".part", path)


def say_ready(job: dict[str, Any]) -> None:
    """Tell who started us; from here on our stacks are of no interest."""
    faulthandler.cancel_dump_traceback_later()
    write_json(job["output"] + ".ready", {})


# ------------------------------------------------------------------ producer
def produce(job: dict[str, Any]) -> None:
    """Send `count` messages over `keys` keys in turn, wait for their ends, and report."""
    with fabric.attach(job["name"]) as port:
        declare(port, job)
        out = port.sender(job["channel"], Part)
        wait_for_flows(out, job["consumers"])
        say_ready(job)
        sys.stdin.readline()  # all begin together: a consumer that stops early opens no more flows
        start = time.monotonic()
        accepted = send_all(out, job)
        out.flush(FLUSH_S)
        took = time.monotonic() - start
        ends = {k: v for k, v in out.stats().items() if k != "flows"}
        held = {k: port.stats()[k] for k in ("held", "slots_taken")}
        write_json(job["output"], {"accepted": accepted, "seconds": took, "ends": ends, **held})
        sys.stdin.read()  # the counts are looked at while this port lives


def wait_for_flows(out: Any, consumers: int) -> None:
    """Wait until every consumer can be sent to, so that all take part from the first message."""
    deadline = time.monotonic() + FLOWS_S
    while len(out.stats()["flows"]) < consumers:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{consumers} consumers, {len(out.stats()['flows'])} flows")
        time.sleep(0.02)


def send_all(out: Any, job: dict[str, Any]) -> int:
    """Send as fast as there is room; behind the middle, pause after every batch where the job says so."""
    producer, count, keys = job["producer"], job["count"], job["keys"]
    names = [f"{producer}-{key}" for key in range(keys)]
    accepted = 0
    while accepted < count:
        if accepted >= count // 2:
            time.sleep(job["pause_s"])
        numbers = range(accepted, min(count, accepted + SEND_MANY))
        parts = [part(producer, number, number % keys if keys else 0) for number in numbers]
        accepted += out.send_many(parts, [names[p.key] for p in parts] if keys else None)
    return accepted


def part(producer: int, number: int, key: int) -> Part:
    data = np.full(DATA_BYTES, number & 0xFF, np.uint8)
    data[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
    return Part(producer, number, key, zlib.crc32(data), data)


# ------------------------------------------------------------------ consumer
def consume(job: dict[str, Any]) -> None:
    """Receive, check, write down, acknowledge; until SIGTERM finds nothing more to do."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    file = os.open(job["output"], flags, 0o600)
    with fabric.attach(job["name"]) as port:
        declare(port, job)
        inn = port.receiver(job["channel"], Part)
        say_ready(job)
        recorded = 0
        while True:
            messages = inn.receive_many(RECEIVE_MANY, timeout=POLL_S)
            recorded += len(messages)
            if messages and recorded > job.get("stop_after", recorded):
                stop_in_the_middle(file, messages)
            elif messages:
                take(file, messages)
            elif stopping:
                break
        del messages
        held = {k: port.stats()[k] for k in ("held", "slots_taken")}
        write_json(job["output"] + ".end", held)


def take(file: int, messages: list[Any]) -> None:
    """Write the batch down, acknowledge it, and only then say so."""
    write_down(file, messages)
    for message in messages:
        message.ack()
        message.release()
    os.write(file, np.array([(time.monotonic_ns(), 0, 0, 0, MARK, 0)], RECORD).tobytes())


def stop_in_the_middle(file: int, messages: list[Any]) -> None:
    """Acknowledge half of the batch, write the other half down, and wait for the end before that is acknowledged."""
    half = len(messages) // 2
    take(file, messages[:half])
    write_down(file, messages[half:])
    os.kill(os.getpid(), signal.SIGSTOP)


def write_down(file: int, messages: list[Any]) -> None:
    """Check every message and record it."""
    now_ns = time.monotonic_ns()
    rows = np.empty(len(messages), RECORD)
    for row, message in enumerate(messages):
        data = message.data
        if zlib.crc32(data) != message.crc or data.nbytes != DATA_BYTES:
            raise AssertionError(f"message {message.number} of {message.producer} is torn")
        flag = message.header.redelivered
        rows[row] = (now_ns, message.number, message.key, message.producer, GOT, flag)
    os.write(file, rows.tobytes())


if __name__ == "__main__":
    faulthandler.dump_traceback_later(FLOWS_S + 2.0)
    {"produce": produce, "consume": consume}[sys.argv[1]](json.loads(sys.argv[2]))
