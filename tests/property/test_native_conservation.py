"""Credit, drop_oldest, hand-back, expiry and lost flows in any order: every message is somewhere, or ended once.

A model beside two real ports; after every step the audit balances and each accepted message is in one place.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fabric import _native, errors
from tests.unit.native.pair import (
    AT_LEAST_ONCE,
    AT_MOST_ONCE,
    BLOCK,
    DELIVERED,
    DROP_OLDEST,
    DROPPED,
    FAILED,
    QUEUE,
    audit,
    pair,
)

pytestmark = pytest.mark.promise("P1")

WINDOW, SLOTS = 6, 16
CLOSED, CONSUMER_ERROR = 10, 5


class Conservation(RuleBasedStateMachine):
    """One sender, receivers that come and go; `delivery` and `overflow` are a subclass's."""

    delivery = AT_LEAST_ONCE
    overflow = BLOCK

    def __init__(self) -> None:
        super().__init__()
        self._context = pair()
        self.joined = self._context.__enter__()
        self.out = self.joined.sender(pattern=QUEUE, delivery=self.delivery)
        self.joined.segment(slot_bytes=8192, slots=SLOTS)
        self.receivers: dict[int, Any] = {}  # flow → receiver
        self.views: dict[tuple[int, int], Any] = {}  # (flow, flow_seq) → handed, not ended
        self.held: list[Any] = []  # ended, their slots still read
        self.accepted = self.acked = self.refused = 0
        self.next_endpoint = 100
        self.open()

    def teardown(self) -> None:
        self._context.__exit__(None, None, None)

    # ---------------------------------------------------------------- what may happen
    @precondition(lambda self: len(self.receivers) < 3)
    @rule()
    def open(self) -> None:
        self.next_endpoint += 1
        receiver = self.joined.receiver(
            self.next_endpoint, pattern=QUEUE, delivery=self.delivery, overflow=self.overflow
        )
        flow = self.joined.flow(receiver=self.next_endpoint, messages=WINDOW, bytes_=20_000)
        self.receivers[flow] = receiver

    @rule(size=st.sampled_from([0, 100, 3000, 6000]), late=st.booleans())
    def send(self, size: int, late: bool) -> None:
        expires = _native.monotonic_ns() + 1 if late else 0  # expired by the time it is looked at
        tensors = [b"x" * size] if size > 4000 else []
        meta = b"" if tensors else b"m" * size
        try:
            self.out.send(meta, tensors, None, 0, expires_ns=expires)
            self.accepted += 1
        except (errors.WouldBlock, _native.NeedSegment):
            return

    @precondition(lambda self: bool(self.receivers))
    @rule(data=st.data(), count=st.integers(1, 4))
    def receive(self, data: st.DataObject, count: int) -> None:
        flow = data.draw(st.sampled_from(sorted(self.receivers)))
        for message in self.receivers[flow].receive_many(count, 0):
            key = (message.flow, message.flow_seq)
            assert key not in self.views, "handed twice"
            assert message.flow == flow
            if self.delivery == AT_LEAST_ONCE:
                self.views[key] = message
            else:
                self.acked += 1
                self.held.append(message)

    @precondition(lambda self: bool(self.views))
    @rule(data=st.data(), good=st.booleans(), keep=st.booleans())
    def end(self, data: st.DataObject, good: bool, keep: bool) -> None:
        message = self.views.pop(data.draw(st.sampled_from(sorted(self.views))))
        if good:
            message.ack()
            self.acked += 1
        else:
            message.nack(CONSUMER_ERROR)
            self.refused += 1
        if keep:
            self.held.append(message)

    @precondition(lambda self: bool(self.held))
    @rule()
    def release(self) -> None:
        self.held.pop().release()

    @rule()
    def progress(self) -> None:
        self.joined.b.port.progress()
        self.joined.a.port.progress()

    @precondition(lambda self: bool(self.receivers))
    @rule(data=st.data(), hand_back=st.booleans(), settle=st.booleans())
    def close(self, data: st.DataObject, hand_back: bool, settle: bool) -> None:
        """As the daemon does it: close, what is handed may still end, then the flow is lost to its sender."""
        flow = data.draw(st.sampled_from(sorted(self.receivers)))
        self.receivers.pop(flow).close(hand_back=hand_back)
        self.check()
        for key in [key for key in self.views if key[0] == flow]:
            message = self.views.pop(key)
            if settle or not hand_back:
                message.ack()
                self.acked += 1
        self.check()
        self.joined.b.port.progress()
        rows = {row["flow"]: row for row in _native.inspect_state(self.joined.b.state)["flows"]}
        self.joined.a.port.close_flow_out(flow)
        self.check()
        self.joined.a.port.lose_flow_out(flow, rows[flow]["handed"], CLOSED)
        self.check()
        self.joined.b.port.close_flow_in(flow, False)

    # ---------------------------------------------------------------- what must hold
    @invariant()
    def check(self) -> None:
        report = audit(self.joined)
        assert report["differences"] == []
        counts = report["channels"].get("#7", {"accepted": 0, "in_flight": 0})
        assert counts["accepted"] == self.accepted
        ended = counts["accepted"] - counts["in_flight"]
        told = counts.get("delivered", 0)
        told += sum(counts.get("dropped", {}).values()) + sum(counts.get("failed", {}).values())
        assert ended == told

    @invariant()
    def ends_are_those_that_happened(self) -> None:
        counts = self.out.counts()
        assert counts.get((DELIVERED, 0), 0) <= self.acked
        assert counts.get((FAILED, CONSUMER_ERROR), 0) <= self.refused
        if self.overflow == BLOCK:
            assert (DROPPED, 2) not in counts

    @invariant()
    def what_is_out_never_exceeds_the_windows(self) -> None:
        for flow in self.out.flows():
            slack = (
                WINDOW if self.overflow == DROP_OLDEST else 0
            )  # the newest may give its credit back early
            assert flow["outstanding"] <= WINDOW + slack

    @rule()
    def everything_ends_once_all_is_read_and_acknowledged(self) -> None:
        if not self.receivers:
            self.open()
        for _ in range(40):
            for flow in list(self.receivers):
                for message in self.receivers[flow].receive_many(64, 0):
                    if self.delivery == AT_LEAST_ONCE:
                        message.ack()
                    self.acked += 1
                    message.release()
            for key in list(self.views):
                self.views.pop(key).ack()
                self.acked += 1
            while self.held:
                self.held.pop().release()
            self.progress()
            if self.out.ended_upto() >= self.accepted:
                break
        counts = self.out.counts()
        assert sum(counts.values()) == self.accepted
        assert counts.get((DELIVERED, 0), 0) == self.acked
        self.check()
        stats = self.joined.b.port.stats()
        assert stats["held"] == 0 and self.joined.b.port.views() == []


class DropOldest(Conservation):
    """Nobody has to read for the sender to go on."""

    delivery = AT_MOST_ONCE
    overflow = DROP_OLDEST

    @precondition(lambda self: bool(self.receivers))
    @rule()
    def flood(self) -> None:
        for _ in range(3 * WINDOW):
            self.progress()
            self.out.send(b"flood", [], None, 0)
            self.accepted += 1


class AtMostOnce(Conservation):
    """Ends at the hand-over; a close fails what was not handed."""

    delivery = AT_MOST_ONCE


_SETTINGS = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestConservation = Conservation.TestCase
TestDropOldest = DropOldest.TestCase
TestAtMostOnce = AtMostOnce.TestCase
TestConservation.settings = TestDropOldest.settings = TestAtMostOnce.settings = _SETTINGS
