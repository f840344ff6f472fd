"""Receive from a channel, acknowledge slowly, report each step as a line of JSON, until killed."""

from __future__ import annotations

import json
import sys
import time

import fabric


def report(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main(channel: str) -> None:
    with fabric.attach("dying") as port:
        receiver = port.receiver(channel)
        report(ready=True)
        for message in receiver:
            report(got=message.number)
            time.sleep(0.02)
            message.ack()
            report(acked=message.number)
            message.release()


if __name__ == "__main__":
    main(sys.argv[1])
