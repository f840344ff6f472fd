"""All ways to use a port at once, on one channel, in any order: each accepted message arrives whole, and ends once.

Threads that wait, an event loop, batches and loans share both ports. The model counts what was accepted and what came.
What may happen next depends on no thread's progress, so that a failure is found again.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import fabric
from fabric import aio, errors
from fabric.testing.local import LocalFabric
from tests.conformance.uses import (
    AsyncioLoanedOut,
    BatchedIn,
    BatchedOut,
    Blocking,
    Got,
    In,
    LoanedOut,
    Loop,
    Out,
)
from tests.conformance.uses_content import Plain
from tests.conformance.uses_places import Direct, until

pytestmark = pytest.mark.promise("P1")

WINDOW = 6
WAITING_MAX = 3
WAIT_S = 20.0
SENDING = ("one", "batch", "loan", "loop", "loop batch", "loop loan")
RECEIVING = ("one", "batch", "loop", "loop batch")
SIZES = (8, 100, 4088, 4089, 20_000)
_no_room = (errors.WouldBlock, errors.DeadlineExceeded)


def value_of(number: int, size: int) -> bytes:
    return number.to_bytes(8, "little") + bytes([number % 256]) * (size - 8)


class MixedUses(RuleBasedStateMachine):
    """`left` sends, `right` receives; `wait` is how their threads wait."""

    wait = "adaptive"

    def __init__(self) -> None:
        super().__init__()
        self.node = LocalFabric()
        self.place = Direct(self.node)
        self.loop = Loop("mixed")
        self.left = fabric.attach("left", self.node.path, wait=self.wait)
        self.right = fabric.attach("right", self.node.path, wait=self.wait)
        self.left.declare("c", bytes, pattern="queue", delivery="at_least_once")
        sender = self.left.sender("c", bytes)
        receiver = self.right.receiver("c", bytes, messages=WINDOW)
        self.faces = self.loop.run(self._faces())
        awaited = Blocking(aio.Sender(sender, self.faces[0]._waiter), self.loop)
        self.out = Out(sender, Plain)
        self.outs = dict(zip(SENDING, (
            self.out, BatchedOut(sender, Plain), LoanedOut(sender, Plain),
            Out(awaited, Plain), BatchedOut(awaited, Plain), AsyncioLoanedOut(awaited, Plain),
        ), strict=True))  # fmt: skip
        listening = Blocking(aio.Receiver(receiver, self.faces[1]._waiter, self.right), self.loop)
        self.inns = dict(zip(RECEIVING, (
            In(receiver, Plain), BatchedIn(receiver, Plain), In(listening, Plain), BatchedIn(listening, Plain),
        ), strict=True))  # fmt: skip
        until("the flow", lambda: self.out.flow_count() == 1)
        self.numbers = itertools.count()
        self.lock = threading.Lock()
        self.accepted: dict[int, bytes] = {}
        self.came: Counter[int] = Counter()
        self.held: list[tuple[int, Got]] = []
        self.acked = self.refused = 0
        self.senders: list[threading.Thread] = []
        self.receivers: list[threading.Thread] = []

    async def _faces(self) -> list[aio.Port]:
        return [aio.Port(self.left), aio.Port(self.right)]

    def teardown(self) -> None:
        try:
            self.all_of_it_ends()
        finally:
            for face in self.faces:
                self.loop.run(face.close())
            self.loop.close()
            self.node.close()

    # ---------------------------------------------------------------- what may happen
    @rule(
        way=st.sampled_from(SENDING), count=st.integers(1, 2 * WINDOW), size=st.sampled_from(SIZES)
    )
    def send(self, way: str, count: int, size: int) -> None:
        self._send(way, count, size, 0.0)

    @rule(
        way=st.sampled_from(SENDING), count=st.integers(1, 2 * WINDOW), size=st.sampled_from(SIZES)
    )
    def send_and_wait(self, way: str, count: int, size: int) -> None:
        self._begin(self.senders, lambda: self._send(way, count, size, WAIT_S))

    @rule(way=st.sampled_from(RECEIVING), count=st.integers(1, 4))
    def receive(self, way: str, count: int) -> None:
        self._receive(way, count, 0.0)

    @rule(way=st.sampled_from(RECEIVING), count=st.integers(1, 4))
    def receive_and_wait(self, way: str, count: int) -> None:
        self._begin(self.receivers, lambda: self._receive(way, count, WAIT_S))

    @rule(which=st.integers(0, WINDOW - 1), is_good=st.booleans())
    def end(self, which: int, is_good: bool) -> None:
        with self.lock:
            if not self.held:
                return
            _, got = self.held.pop(which % len(self.held))
        self._end(got, is_good)

    # ---------------------------------------------------------------- how it is done
    def _send(self, way: str, count: int, size: int, deadline: float) -> None:
        numbers = [next(self.numbers) for _ in range(count)]
        values = [value_of(number, size) for number in numbers]
        with self.lock:  # they may arrive before the call returns
            self.accepted.update(zip(numbers, values, strict=True))
        try:
            sent = self.outs[way].send(values, deadline=deadline)
        except _no_room:
            sent = 0
        with self.lock:
            for number in numbers[sent:]:
                del self.accepted[number]

    def _receive(self, way: str, count: int, timeout: float) -> None:
        for got in self.inns[way].some(count, timeout):
            value = got.value
            number = int.from_bytes(value[:8], "little")
            with self.lock:
                assert self.accepted[number] == value, "not what was sent"
                self.came[number] += 1
                self.held.append((number, got))

    def _end(self, got: Got, is_good: bool) -> None:
        if is_good:
            got.ack()
        else:
            got.nack()
        got.release()
        with self.lock:
            self.acked += is_good
            self.refused += not is_good

    def _begin(self, threads: list[threading.Thread], work: Callable[[], None]) -> None:
        if len(self._alive(threads)) == WAITING_MAX:
            return
        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()

    @staticmethod
    def _alive(threads: list[threading.Thread]) -> list[threading.Thread]:
        return [thread for thread in threads if thread.is_alive()]

    # ---------------------------------------------------------------- what must hold
    @invariant()
    def ledger_and_lanes_agree(self) -> None:
        self.place.audit()

    @invariant()
    def nothing_comes_twice(self) -> None:
        with self.lock:
            assert all(count == 1 for count in self.came.values())

    def all_of_it_ends(self) -> None:
        def is_over() -> bool:
            while self.held:
                self._end(self.held.pop()[1], True)
            if self._alive(self.senders) or not self._alive(self.receivers):
                self._receive("batch", 8, 0.0)
            else:  # what comes now is theirs
                self._send("one", 1, 8, 0.0)
            return not self._alive(self.senders) and not self._alive(self.receivers)

        until("the end of every wait", is_over, 25.0)
        until("every message", lambda: is_over() and self._is_ended())
        self.out.flush()
        assert set(self.came) == set(self.accepted)
        wanted: dict[str, Any] = {
            "delivered": self.acked,
            "failed(consumer_error)": self.refused,
        }
        assert self.out.ends() == {end: count for end, count in wanted.items() if count}
        until("the return of every slot", self._is_empty)
        self.ledger_and_lanes_agree()

    def _is_ended(self) -> bool:
        return not self.held and len(self.came) == len(self.accepted)

    def _is_empty(self) -> bool:
        stats = [port.native.stats() for port in (self.left, self.right)]
        return all(each["held"] == each["slots_taken"] == 0 for each in stats)


class PollingMixedUses(MixedUses):
    """Threads that wait spin."""

    wait = "poll"


class SleepingMixedUses(MixedUses):
    """Threads that wait sleep at once."""

    wait = "sleep"


_SETTINGS = settings(
    max_examples=20,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestMixedUses = MixedUses.TestCase
TestPollingMixedUses = PollingMixedUses.TestCase
TestSleepingMixedUses = SleepingMixedUses.TestCase
TestMixedUses.settings = TestPollingMixedUses.settings = TestSleepingMixedUses.settings = _SETTINGS
