"""Lane ring, return ring, slot generations and credit against models, through two real ports."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fabric import _native, errors
from tests.unit.native.pair import AT_LEAST_ONCE, DELIVERED, FAILED, Pair, pair, soon

pytestmark = pytest.mark.promise("P1")

WINDOW = 8
LANE_BYTES = 256 * 1024
SLOTS = 6


class _Joined(RuleBasedStateMachine):
    """Two ports, closed at the end of a run."""

    joined: Pair

    def __init__(self) -> None:
        super().__init__()
        self._context = pair()
        self.joined = self._context.__enter__()

    def teardown(self) -> None:
        self._context.__exit__(None, None, None)


class LaneRing(_Joined):
    """What goes in comes out once, in order, whatever the sizes and however full the ring."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.inn = self.joined.sender(), self.joined.receiver()
        self.joined.flow(messages=1 << 20, bytes_=1 << 40)
        self.sent: deque[bytes] = deque()
        self.count = 0

    @rule(sizes=st.lists(st.integers(0, 4000), min_size=1, max_size=40))
    def send(self, sizes: list[int]) -> None:
        for size in sizes:
            meta = b"%d:" % self.count + os.urandom(8).hex().encode()[:4] * (size // 4)
            try:
                self.out.send(meta[:4080], [], None, 0)
            except errors.WouldBlock:
                lane = _native.inspect_lane(self.joined.lane_fd, 0)
                table_full = (
                    self.count - _native.inspect_state(self.joined.a.state)["ledgers"][0]["tail"]
                    >= 2047
                )
                assert table_full or lane["head"] - lane["tail"] > LANE_BYTES - 2 * 8192
                return
            self.sent.append(meta[:4080])
            self.count += 1

    @rule(count=st.integers(1, 60))
    def receive(self, count: int) -> None:
        expected = min(count, len(self.sent))
        got = self.inn.receive_many(count, 0)
        assert [m.meta for m in got] == [self.sent.popleft() for _ in range(expected)]

    @invariant()
    def cursors_are_true(self) -> None:
        lane = _native.inspect_lane(self.joined.lane_fd, 0)
        assert 0 <= lane["head"] - lane["tail"] <= LANE_BYTES


class Returns(_Joined):
    """Ends in any order settle exactly what was acknowledged; every place agrees with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.out = self.joined.sender(delivery=AT_LEAST_ONCE)
        self.inn = self.joined.receiver(delivery=AT_LEAST_ONCE)
        self.flow = self.joined.flow(messages=64)
        self.taken: dict[int, Any] = {}
        self.sent = self.acked = self.refused = 0

    @precondition(lambda self: self.sent - self.acked - self.refused < 60)
    @rule()
    def send(self) -> None:
        try:
            self.out.send(b"", [], None, 0)
            self.sent += 1
        except errors.WouldBlock:
            assert (
                self.sent - self.acked - self.refused > 0
            )  # credit is held back by half a window at most

    @rule(count=st.integers(1, 10))
    def receive(self, count: int) -> None:
        for message in self.inn.receive_many(count, 0):
            self.taken[message.sequence] = message

    @precondition(lambda self: bool(self.taken))
    @rule(data=st.data(), good=st.booleans())
    def end(self, data: st.DataObject, good: bool) -> None:
        message = self.taken.pop(data.draw(st.sampled_from(sorted(self.taken))))
        if good:
            message.ack()
            self.acked += 1
        else:
            message.nack(5)
            self.refused += 1

    @rule()
    def settle(self) -> None:
        counts = self.out.counts()
        assert counts.get((DELIVERED, 0), 0) == self.acked
        assert counts.get((FAILED, 5), 0) == self.refused

    @invariant()
    def every_live_message_is_in_one_place(self) -> None:
        lane = _native.inspect_lane(self.joined.lane_fd, 0)
        state = _native.inspect_state(self.joined.b.state)
        in_lane = {seq for _, seq, _, _ in lane["records"]}
        held = [row["flow_seq"] for row in state["held"]]
        on_way = {
            s for kind, _, a, b, _, _ in lane["returns"] if kind == 1 for s in range(a, b + 1)
        }
        assert len(held) == len(set(held)) and not in_lane & set(held) and not on_way & set(held)
        ledger = _native.inspect_state(self.joined.a.state)["ledgers"][0]
        live = {row["flow_seq"] for row in ledger["outstanding"] if row["state"] == "accepted"}
        assert live == in_lane | set(held) | on_way


class SlotGenerations(_Joined):
    """A view shows the bytes that were sent until it is released, and is refused afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.inn = self.joined.sender(), self.joined.receiver()
        self.joined.flow()
        self.joined.segment(slot_bytes=8192, slots=SLOTS)
        self.fill = 0
        self.queued: deque[int] = deque()
        self.views: list[tuple[Any, Any, int]] = []
        self.released: list[Any] = []
        self.loans: list[Any] = []

    def in_use(self) -> int:
        return len(self.queued) + len(self.views) + len(self.loans)

    @rule()
    def send(self) -> None:
        self.fill = (self.fill + 1) % 251
        try:
            self.out.send(b"", [bytes([self.fill]) * 6000], None, 0)
            self.queued.append(self.fill)
            assert self.in_use() <= SLOTS
        except _native.NeedSegment:
            assert self.in_use() == SLOTS

    @rule()
    def lend(self) -> None:
        try:
            loan = self.out.loan([6000])
        except _native.NeedSegment:
            assert self.in_use() == SLOTS
            return
        loan.tensor(0)[:] = b"\xff" * 6000
        self.loans.append(loan)

    @precondition(lambda self: bool(self.loans))
    @rule(send=st.booleans())
    def end_loan(self, send: bool) -> None:
        loan = self.loans.pop()
        if send:
            self.out.send_loan(loan, b"", None, 0)
            self.queued.append(255)
        else:
            loan.discard()

    @rule()
    def receive(self) -> None:
        message = self.inn.receive(0)
        assert (message is not None) == bool(self.queued)
        if message is not None:
            self.views.append((message, message.tensor(0, "uint8", (6000,)), self.queued.popleft()))

    @precondition(lambda self: bool(self.views))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        message, _, _ = self.views.pop(data.draw(st.integers(0, len(self.views) - 1)))
        message.release()
        self.released.append(message)

    @invariant()
    def views_hold_what_was_sent(self) -> None:
        for _, array, fill in self.views:
            assert array[0] == fill and array[-1] == fill

    @invariant()
    def released_messages_yield_nothing(self) -> None:
        for message in self.released[-3:]:
            with pytest.raises(errors.StaleHandleError):
                message.tensor(0, "uint8", (6000,))


class Credit(_Joined):
    """Never more out than granted; a drained receiver always lets the sender go on."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.inn = self.joined.sender(), self.joined.receiver()
        self.joined.flow(messages=WINDOW, bytes_=4000)
        self.out_messages: deque[int] = deque()

    @rule(size=st.integers(0, 3900))
    def send(self, size: int) -> None:
        try:
            self.out.send(b"x" * size, [], None, 0)
        except errors.WouldBlock:
            flow = self.out.flows()[0]
            assert flow["outstanding"] > 0 or flow["credit_messages"] == 0
            return
        self.out_messages.append(size)
        assert len(self.out_messages) <= WINDOW
        assert len(self.out_messages) == 1 or sum(self.out_messages) <= 4000

    @rule()
    def receive(self) -> None:
        message = self.inn.receive(0)
        assert (message is not None) == bool(self.out_messages)
        if message is not None:
            assert len(message.meta) == self.out_messages.popleft()

    @rule(size=st.integers(0, 3900))
    def drain_then_send(self, size: int) -> None:
        while self.inn.receive(0) is not None:
            self.out_messages.popleft()
        self.out.send(b"x" * size, [], None, soon())
        self.out_messages.append(size)


_SETTINGS = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLaneRing = LaneRing.TestCase
TestReturns = Returns.TestCase
TestSlotGenerations = SlotGenerations.TestCase
TestCredit = Credit.TestCase
TestLaneRing.settings = TestReturns.settings = TestSlotGenerations.settings = (
    TestCredit.settings
) = _SETTINGS
