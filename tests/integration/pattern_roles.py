"""Processes of the pattern tests: `python pattern_roles.py ROLE SOCKET`, one line on stdout when ready."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import fabric


@fabric.message("pattern.rows")
class Rows:
    hidden: fabric.Tensor["rows dim", "f32"]


@fabric.message("pattern.gathered")
class Gathered:
    who: str
    hidden: fabric.Tensor["rows dim", "f32"]


@fabric.message("pattern.offer")
class Offer:
    lease: fabric.Lease


@fabric.message("pattern.many")
class Many:
    number: int
    small: fabric.Tensor["n", "f8_e4m3"]
    parts: list[fabric.Tensor["rows dim", "f32"]]


SIZE = 3 << 20


def ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def expert(port: Any) -> None:
    """Answer a scatter channel; the one called ``stuck`` takes a part and never answers."""
    responder = port.responder("experts", Rows, Gathered)
    ready()
    for request in responder:
        if port.name == "stuck":
            sys.stdout.write("taken\n")
            sys.stdout.flush()
            sys.stdin.read()
        request.reply(Gathered(port.name, request.message.hidden * 2))


def expose(port: Any) -> None:
    """Offer a writable lease, and live until killed."""
    lease = port.expose(np.full(SIZE, 7, np.uint8), writable=True)
    sender = port.sender("offers", Offer)
    sender.send(Offer(lease), deadline=20)
    ready()
    sys.stdin.read()


ROLES = {"expert": expert, "expose": expose}

if __name__ == "__main__":
    with fabric.attach(sys.argv[3], sys.argv[2]) as attached:
        ROLES[sys.argv[1]](attached)
