"""Two native ports in one process, joined by a lane: what a daemon does, in thirty lines.

Used by the native and property tests; the ports are real, nothing is faked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from fabric import _native
from fabric.controlplane.audit import compare

STREAM, QUEUE = 0, 1
AT_MOST_ONCE, AT_LEAST_ONCE = 0, 1
BLOCK, DROP_OLDEST = 0, 1
DELIVERED, DROPPED, FAILED = 1, 2, 3


def soon(seconds: float = 5.0) -> int:
    """Absolute deadline in `seconds`."""
    return time.monotonic_ns() + int(seconds * 1e9)


@dataclass
class Attached:
    """A port with the fds that a daemon would keep."""

    number: int
    incarnation: int
    state: int
    doorbell: int
    event: int
    port: Any
    fds: list[int] = field(default_factory=list)

    @classmethod
    def open(cls, number: int, incarnation: int = 1, service_thread: bool = False) -> Attached:
        state = _native.create_state(number, incarnation, os.getuid())
        doorbell = _native.create_doorbell()
        event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        port = _native.Port(
            number, incarnation, state, doorbell, event, service_thread=service_thread
        )
        return cls(number, incarnation, state, doorbell, event, port, [state, doorbell, event])

    def close(self) -> None:
        self.port.close()
        for fd in self.fds:
            with suppress(OSError):
                os.close(fd)


@dataclass
class Pair:
    """Ports a (producer side by habit) and b, one lane between them."""

    a: Attached
    b: Attached
    lane_fd: int
    lane: int = 1
    next_flow: int = 1
    next_segment: int = 1

    def sender(
        self,
        endpoint: int = 11,
        channel: int = 7,
        pattern: int = STREAM,
        delivery: int = AT_MOST_ONCE,
    ) -> Any:
        return self.a.port.open_sender(endpoint, channel, 99, pattern, delivery, 1)

    def receiver(
        self,
        endpoint: int = 21,
        channel: int = 7,
        pattern: int = STREAM,
        delivery: int = AT_MOST_ONCE,
        overflow: int = BLOCK,
    ) -> Any:
        return self.b.port.open_receiver(
            endpoint, channel, 99, pattern, delivery, overflow=overflow
        )

    def flow(
        self,
        sender: int = 11,
        receiver: int = 21,
        messages: int = 256,
        bytes_: int = 1 << 24,
        after_drain: bool = False,
    ) -> int:
        number, self.next_flow = self.next_flow, self.next_flow + 1
        self.b.port.add_flow_in(receiver, number, self.lane, self.a.number, messages, bytes_)
        self.a.port.add_flow_out(
            sender, number, self.lane, receiver, messages, bytes_, 1, after_drain
        )
        return number

    def segment(self, slot_bytes: int = 1 << 16, slots: int = 8) -> int:
        """Give a an arena segment and let b read it."""
        number, self.next_segment = self.next_segment, self.next_segment + 1
        fd = _native.create_segment(
            number, self.a.number, self.a.incarnation, os.getuid(), slot_bytes, slots
        )
        self.a.port.add_segment(number, fd, True)
        _native.seal_segment(fd)
        self.b.port.add_segment(number, fd, False)
        self.a.fds.append(fd)
        return number


@contextmanager
def pair(service_thread: bool = False) -> Iterator[Pair]:
    """Two joined ports; everything is closed at the end."""
    a = Attached.open(100, service_thread=service_thread)
    b = Attached.open(200, service_thread=service_thread)
    lane = _native.create_lane_pair(1, a.number, a.incarnation, b.number, b.incarnation)
    a.port.add_lane(1, lane, 0, 1, b.number, b.incarnation, b.doorbell, b.event)
    b.port.add_lane(1, lane, 1, 1, a.number, a.incarnation, a.doorbell, a.event)
    joined = Pair(a, b, lane)
    try:
        yield joined
    finally:
        a.close()
        b.close()
        os.close(lane)


def send_each(sender: Any, metas: Sequence[bytes], deadline_ns: int | None = None) -> list[int]:
    """Send each as a message without tensors."""
    until = soon() if deadline_ns is None else deadline_ns
    return [sender.send(meta, [], None, until) for meta in metas]


def audit(*joined: Pair) -> dict[str, Any]:
    """Compare ledgers with what is found, as `fabricctl audit` does; the ports must be between two operations."""
    ports = [side for both in joined for side in (both.a, both.b)]
    seen = {
        "node": "a",
        "ports": [_native.inspect_state(side.state) for side in ports],
        "lanes": [
            {
                "lane": both.lane,
                "ports": [both.a.number, both.b.number],
                "directions": [_native.inspect_lane(both.lane_fd, side) for side in (0, 1)],
            }
            for both in joined
        ],
    }
    return compare([seen])
