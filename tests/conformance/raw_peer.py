"""A node with a real engine and port, and a peer engine played by hand: any frame, in any order, over socket pairs."""

from __future__ import annotations

import os
import select
import socket
import struct
from types import TracebackType
from typing import Any, Final

from fabric import _native
from fabric.testing.rigs import (
    AT_LEAST_ONCE,
    KLASS_BULK,
    WINDOW_BYTES,
    WINDOW_MESSAGES,
    Place,
    Segments,
    join,
)

EAGER, ANNOUNCE, GRANT, CHUNK, REPORT, PING, PONG = 1, 2, 3, 4, 7, 10, 11
SESSION, OTHER_SESSION = 0x5E5510, 0x5E5520
HERE, PEER, OTHER = 2, 1, 3
FLOW_IN: Final = PEER << 48 | 7
FLOW_OUT: Final = HERE << 48 | 9
CHANNEL, TYPE = 1, 7
_HEADER = struct.Struct("<IBBBBIIQQQQIIII")


def frame(
    kind: int,
    session: int,
    sequence: int,
    a: int = 0,
    b: int = 0,
    body: bytes = b"",
    features: int = 0,
) -> bytes:
    """One sealed frame (docs/WIRE.md §3)."""

    def header(crc: int) -> bytes:
        body_crc = _native.crc32c(body) if body and not features else 0
        return _HEADER.pack(
            0x46424146, 1, 8, kind, 0, features, len(body), session, sequence, a, b, body_crc, 0, 0, crc
        )  # fmt: skip

    return header(_native.crc32c(header(0))) + body


def record(flow: int, flow_seq: int, size: int) -> bytes:
    """A record that announces one tensor of `size` bytes in one segment (docs/WIRE.md §2)."""
    inline = struct.pack("<IIQ", 1, 1, size) + b"m"
    inline += bytes(-len(inline) % 64)
    extension = struct.pack("<HHQQ", 1, 16, PEER << 32 | 2, 1) + bytes(4)
    entry = struct.pack("<BBHIIIIIQQQ", 0, 0, 0, 0, 1, 0, 1, 0, 0, size, 0)
    total = 64 + len(extension) + len(entry) + len(inline)
    head = struct.pack(
        "<BBHIQQQQIIIBBHQ", 1, 11, 0, total, flow, flow_seq, flow_seq, 0, CHANNEL, TYPE, 1, KLASS_BULK, 0, 1,
        len(inline) + size,
    )  # fmt: skip
    return head + extension + entry + inline


class Peer:
    """One hand-played node: two connections into the engine under test."""

    def __init__(self, engine: _native.Engine, session: int, node: int) -> None:
        self.engine, self.session = engine, session
        engine.open_session(session, node, node * 100)
        self.socks: dict[int, socket.socket] = {}
        self.sequence = [0, 0]
        for group in (0, 1):
            self.connect(group)

    def connect(self, group: int) -> None:
        """Make a connection, in the place of one that was closed."""
        if group in self.socks:
            self.socks[group].close()
        self.socks[group], theirs = socket.socketpair()
        self.socks[group].settimeout(10)
        self.engine.add_connection(self.session, theirs.detach(), group)
        self.sequence[group] = 0

    def send(
        self, group: int, kind: int, a: int = 0, b: int = 0, body: bytes = b"", features: int = 0
    ) -> bytes:
        """Send a frame; return its bytes. With `features` its body has no checksum."""
        self.sequence[group] += 1
        sealed = frame(kind, self.session, self.sequence[group], a, b, body, features)
        self.socks[group].sendall(sealed)
        return sealed

    def expect(self, group: int, kind: int) -> tuple[int, int, bytes]:
        """Read up to the next frame of a kind; return its (a, b, body). Pings are not answered."""
        while True:
            header = _HEADER.unpack(self._exactly(group, 64))
            body = self._exactly(group, header[6])
            if header[3] == kind:
                return header[9], header[10], body

    def settle(self, group: int) -> None:
        """Return once the engine has taken what was sent."""
        self.send(group, PING, 1)
        self.expect(group, PONG)

    def _exactly(self, group: int, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socks[group].recv(count - len(data))
            if not part:
                raise EOFError("the engine closed the connection")
            data += part
        return data


class Node:
    """The node under test: engine, one port with a sender and a receiver, served as by a daemon."""

    def __init__(self) -> None:
        self.segments = Segments()
        self.gateway, self.local = Place(HERE << 32 | 1), Place(HERE << 32 | 2)
        self.port = self.local.open_port()
        g = self.gateway
        self.engine = _native.Engine(g.port, g.incarnation, g.state, g.doorbell, g.event)
        self.pair = join((self.local, g), (self.port, self.engine), 1, KLASS_BULK)
        self.engine.start()
        self.events: list[dict[str, Any]] = []
        self._unseen: list[dict[str, Any]] = []
        self.peer = Peer(self.engine, SESSION, PEER)
        self.engine.add_deliver(FLOW_IN, 1, SESSION)
        self.engine.add_forward(FLOW_OUT, 1, SESSION)
        here, there = HERE << 32 | 7, PEER << 32 | 7
        self.receiver = self.port.open_receiver(here, CHANNEL, TYPE, 0, AT_LEAST_ONCE)
        self.sender = self.port.open_sender(here + 1, CHANNEL, TYPE, 0, AT_LEAST_ONCE, KLASS_BULK)
        self.port.add_flow_in(here, FLOW_IN, 1, PEER << 32 | 2, WINDOW_MESSAGES, WINDOW_BYTES)
        self.port.add_flow_out(
            here + 1, FLOW_OUT, 1, there, WINDOW_MESSAGES, WINDOW_BYTES, 1, False
        )

    def event(self, name: str, within_s: float = 10.0) -> dict[str, Any]:
        """Serve the engine until it tells an event of this name; return it."""
        poll = select.poll()
        poll.register(self.engine.event_fd(), select.POLLIN)
        deadline = _native.monotonic_ns() + int(within_s * 1e9)
        while True:
            self._unseen += self.engine.events()
            while self._unseen:
                event = self._unseen.pop(0)
                self.events.append(event)
                if event["event"] == "grow":
                    number, fd = self.segments.create(self.gateway, event["slot_bytes"], 4)
                    self.engine.add_segment(number, fd, True)
                if event["event"] == name:
                    return event
            left_ms = (deadline - _native.monotonic_ns()) // 1_000_000
            assert left_ms > 0, f"no event {name!r}; there were {self.events}"
            poll.poll(left_ms)

    def payload(self, size: int) -> bytes:
        """Receive the next message; return its tensor."""
        message = self.receiver.receive(_native.monotonic_ns() + 10_000_000_000)
        assert message is not None, "nothing came"
        while True:
            try:
                return bytes(message.tensor(0, "uint8", [size]).data)
            except _native.NeedSegment as need:
                self.port.add_segment(need.args[1], self.segments.fd(need.args[1]), False)

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.engine.stop(0)
        self.port.close()
        for sock in self.peer.socks.values():
            sock.close()
        for place in (self.gateway, self.local):
            place.close()
        self.segments.close()
        os.close(self.pair)
