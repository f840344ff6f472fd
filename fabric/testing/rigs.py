"""Rigs: two native ports joined by one kind of link, as a daemon would set them up, without a daemon.

`ShmRig` joins them by a direct lane; `EngineRig` by a lane to an engine on each side and a session between the engines,
over in-process queues or loopback TCP. A rig owns every fd it made; `close()` ends threads first. One test at a time.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from fabric import _native

SENDER_NODE: Final = 1
RECEIVER_NODE: Final = 2
WINDOW_MESSAGES: Final = 64
WINDOW_BYTES: Final = 128 << 20
KLASS_BULK: Final = 3
AT_LEAST_ONCE: Final = 1
AT_MOST_ONCE: Final = 0
WAIT_S: Final = 20.0

_incarnations = iter(range(1_000, 1 << 40))


@dataclass
class Place:
    """The shared parts of one port: state, doorbell and eventfd, and its number."""

    port: int
    incarnation: int = field(default_factory=lambda: next(_incarnations))

    def __post_init__(self) -> None:
        self.state = _native.create_state(self.port, self.incarnation, os.getuid())
        self.doorbell = _native.create_doorbell()
        self.event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def close(self) -> None:
        """Close the fds; mappings made from them live on."""
        for fd in (self.state, self.doorbell, self.event):
            os.close(fd)

    def open_port(self) -> _native.Port:
        """Attach a port here."""
        return _native.Port(self.port, self.incarnation, self.state, self.doorbell, self.event)


class Segments:
    """Every arena segment of a rig by number, whoever owns it."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}
        self._next = 1
        self._lock = threading.Lock()

    def create(self, owner: Place, slot_bytes: int, slots: int) -> tuple[int, int]:
        """Return (number, fd) of a fresh, unsealed segment."""
        with self._lock:
            number = self._next
            self._next += 1
            size = max(4096, -(-slot_bytes // 4096) * 4096)
            fd = _native.create_segment(
                number, owner.port, owner.incarnation, os.getuid(), size, slots
            )
            self._fds[number] = fd
            return number, fd

    def fd(self, number: int) -> int:
        """The fd of a segment."""
        return self._fds[number]

    def close(self) -> None:
        """Close every fd."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def join(places: tuple[Place, Place], ends: tuple[Any, Any], lane: int, klass: int) -> int:
    """Make lane `lane` between two ports (or engines) and return its fd; the smaller port id is side 0."""
    low, high = sorted(places, key=lambda place: place.port)
    pair = _native.create_lane_pair(klass, low.port, low.incarnation, high.port, high.incarnation)
    for mine, end in zip(places, ends, strict=True):
        other = high if mine is low else low
        side = 0 if mine is low else 1
        end.add_lane(
            lane, pair, side, klass, other.port, other.incarnation, other.doorbell, other.event
        )
    return pair


class Rig(ABC):
    """Two attached ports, `sender` and `receiver`, and the flows between them.

    Subclasses give the path; everything a daemon would answer (segments, growth, flows) is answered here.
    """

    name: str
    can_cut = False

    def __init__(self) -> None:
        self.segments = Segments()
        self.sender_place = Place(SENDER_NODE << 32 | 2)
        self.receiver_place = Place(RECEIVER_NODE << 32 | 2)
        self.sender_port = self.sender_place.open_port()
        self.receiver_port = self.receiver_place.open_port()
        self._counter = 0
        self.pairs: list[int] = []

    # ---- what a link provides
    @abstractmethod
    def route_flow(self, flow: int) -> tuple[int, int]:
        """Set the path of `flow` up; return the lane numbers at the sender's and the receiver's port."""

    def cut(self) -> None:
        """Break every connection of the path and bring it back."""
        raise NotImplementedError(f"{self.name} has no connection to cut")

    # ---- flows
    def open_flow(
        self,
        *,
        delivery: int = AT_LEAST_ONCE,
        messages: int = WINDOW_MESSAGES,
        byte_window: int = WINDOW_BYTES,
    ) -> Flow:
        """Open a sender and a receiver joined by one flow."""
        self._counter += 1
        n = self._counter
        flow = Flow(self, n, SENDER_NODE << 48 | n, delivery)
        lane_out, lane_in = self.route_flow(flow.number)
        # The receiving side exists before anything can be sent.
        self.receiver_port.add_flow_in(
            flow.target, flow.number, lane_in, self.sender_place.port, messages, byte_window
        )
        self.sender_port.add_flow_out(
            flow.source, flow.number, lane_out, flow.target, messages, byte_window, 1, False
        )
        return flow

    def grow_sender(self, slot_bytes: int, group: int) -> None:
        """Give the sending port a segment of that slot size for a class group, sealed after it mapped it."""
        number, fd = self.segments.create(
            self.sender_place, slot_bytes, 8 if slot_bytes < 1 << 24 else 2
        )
        self.sender_port.add_segment(number, fd, True, group)
        _native.seal_segment(fd)

    def show_receiver(self, segment: int) -> None:
        """Map a segment for reading at the receiving port."""
        self.receiver_port.add_segment(segment, self.segments.fd(segment), False)

    def lanes_at_rest(self) -> bool:
        """True when no record lies in any lane of this rig."""
        for fd in self.pairs:
            for direction in (0, 1):
                lane = _native.inspect_lane(fd, direction)
                if lane["records"] or lane["returns"]:
                    return False
        return True

    def close(self) -> None:
        """Close ports, then fds."""
        self.sender_port.close()
        self.receiver_port.close()
        for place in (self.sender_place, self.receiver_place):
            place.close()
        for fd in self.pairs:
            os.close(fd)
        self.segments.close()


class Flow:
    """One sender and one receiver, and the calls a client library makes around them."""

    def __init__(self, rig: Rig, n: int, number: int, delivery: int) -> None:
        self.rig, self.number = rig, number
        self.source = SENDER_NODE << 32 | n
        self.target = RECEIVER_NODE << 32 | n
        self.sender = rig.sender_port.open_sender(self.source, n, 7, 0, delivery, KLASS_BULK)
        self.receiver = rig.receiver_port.open_receiver(self.target, n, 7, 0, delivery)

    def send(
        self, payload: bytes, *, meta: bytes = b"m", wait_s: float = WAIT_S, expires_ns: int = 0
    ) -> int:
        """Send one tensor of bytes; serves NeedSegment."""
        deadline = _native.monotonic_ns() + int(wait_s * 1e9)
        while True:
            try:
                return self.sender.send(meta, [payload], None, deadline, expires_ns=expires_ns)
            except _native.NeedSegment as need:
                self.rig.grow_sender(need.args[0], need.args[2])

    def receive(self, wait_s: float = WAIT_S) -> _native.Message | None:
        """Next message or None at the deadline."""
        return self.receiver.receive(_native.monotonic_ns() + int(wait_s * 1e9))

    def payload(self, message: _native.Message, size: int) -> bytes:
        """The tensor's bytes; serves NeedSegment."""
        while True:
            try:
                return bytes(message.tensor(0, "uint8", [size]).data)
            except _native.NeedSegment as need:
                self.rig.show_receiver(need.args[1])

    def settle(self, wait_s: float = WAIT_S) -> bool:
        """Wait until nothing is outstanding."""
        return self.sender.flush(_native.monotonic_ns() + int(wait_s * 1e9))


class ShmRig(Rig):
    """A direct lane: one hop, no engine."""

    name = "shm"

    def __init__(self) -> None:
        super().__init__()
        places = (self.sender_place, self.receiver_place)
        self.pairs.append(join(places, (self.sender_port, self.receiver_port), 1, KLASS_BULK))

    def route_flow(self, flow: int) -> tuple[int, int]:
        return 1, 1


class EngineRig(Rig):
    """Two engines and a session between them; a thread answers their events as a daemon does."""

    can_cut = True
    groups: tuple[int, ...] = (0, 1)  #: of the connections, rail × 2 + kind

    def __init__(self) -> None:
        super().__init__()
        self.session = 0x5E5510
        self._flows: list[int] = []
        self._arenas: tuple[list[int], list[int]] = ([], [])
        self._answering = threading.Lock()
        self._poll = select.poll()
        self.gateways = (Place(SENDER_NODE << 32 | 1), Place(RECEIVER_NODE << 32 | 1))
        self.engines = [
            _native.Engine(p.port, p.incarnation, p.state, p.doorbell, p.event)
            for p in self.gateways
        ]
        self.pairs.append(
            join(
                (self.sender_place, self.gateways[0]),
                (self.sender_port, self.engines[0]),
                1,
                KLASS_BULK,
            )
        )
        self.pairs.append(
            join(
                (self.receiver_place, self.gateways[1]),
                (self.receiver_port, self.engines[1]),
                1,
                KLASS_BULK,
            )
        )
        for mine, engine in enumerate(self.engines):
            other = self.gateways[1 - mine]
            engine.open_session(self.session, other.port >> 32, other.incarnation)
            engine.start()
        self.events: list[tuple[int, dict[str, Any]]] = []
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for fd in (self._stop, *(engine.event_fd() for engine in self.engines)):
            self._poll.register(fd, select.POLLIN)
        self._thread = threading.Thread(target=self._serve, name="rig-events", daemon=True)
        self._thread.start()
        self.connect()

    def route_flow(self, flow: int) -> tuple[int, int]:
        self._flows.append(flow)
        self.engines[1].add_deliver(flow, 1, self.session)
        self.engines[0].add_forward(flow, 1, self.session)
        return 1, 1

    @abstractmethod
    def connect_group(self, group: int) -> None:
        """Join both engines by one fresh connection."""

    def connect(self) -> None:
        """Bring up every connection."""
        for group in self.groups:
            self.connect_group(group)

    def cut(self) -> None:
        for group in self.groups:
            self.engines[group % 2].inject("drop_connection", group)
            self.connect_group(group)

    def _serve(self) -> None:
        while True:
            ready = [fd for fd, _ in self._poll.poll(1000)]
            if self._stop in ready:
                return
            with self._answering:
                for side, engine in enumerate(self.engines):
                    for event in engine.events():
                        self.events.append((side, event))
                        self._answer(side, engine, event)

    def _answer(self, side: int, engine: _native.Engine, event: dict[str, Any]) -> None:
        if event["event"] == "need_segment":
            engine.add_segment(event["segment"], self.segments.fd(event["segment"]), False)
        elif event["event"] == "grow":
            size = event["slot_bytes"]
            number, fd = self.segments.create(self.gateways[side], size, 8 if size < 1 << 24 else 2)
            engine.add_segment(number, fd, True)  # not sealed: a successor maps it again
            self._arenas[side].append(number)

    def restart(self, side: int) -> None:
        """Kill one engine as a daemon's death does, and bring up its successor over the same shared state."""
        with self._answering:
            self._restart(side)
        for group in self.groups:
            self.connect_group(group)

    def _restart(self, side: int) -> None:
        self.engines[side].stop(0)
        place = self.gateways[side]
        fresh = _native.Engine(
            place.port, place.incarnation, place.state, place.doorbell, place.event
        )
        local = self.sender_place if side == 0 else self.receiver_place
        fresh.add_lane(
            1,
            self.pairs[side],
            0,
            KLASS_BULK,
            local.port,
            local.incarnation,
            local.doorbell,
            local.event,
        )
        for number in self._arenas[side]:
            fresh.add_segment(number, self.segments.fd(number), True)
        fresh.start()
        self._poll.unregister(self.engines[side].event_fd())
        self._poll.register(fresh.event_fd(), select.POLLIN)
        self.engines[side] = fresh
        self.session += 1
        for mine, engine in enumerate(self.engines):
            if mine != side:
                engine.close_session(self.session - 1)
            engine.open_session(
                self.session, self.gateways[1 - mine].port >> 32, next(_incarnations)
            )
        drained = {
            row["flow"]: row["drained"]
            for row in _native.inspect_state(self.receiver_place.state)["flows"]
        }
        for flow in self._flows:
            self.engines[1].add_deliver(flow, 1, self.session, drained.get(flow, 0))
            self.engines[0].add_forward(flow, 1, self.session)

    def close(self) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        for engine in self.engines:
            engine.stop(0)
        super().close()
        for place in self.gateways:
            place.close()
        os.close(self._stop)


class InprocRig(EngineRig):
    """Engines joined by in-process queues."""

    name = "inproc"

    def connect_group(self, group: int) -> None:
        for engine, link in zip(self.engines, _native.inproc_pair(), strict=True):
            engine.add_inproc(self.session, link, group)


class TcpRig(EngineRig):
    """Engines joined by loopback TCP."""

    name = "tcp"

    def connect_group(self, group: int) -> None:
        for engine, sock in zip(self.engines, connected_pair(), strict=True):
            engine.add_connection(self.session, sock.detach(), group)


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a fresh loopback connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname(), timeout=5)
        two, _ = server.accept()
    return one, two


class RailsRig(TcpRig):
    """Engines joined by two rails of loopback TCP."""

    name = "rails"
    groups = (0, 1, 2, 3)


RIGS: Final[dict[str, type[Rig]]] = {rig.name: rig for rig in (ShmRig, InprocRig, TcpRig, RailsRig)}


@contextlib.contextmanager
def rig(name: str) -> Iterator[Rig]:
    """Open the rig called `name` and close it at the end."""
    opened = RIGS[name]()
    try:
        yield opened
    finally:
        opened.close()
