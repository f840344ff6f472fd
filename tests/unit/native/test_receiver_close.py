"""A receiver that closes: what becomes of what was queued, of what was handed, and of what still comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fabric import _native, errors
from tests.unit.native.pair import (
    AT_LEAST_ONCE,
    AT_MOST_ONCE,
    DELIVERED,
    FAILED,
    QUEUE,
    Pair,
    audit,
    pair,
    send_each,
    soon,
)

CLOSED = 10


@pytest.fixture
def joined() -> Iterator[Pair]:
    with pair() as both:
        yield both


def balanced(joined: Pair) -> bool:
    report = audit(joined)
    assert report["differences"] == []
    return bool(report["balanced"])


def flow_row(joined: Pair, flow: int) -> dict[str, Any]:
    rows = {row["flow"]: row for row in _native.inspect_state(joined.b.state)["flows"]}
    return rows[flow]


def two_consumers(joined: Pair) -> tuple[Any, Any, Any]:
    """A queue with one sender and two receivers; nothing has a flow yet."""
    out = joined.sender(pattern=QUEUE, delivery=AT_LEAST_ONCE)
    first = joined.receiver(21, pattern=QUEUE, delivery=AT_LEAST_ONCE)
    second = joined.receiver(22, pattern=QUEUE, delivery=AT_LEAST_ONCE)
    return out, first, second


@pytest.mark.promise("P1")
def test_handed_back_messages_reach_another_consumer_and_every_cut_balances(joined: Pair) -> None:
    out, first, second = two_consumers(joined)
    old = joined.flow(receiver=21)
    send_each(out, [b"%d" % i for i in range(6)])
    handed = [first.receive(soon()) for _ in range(2)]
    assert balanced(joined)
    first.close(hand_back=True)
    row = flow_row(joined, old)
    assert (row["drained"], row["handed"], row["returned"], row["reported"]) == (6, 2, 4, [0] * 4)
    assert balanced(joined)
    handed[0].ack()
    assert balanced(joined) and out.counts() == {(DELIVERED, 0): 1}
    joined.flow(receiver=22)
    joined.a.port.close_flow_out(old)
    assert balanced(joined)
    joined.a.port.lose_flow_out(old, row["handed"], CLOSED)
    assert balanced(joined)
    again = [second.receive(soon()) for _ in range(5)]
    assert [m.meta for m in again] == [b"1", b"2", b"3", b"4", b"5"]
    assert all(m.redelivered for m in again)
    for message in again:
        message.ack()
    joined.b.port.close_flow_in(old, True)
    assert balanced(joined) and out.counts() == {(DELIVERED, 0): 6}


@pytest.mark.promise("P1")
def test_what_still_comes_after_a_hand_back_is_left_to_its_sender(joined: Pair) -> None:
    out, first, second = two_consumers(joined)
    old = joined.flow(receiver=21)
    first.close(hand_back=True)
    send_each(out, [b"0", b"1"])
    assert balanced(joined)
    joined.b.port.progress()
    assert flow_row(joined, old)["returned"] == 2 and out.counts() == {} and balanced(joined)
    joined.flow(receiver=22)
    joined.a.port.lose_flow_out(old, 0, CLOSED)
    got = [second.receive(soon()) for _ in range(2)]
    assert [m.meta for m in got] == [b"0", b"1"] and balanced(joined)


@pytest.mark.promise("P9")
def test_hand_back_releases_held_entries_and_slots(joined: Pair) -> None:
    out = joined.sender(delivery=AT_LEAST_ONCE)
    inn = joined.receiver(delivery=AT_LEAST_ONCE)
    old = joined.flow()
    joined.segment(slots=4)
    for _ in range(4):
        out.send(b"", [b"x" * 50_000], None, soon())
    view = inn.receive(soon())
    inn.close(hand_back=True)
    assert joined.b.port.stats()["held"] == 1
    array = view.tensor(0, "uint8", (50_000,))
    assert array[-1] == ord("x")
    releases = [row for row in _native.inspect_lane(joined.lane_fd, 0)["returns"] if row[0] == 3]
    assert len(releases) == 3
    view.ack()
    view.release()
    assert joined.b.port.stats()["held"] == 0
    joined.a.port.progress()
    out.close()
    joined.a.port.lose_flow_out(old, 1, CLOSED)
    assert out.counts() == {(DELIVERED, 0): 1, (FAILED, CLOSED): 3}
    assert joined.a.port.stats()["slots_taken"] == 0


@pytest.mark.parametrize("hand_back", [False, True])
def test_at_most_once_has_nothing_to_hand_back(joined: Pair, hand_back: bool) -> None:
    out, inn = joined.sender(delivery=AT_MOST_ONCE), joined.receiver(delivery=AT_MOST_ONCE)
    joined.flow()
    send_each(out, [b"0", b"1", b"2"])
    inn.receive(soon())
    inn.close(hand_back=hand_back)
    assert out.counts() == {(DELIVERED, 0): 1, (FAILED, CLOSED): 2} and balanced(joined)
    with pytest.raises(errors.ClosedError):
        inn.receive(0)


def test_flow_for_a_receiver_that_closed_meanwhile_is_refused_the_same_way(joined: Pair) -> None:
    out = joined.sender(delivery=AT_LEAST_ONCE)
    joined.receiver(delivery=AT_LEAST_ONCE).close(hand_back=True)
    late = joined.flow()
    send_each(out, [b"0"])
    joined.b.port.progress()
    assert flow_row(joined, late)["returned"] == 1 and out.counts() == {} and balanced(joined)


def test_handed_message_can_be_refused_after_the_hand_back(joined: Pair) -> None:
    out, inn = joined.sender(delivery=AT_LEAST_ONCE), joined.receiver(delivery=AT_LEAST_ONCE)
    joined.flow()
    send_each(out, [b"0", b"1"])
    message = inn.receive(soon())
    inn.close(hand_back=True)
    message.nack(5)
    assert out.counts() == {(FAILED, 5): 1} and balanced(joined)


@pytest.mark.promise("P9")
def test_ten_thousand_receivers_leave_nothing_behind(joined: Pair) -> None:
    out = joined.sender(pattern=QUEUE)
    for i in range(10_000):
        inn = joined.receiver(1000 + i, pattern=QUEUE)
        flow = joined.flow(receiver=1000 + i)
        if i % 10 == 0:
            out.send(b"", [], None, soon())
        joined.a.port.close_flow_out(flow)
        inn.close()
        joined.b.port.close_flow_in(flow, True)
        joined.a.port.progress()
    stats = joined.b.port.stats()
    assert (stats["receivers"], stats["flows_in"], stats["held"]) == (0, 0, 0)
    assert joined.a.port.stats()["flows_out"] == 0
    assert _native.inspect_state(joined.b.state)["flows"] == []
    assert out.counts() == {(FAILED, CLOSED): 1000}


def test_flow_that_closes_before_its_receiver_opened_leaves_nothing(joined: Pair) -> None:
    out = joined.sender()
    flow = joined.flow(receiver=77)
    send_each(out, [b"early"])
    joined.b.port.progress()
    joined.a.port.close_flow_out(flow)
    joined.b.port.close_flow_in(flow, False)
    assert out.counts() == {(FAILED, CLOSED): 1}
    assert joined.b.port.stats()["flows_in"] == 0 and balanced(joined)


@pytest.mark.promise("P8")
@pytest.mark.parametrize("when", ["before the receiver closes", "after its flow closed"])
def test_view_that_goes_unacknowledged_holds_nothing_once_its_flow_is_closed(
    joined: Pair, when: str
) -> None:
    out, first, second = two_consumers(joined)
    old = joined.flow(receiver=21)
    out.send(b"", [], None, soon())
    view = first.receive(soon())
    if when.startswith("before"):
        del view
    assert joined.b.port.stats()["held"] == 1  # handed: another is to get it
    first.close(hand_back=True)
    joined.flow(receiver=22)
    joined.a.port.close_flow_out(old)
    joined.a.port.lose_flow_out(old, flow_row(joined, old)["handed"], CLOSED)
    joined.b.port.close_flow_in(old, True)
    if when.startswith("after"):
        del view
    again = second.receive(soon())
    assert again.redelivered
    again.ack()
    del again
    joined.b.port.progress()
    stats = joined.b.port.stats()
    assert (stats["held"], stats["flows_in"]) == (0, 1)
    assert joined.b.port.views() == [] and balanced(joined)
