"""A stream that must be acknowledged, over everything that may happen to its flows, against a model.

Consumers come (beside the others, or after them), close and hand back, die, fall silent and wake, read, acknowledge or
not, have credit for few messages and for few bytes. At every moment: the messages of a key, as consumers are handed
them, are in order (what is handed again may go back, flagged, but never past what was acknowledged), a repeat is
flagged, nothing is handed before its elders of the same key have been handed, and the audit balances. In the end
everything is delivered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fabric import _native, errors
from fabric.controlplane import audit
from tests.unit.native.pair import AT_LEAST_ONCE, DELIVERED, Attached, soon

pytestmark = pytest.mark.promise("P1")

KEYS = (None, b"a", b"b", b"c", b"d")
CLOSED, PEER_LOST = 10, 6
SEGMENT = 1


@dataclass
class Consumer:
    """A port of its own with one receiver, its flow, and the messages it was handed and has not acknowledged."""

    place: Attached
    lane_fd: int
    lane: int
    flow: int
    inn: Any
    taken: list[Any] = field(default_factory=list)
    is_suspect: bool = False
    is_retired: bool = False  # its flow takes nothing new


class Redelivery(RuleBasedStateMachine):
    """One sender, up to four consumers."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Attached.open(100)
        self.out = self.place.port.open_sender(11, 7, 99, 0, AT_LEAST_ONCE, 1)
        fd = _native.create_segment(SEGMENT, 100, 1, 0, 1 << 13, 512)
        self.place.port.add_segment(SEGMENT, fd, True)
        self.place.fds.append(fd)
        self.segment = fd
        self.consumers: list[Consumer] = []
        self.count = 1
        self.sent: dict[bytes | None, list[int]] = {key: [] for key in KEYS}
        self.acked: set[int] = set()
        self.handed: set[int] = set()
        self.come(False, 4, 1 << 20)

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            for consumer in self.consumers:
                consumer.place.close()
            self.place.close()

    # ---------------------------------------------------------------- consumers
    @precondition(lambda self: len(self.consumers) < 4)
    @rule(after=st.booleans(), messages=st.integers(2, 8), size=st.sampled_from([3000, 1 << 20]))
    def come(self, after: bool, messages: int, size: int) -> None:
        """A consumer joins; after_drain: the others close, as when the targets of a stream change."""
        self.count += 1
        n = self.count
        place = Attached.open(100 + n)
        lane = _native.create_lane_pair(1, 100, 1, 100 + n, 1)
        place.fds.append(lane)
        self.place.port.add_lane(n, lane, 0, 1, 100 + n, 1, place.doorbell, place.event)
        place.port.add_lane(n, lane, 1, 1, 100, 1, self.place.doorbell, self.place.event)
        place.port.add_segment(SEGMENT, self.segment, False)
        inn = place.port.open_receiver(n, 7, 99, 0, AT_LEAST_ONCE)
        place.port.add_flow_in(n, n, n, 100, messages, size)
        old = [c for c in self.consumers if not c.is_retired]
        self.consumers.append(Consumer(place, lane, n, n, inn))
        self.place.port.add_flow_out(11, n, n, n, messages, size, n, after)
        for consumer in old if after else ():
            consumer.is_retired = True
            self.place.port.close_flow_out(consumer.flow)

    def pick(self, data: st.DataObject) -> Consumer:
        return self.consumers[data.draw(st.integers(0, len(self.consumers) - 1))]

    @precondition(lambda self: len(self.consumers) > 1)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """Its process is dead: what it had is sent again."""
        self.lose(self.pick(data), PEER_LOST)

    @precondition(lambda self: len(self.consumers) > 1)
    @rule(data=st.data())
    def hand_back(self, data: st.DataObject) -> None:
        """It closes: what it did not hand over goes elsewhere, its views keep their slots until then."""
        consumer = self.pick(data)
        consumer.inn.close(hand_back=True)
        self.lose(consumer, CLOSED)

    def lose(self, consumer: Consumer, reason: int) -> None:
        self.consumers.remove(consumer)
        rows = _native.inspect_state(consumer.place.state)["flows"]
        handed = next((row["handed"] for row in rows if row["flow"] == consumer.flow), 0)
        self.place.port.lose_flow_out(consumer.flow, handed, reason)
        consumer.taken.clear()
        consumer.place.close()
        self.place.port.remove_lane(consumer.lane)

    @rule(data=st.data())
    def fall_silent_or_wake(self, data: st.DataObject) -> None:
        consumer = self.pick(data)
        consumer.is_suspect = not consumer.is_suspect
        self.place.port.suspect_flow(consumer.flow, consumer.is_suspect)

    # ---------------------------------------------------------------- messages
    @rule(key=st.sampled_from(KEYS), size=st.sampled_from([0, 1500, 5000]), times=st.integers(1, 4))
    def send(self, key: bytes | None, size: int, times: int) -> None:
        for _ in range(times):
            try:
                number = self.out.send(b"m", [b"x" * size], key, 0)
            except errors.WouldBlock:
                return
            self.sent[key].append(number)

    @rule(data=st.data(), count=st.integers(1, 6))
    def receive(self, data: st.DataObject, count: int) -> None:
        self.take(self.pick(data), count)

    def take(self, consumer: Consumer, count: int) -> None:
        for message in consumer.inn.receive_many(count, 0):
            number, key = message.sequence, message.key
            elders = self.sent[key][: self.sent[key].index(number)]
            assert number not in self.acked, "an acknowledged message came again"
            assert message.redelivered or number not in self.handed, "a repeat is not flagged"
            assert self.handed.issuperset(elders), f"{number} of {key!r} overtook its elders"
            elsewhere = {m.sequence for c in self.consumers if c is not consumer for m in c.taken}
            assert elsewhere.isdisjoint(elders), "its key is still with another consumer"
            self.handed.add(number)
            consumer.taken.append(message)

    @rule(data=st.data(), count=st.integers(1, 6))
    def acknowledge(self, data: st.DataObject, count: int) -> None:
        """In order, as a consumer of a stream does."""
        consumer = self.pick(data)
        for message in consumer.taken[:count]:
            message.ack()
            message.release()
            self.acked.add(message.sequence)
        del consumer.taken[:count]

    # ---------------------------------------------------------------- checks
    @invariant()
    def audit_balances(self) -> None:
        places = [self.place, *(c.place for c in self.consumers)]
        ports = [{**_native.inspect_state(p.state), "is_alive": True} for p in places]
        lanes = [
            {"lane": c.lane, "directions": [_native.inspect_lane(c.lane_fd, s) for s in (0, 1)]}
            for c in self.consumers
        ]
        report = audit.compare([{"node": "a", "ports": ports, "lanes": lanes}])
        assert report["balanced"], report["differences"]

    def settle(self) -> None:
        """Everybody wakes, reads and acknowledges: nothing may be left."""
        for consumer in self.consumers:
            self.place.port.suspect_flow(consumer.flow, False)
        if all(c.is_retired for c in self.consumers):
            self.come(True, 8, 1 << 20)
        until = soon(5)
        while not self.out.flush(0):
            assert _native.monotonic_ns() < until, self.out.flows()
            for consumer in self.consumers:
                self.take(consumer, 100)
                for message in consumer.taken:
                    message.ack()
                    message.release()
                    self.acked.add(message.sequence)
                consumer.taken.clear()
                consumer.place.port.progress()
        everything = {number for numbers in self.sent.values() for number in numbers}
        assert self.acked == everything
        assert self.out.counts() == ({(DELIVERED, 0): len(everything)} if everything else {})
        for consumer in self.consumers:
            consumer.place.port.progress()
        self.place.port.progress()
        assert self.place.port.stats()["slots_taken"] == 0


TestRedelivery = Redelivery.TestCase
TestRedelivery.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
