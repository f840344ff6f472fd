"""Broadcast: every receiver that is there gets each message once, in order, from shared slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fabric import _native, errors
from fabric.controlplane import audit
from tests.unit.native.pair import DELIVERED, DROPPED, FAILED, Attached, Pair, pair, soon

BLOCK, DROP_NEWEST, REJECT = 0, 2, 3
BROADCAST = 2
OVERFLOW_NEWEST, REJECTED, PEER_LOST, NO_TARGET = 3, 4, 6, 12


class Fan:
    """One broadcast sender on port a; receivers on port b and, with a lane of its own, on port c."""

    def __init__(self, joined: Pair, overflow: int) -> None:
        self.joined = joined
        self.c = Attached.open(300)
        a = joined.a
        self.lane = _native.create_lane_pair(1, a.number, 1, 300, 1)
        a.port.add_lane(2, self.lane, 0, 1, 300, 1, self.c.doorbell, self.c.event)
        self.c.port.add_lane(2, self.lane, 1, 1, a.number, 1, a.doorbell, a.event)
        self.out = a.port.open_sender(11, 7, 99, BROADCAST, 0, 1, overflow=overflow)
        self.flows: dict[int, int] = {}

    def join(
        self, endpoint: int, messages: int = 256, bytes_: int = 1 << 24, on_c: bool = False
    ) -> Any:
        """Open a receiver with a flow from the sender."""
        port, lane = (self.c.port, 2) if on_c else (self.joined.b.port, 1)
        inn = port.open_receiver(endpoint, 7, 99, BROADCAST, 0)
        flow = self.flows[endpoint] = 100 + endpoint
        port.add_flow_in(endpoint, flow, lane, self.joined.a.number, messages, bytes_)
        self.joined.a.port.add_flow_out(11, flow, lane, endpoint, messages, bytes_, 1, False)
        return inn

    def show(self, segment: int) -> None:
        """Let port c read a segment, too."""
        self.c.port.add_segment(segment, self.joined.a.fds[-1], False)

    def report(self) -> dict[str, Any]:
        """Audit of the three ports at rest."""
        places = (self.joined.a, self.joined.b, self.c)
        ports = [{**_native.inspect_state(place.state), "is_alive": True} for place in places]
        fds = {1: self.joined.lane_fd, 2: self.lane}
        lanes = [
            {"lane": n, "directions": [_native.inspect_lane(fd, side) for side in (0, 1)]}
            for n, fd in fds.items()
        ]
        return audit.compare([{"node": "a", "ports": ports, "lanes": lanes}])


@pytest.fixture
def joined() -> Iterator[Pair]:
    with pair() as both:
        yield both


@pytest.fixture
def fan(joined: Pair, request: pytest.FixtureRequest) -> Iterator[Fan]:
    made = Fan(joined, getattr(request, "param", BLOCK))
    yield made
    made.c.close()


@pytest.mark.promise("P1")
def test_every_receiver_gets_each_message_once_in_order_with_its_number(fan: Fan) -> None:
    ends = [fan.join(21), fan.join(31, on_c=True), fan.join(22)]
    assert [fan.out.send(b"%d" % i, [], b"k", soon()) for i in range(5)] == [1, 2, 3, 4, 5]
    assert fan.report()["balanced"]
    for inn in ends:
        got = inn.receive_many(10, soon())
        assert [(m.meta, m.sequence, m.key) for m in got] == [
            (b"%d" % i, i + 1, b"k") for i in range(5)
        ]
    assert fan.out.flush(soon()) and fan.out.counts() == {(DELIVERED, 0): 15}
    assert fan.out.ended_upto() == 5


def test_receivers_share_one_slot_until_the_last_has_released_it(fan: Fan) -> None:
    ends = [fan.join(21), fan.join(31, on_c=True), fan.join(22)]
    fan.show(fan.joined.segment(slots=1))
    value = np.arange(10_000, dtype=np.int32)
    fan.out.send(b"m", [value], None, soon())
    views = [inn.receive(soon()) for inn in ends]
    for view in views:
        assert fan.joined.a.port.stats()["slots_taken"] == 1
        assert np.array_equal(view.tensor(0, "int32", (10_000,)), value)
        view.release()
        fan.joined.a.port.progress()
    assert fan.joined.a.port.stats()["slots_taken"] == 0


def test_loan_and_batch_fan_out_like_a_send(fan: Fan) -> None:
    ends = [fan.join(21), fan.join(31, on_c=True)]
    fan.show(fan.joined.segment())
    loan = fan.out.loan([5000])
    loan.tensor(0)[:] = b"\x07" * 5000
    assert fan.out.send_loan(loan, b"loan", None, soon()) == 1
    big = [bytes([8]) * 5000]
    assert fan.out.send_many([b"x", b"y"], [[], big], [None, None], soon()) == 2
    for inn in ends:
        first, second, third = inn.receive_many(3, soon())
        assert bytes(first.tensor(0, "uint8", (5000,)).data) == b"\x07" * 5000
        assert second.meta == b"x" and third.tensor(0, "uint8", (5000,))[9] == 8
        first.release(), third.release()
    fan.joined.a.port.progress()
    assert fan.joined.a.port.stats()["slots_taken"] == 0


def test_message_without_a_receiver_ends_as_no_target(fan: Fan) -> None:
    fan.joined.segment()
    assert fan.out.send(b"m", [b"x" * 6000], None, soon()) == 1
    assert fan.out.send(b"m", [], None, 0) == 2
    assert fan.out.flush(soon()) and fan.out.counts() == {(DROPPED, NO_TARGET): 2}
    assert fan.joined.a.port.stats()["slots_taken"] == 0
    inn = fan.join(21)
    assert fan.out.send(b"seen", [], None, soon()) == 3
    assert [m.sequence for m in inn.receive_many(5, soon())] == [3]
    assert fan.report()["channels"]["#7"]["dropped"] == {"no_target": 2}


def test_blocked_broadcast_gives_nobody_anything(fan: Fan) -> None:
    wide, narrow = fan.join(21), fan.join(31, messages=1, on_c=True)
    fan.out.send(b"1", [], None, soon())
    with pytest.raises(errors.DeadlineExceeded, match=f"credit of flow {fan.flows[31]}"):
        fan.out.send(b"2", [], None, soon(0.02))
    assert len(wide.receive_many(9, soon())) == 1
    assert narrow.receive(soon()).meta == b"1"
    assert fan.out.send(b"2", [], None, soon()) == 2
    assert wide.receive(soon()).meta == narrow.receive(soon()).meta == b"2"
    assert fan.out.flush(soon()) and fan.out.counts() == {(DELIVERED, 0): 4}


@pytest.mark.parametrize("fan", [REJECT], indirect=True)
def test_rejected_broadcast_counts_once_and_gives_nobody_anything(fan: Fan) -> None:
    wide = fan.join(21)
    fan.join(31, messages=1, on_c=True)
    fan.out.send(b"1", [], None, soon())
    with pytest.raises(errors.RejectedError, match="credit of flow"):
        fan.out.send(b"2", [], None, soon())
    assert [m.meta for m in wide.receive_many(9, soon())] == [b"1"]
    assert fan.out.counts() == {(DELIVERED, 0): 1, (FAILED, REJECTED): 1}
    assert fan.report()["balanced"]


@pytest.mark.parametrize("fan", [DROP_NEWEST], indirect=True)
@pytest.mark.promise("P4")
def test_receiver_that_does_not_read_is_left_out_and_the_others_go_on(fan: Fan) -> None:
    """Far more messages than the table holds: the unread ones must not fill it."""
    reader = fan.join(21)
    fan.join(31, messages=3, on_c=True)
    for i in range(3000):
        assert fan.out.send(b"%d" % i, [], None, soon()) == i + 1
        assert reader.receive(soon()).meta == b"%d" % i
    assert fan.out.counts() == {(DELIVERED, 0): 3000, (DROPPED, OVERFLOW_NEWEST): 2997}
    report = fan.report()
    assert report["balanced"], report["differences"]
    assert report["channels"]["#7"]["in_flight"] == 3
    assert report["channels"]["#7"]["accepted"] == 6000


@pytest.mark.promise("P4")
def test_unread_receiver_within_its_window_does_not_stop_a_blocking_broadcast(fan: Fan) -> None:
    """Three receivers read; one has 1000 messages unread: more than 2048 entries since its oldest."""
    readers = [fan.join(21), fan.join(22), fan.join(31, on_c=True)]
    idle = fan.join(32, messages=1200, on_c=True)
    for i in range(1000):
        fan.out.send(b"%d" % i, [], None, soon())
        for reader in readers:
            assert reader.receive(soon()).meta == b"%d" % i
    report = fan.report()
    assert report["balanced"], report["differences"]
    got = idle.receive_many(1200, soon())
    assert [m.sequence for m in got] == list(range(1, 1001))
    assert fan.out.flush(soon()) and fan.out.counts() == {(DELIVERED, 0): 4000}


def test_full_lane_takes_the_whole_broadcast_back(fan: Fan) -> None:
    """One lane is full although credit is left: the records already written for the other lane are taken back."""
    free, stuck = fan.join(31, messages=4000, on_c=True), fan.join(21, messages=4000)
    other = fan.joined.a.port.open_sender(12, 8, 99, 0, 0, 1)
    fan.joined.b.port.open_receiver(41, 8, 99, 0, 0)
    fan.joined.b.port.add_flow_in(41, 900, 1, fan.joined.a.number, 4000, 1 << 30)
    fan.joined.a.port.add_flow_out(12, 900, 1, 41, 4000, 1 << 30, 1, False)
    with pytest.raises(errors.WouldBlock, match="lane full"):
        for _ in range(100):
            other.send(b"x" * 4000, [], None, 0)
    with pytest.raises(errors.WouldBlock, match="lane full"):
        fan.out.send(b"y" * 4000, [], None, 0)
    assert free.receive(0) is None and fan.out.counts() == {}
    fan.joined.b.port.progress()
    assert fan.out.send(b"y" * 4000, [], None, soon()) == 1
    assert len(free.receive_many(5, soon())) == len(stuck.receive_many(5, soon())) == 1
    assert fan.report()["balanced"]


def test_lost_receiver_takes_only_its_own_copies_and_holds(fan: Fan) -> None:
    first = fan.join(21)
    fan.join(31, on_c=True)
    fan.show(fan.joined.segment(slots=2))
    for i in range(2):
        fan.out.send(b"%d" % i, [b"z" * 6000], None, soon())
    fan.joined.a.port.lose_flow_out(fan.flows[31], 1, PEER_LOST)
    assert fan.joined.a.port.stats()["slots_taken"] == 2
    views = first.receive_many(5, soon())
    assert [bytes(v.tensor(0, "uint8", (6000,)).data) for v in views] == [b"z" * 6000] * 2
    for view in views:
        view.release()
    assert fan.out.flush(soon())
    assert fan.out.counts() == {(DELIVERED, 0): 3, (FAILED, PEER_LOST): 1}
    assert fan.joined.a.port.stats()["slots_taken"] == 0


@pytest.mark.parametrize("fan", [DROP_NEWEST], indirect=True)
def test_suspect_receiver_counts_as_full(fan: Fan) -> None:
    awake, asleep = fan.join(21), fan.join(31, on_c=True)
    fan.joined.a.port.suspect_flow(fan.flows[31], True)
    fan.out.send(b"1", [], None, soon())
    fan.joined.a.port.suspect_flow(fan.flows[31], False)
    fan.out.send(b"2", [], None, soon())
    assert [m.meta for m in awake.receive_many(5, soon())] == [b"1", b"2"]
    assert [m.meta for m in asleep.receive_many(5, soon())] == [b"2"]
    assert fan.out.counts() == {(DELIVERED, 0): 3, (DROPPED, OVERFLOW_NEWEST): 1}


def test_next_generation_of_a_flow_gets_nothing_while_the_former_is_open(fan: Fan) -> None:
    """Both lead to receivers of the same module: a message takes one generation, not both."""
    old = fan.join(21)
    fan.out.send(b"1", [], None, soon())
    new = fan.joined.b.port.open_receiver(22, 7, 99, BROADCAST, 0)
    fan.joined.b.port.add_flow_in(22, 500, 1, fan.joined.a.number, 256, 1 << 24)
    fan.joined.a.port.add_flow_out(11, 500, 1, 22, 256, 1 << 24, 2, True)
    fan.out.send(b"2", [], None, soon())
    fan.joined.a.port.close_flow_out(fan.flows[21])
    with pytest.raises(errors.DeadlineExceeded, match="older flows have drained"):
        fan.out.send(b"3", [], None, soon(0.02))
    assert [m.meta for m in old.receive_many(5, soon())] == [b"1", b"2"]
    fan.out.send(b"3", [], None, soon())
    assert [m.meta for m in new.receive_many(5, soon())] == [b"3"]


def test_broadcast_that_must_be_acknowledged_is_refused(joined: Pair) -> None:
    with pytest.raises(ValueError, match="broadcast"):
        joined.a.port.open_sender(11, 7, 99, BROADCAST, 1, 1)
