"""One half of a KV stream through a channel with codecs: ``{"near", "far", "transforms", "channel"}``.

Near sends every layer of `bench.transforms.kv` again and again for `seconds`; far times what arrives and, where it is
to be the same bits, compares all of it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

import fabric
from bench.transforms import kv

WINDOW = 16  #: messages that the receiver lets be outstanding
WAIT_S = 20.0
NS = 1_000_000_000
clock = time.monotonic_ns


@fabric.message("bench.kv")
class Layer:
    number: int
    layer: int
    is_last: bool
    k: fabric.Tensor["tokens heads dim", "bf16"]
    v: fabric.Tensor["tokens heads dim", "bf16"]


class CodedEnd:
    """One half: a port, and its end of the channel."""

    workloads = ("kv",)

    def __init__(self, role: str, port: Any, options: dict[str, Any]) -> None:
        self._port = port
        self._bits = kv.load()
        channel, transforms = options["channel"], options["transforms"]
        port.declare(channel, Layer, klass="bulk", transforms=transforms)
        size = 2 * self._bits[0].nbytes * WINDOW
        self._end = (
            port.sender(channel, Layer)
            if role == "near"
            else port.receiver(channel, Layer, messages=WINDOW, bytes=size)
        )

    def kv(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Send, or take, for `seconds`."""
        return self._send(order) if role == "near" else self._take(order)

    def _send(self, order: dict[str, Any]) -> dict[str, Any]:
        layers = [np.ascontiguousarray(each) for each in self._bits]
        before, number, start = self._counts(), 0, clock()
        until = start + int(order["seconds"] * NS)
        is_last = False
        while not is_last:
            is_last = clock() >= until
            k, v = layers[number % len(layers)]
            message = Layer(number, number % len(layers), is_last, k, v)
            self._end.send(message, deadline=WAIT_S)
            number += 1
        self._end.flush(WAIT_S)
        counts = self._counts()
        return {"sent": number, "start": start, **{k: counts[k] - before[k] for k in counts}}

    def _counts(self) -> dict[str, int]:
        rows: list[dict[str, Any]] = []
        self._end.explain_codec(rows)
        found = rows[0]["counts"] if rows else {}
        return {key: found.get(key, 0) for key in ("coded", "raw", "raw_bytes", "wire_bytes")}

    def _take(self, order: dict[str, Any]) -> dict[str, Any]:
        count = wrong = 0
        is_last, first, size = False, 0, self._bits[0].nbytes
        while not is_last:
            message = self._end.receive(WAIT_S)
            if message is None:
                raise TimeoutError(f"nothing came for {WAIT_S:g} s after {count} messages")
            k, v = message.k, message.v
            if order["is_exact"]:
                wanted = self._bits[message.layer]
                wrong += not (np.array_equal(k, wanted[0]) and np.array_equal(v, wanted[1]))
            wrong += message.number != count
            is_last = message.is_last
            message.release()
            count += 1
            first = first or clock()
        return {"count": count, "wrong": wrong, "ns": clock() - first, "message_bytes": size}

    def close(self) -> None:
        """Detach."""
        self._port.close()


def connect(role: str, folder: Path, options: dict[str, Any]) -> CodedEnd:
    """Attach to this half's node."""
    return CodedEnd(role, fabric.attach(f"kv-{role}", socket=options[role]), options)
