"""pyzmq with small messages and large ones over one connection: PAIR sockets over tcp, high-water marks of two.

With the default marks of 1,000 a small message waits behind hundreds of large ones. Options: ``{"address": FAR}``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from bench.paths.stream import LAST, PING_BYTES, PING_PAUSE_S, Order, clock
from bench.peers.rendezvous import exchange

MARK = 2
GIVE_UP_MS = 60_000


class BesideEnd:
    """One half."""

    workloads = ("pings",)

    def __init__(self, context: zmq.Context[Any], socket: zmq.Socket[bytes]) -> None:
        self._context, self._socket = context, socket

    def pings(self, role: str, order: Order) -> Order:
        """Make round trips for `seconds`; with `beside` large messages go with them as fast as they can."""
        return self._near(order) if role == "near" else self._far()

    def _near(self, order: Order) -> Order:
        until, bulk = clock() + int(order["seconds"] * 1e9), np.ones(order["size"], np.uint8)
        times: list[tuple[int, int]] = []
        begun, due, is_over = 0, 0, False
        while not (is_over and not begun):
            if not begun and clock() >= due:
                begun, is_over = clock(), clock() >= until
                self._socket.send((LAST if is_over else b"p") + bytes(PING_BYTES - 1))
            events = zmq.POLLIN | (zmq.POLLOUT if order["beside"] and not is_over else 0)
            ready = self._socket.poll(max(0, (due - clock()) // 1_000_000), events)
            if ready & zmq.POLLIN:
                self._socket.recv()
                times.append((begun, clock() - begun))
                begun, due = 0, clock() + int(PING_PAUSE_S * 1e9)
            if ready & zmq.POLLOUT:
                self._socket.send(bulk, copy=False)
            elif not order["beside"] and not begun:
                time.sleep(PING_PAUSE_S)
        return {"trips": times}

    def _far(self) -> Order:
        total = 0
        while True:
            frame = self._socket.recv(copy=False)
            if len(frame) != PING_BYTES:
                total += len(frame)
                continue
            data = frame.bytes
            self._socket.send(data)
            if data[:1] == LAST:
                return {"bytes": total}

    def close(self) -> None:
        """Close the socket, then the context."""
        self._socket.close(linger=0)
        self._context.term()


def connect(role: str, folder: Path, options: dict[str, Any]) -> BesideEnd:
    """Far binds, near connects; a greeting each way."""
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.sndhwm = socket.rcvhwm = MARK
    socket.rcvtimeo = socket.sndtimeo = GIVE_UP_MS
    if role == "far":
        socket.bind(f"tcp://{options['address']}:*")
        exchange(folder, role, socket.last_endpoint)
    else:
        socket.connect(exchange(folder, role, b"").decode())
    socket.send(b"here")
    socket.recv()
    return BesideEnd(context, socket)
