"""A producer and a consumer that use ports in every way at once: `python use_roles.py ROLE JSON`, reports on stdout.

Each way has a port and a channel of its own (`channel` and the way's name) and a thread that works it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from fabric.dataplane.client import default_socket
from fabric.errors import FabricError
from tests.conformance.uses import Seat, seat
from tests.conformance.uses_content import CONTENTS

BATCH = 5
_lock = threading.Lock()


def report(**fields: Any) -> None:
    with _lock:
        sys.stdout.write(json.dumps({"at": time.monotonic(), **fields}) + "\n")
        sys.stdout.flush()


def value_of(number: int, size: int) -> bytes:
    """Contents that tell which message they belong to, all of them."""
    return (b"%08d" % number) * (size // 8)


def number_of(value: bytes) -> int:
    """The number; -1 where a part of the contents is another message's."""
    number = int(value[:8])
    return number if value == value_of(number, len(value)) else -1


def produce(job: dict[str, Any], use: str, port: Seat, channel: str, content: Any) -> None:
    """Send `count` values (0: until killed), some a call, `interval_s` apart, then wait for their ends."""
    out = port.sender(channel, content)
    size, number = job.get("size", 64), 0
    while not job.get("count") or number < job["count"]:
        values = [value_of(each, size) for each in range(number, number + BATCH)]
        try:
            number += (accepted := out.send(values, key=use, deadline=15.0))
            report(use=use, sent=number - 1, accepted=accepted)
        except FabricError as error:
            report(use=use, error=error.code, text=str(error))
        time.sleep(job.get("interval_s", 0.01))
    out.flush(20.0)
    report(use=use, flushed=True, ends=out.ends())


def consume(job: dict[str, Any], use: str, port: Seat, channel: str, content: Any) -> None:
    """Receive, hold for `hold_s`, acknowledge, report, until killed."""
    inn = port.receiver(channel, content)
    report(use=use, ready=True)
    while True:
        held = inn.some(BATCH, 20.0)
        for got in held:
            report(use=use, got=number_of(got.value), redelivered=got.is_redelivered)
        time.sleep(job.get("hold_s", 0.0))
        for got in held:
            report(use=use, acked=number_of(got.done()))


def work(role: Any, job: dict[str, Any], use: str, content: str) -> None:
    channel = f"{job['channel']}-{use}"
    port = seat(use, f"{job['name']} {use}", default_socket())
    port.declare(
        channel, CONTENTS[content], pattern=job.get("pattern", "stream"), delivery="at_least_once"
    )
    role(job, use, port, channel, CONTENTS[content])
    port.close()


if __name__ == "__main__":
    role = {"produce": produce, "consume": consume}[sys.argv[1]]
    given = json.loads(sys.argv[2])
    threads = [
        threading.Thread(target=work, args=(role, given, use, list(CONTENTS)[turn % 2]))
        for turn, use in enumerate(given["uses"])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
