"""Flows: which one a message takes, what becomes of its messages when one is lost, drained or closed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from fabric import errors
from tests.unit.native.pair import (
    AT_LEAST_ONCE,
    DELIVERED,
    DROPPED,
    FAILED,
    QUEUE,
    STREAM,
    Pair,
    pair,
    send_each,
    soon,
)


@pytest.fixture
def joined() -> Iterator[Pair]:
    with pair() as both:
        yield both


def test_acknowledgement_ends_an_at_least_once_message(joined: Pair) -> None:
    out, inn = joined.sender(delivery=AT_LEAST_ONCE), joined.receiver(delivery=AT_LEAST_ONCE)
    joined.flow()
    send_each(out, [b"a", b"b", b"c"])
    first, second, third = inn.receive_many(3, soon())
    assert not out.flush(soon(0.02))
    second.ack()
    second.ack()
    assert out.ended_upto() == 0
    first.ack()
    assert out.ended_upto() == 2
    third.nack(5)
    assert out.flush(soon()) and out.counts() == {(DELIVERED, 0): 2, (FAILED, 5): 1}


def test_refusal_for_a_reason_of_dropping_counts_as_dropped(joined: Pair) -> None:
    out, inn = joined.sender(delivery=AT_LEAST_ONCE), joined.receiver(delivery=AT_LEAST_ONCE)
    joined.flow()
    expired, transform_drop, transform_error = 1, 13, 14
    for reason in (expired, transform_drop, transform_error):
        out.send(b"m", [], None, soon())
        inn.receive_many(1, soon())[0].nack(reason)
    assert out.flush(soon())
    assert out.counts() == {
        (DROPPED, expired): 1,
        (DROPPED, transform_drop): 1,
        (FAILED, transform_error): 1,
    }


def test_lost_flow_redelivers_unacknowledged_messages_in_order_before_new_ones(
    joined: Pair,
) -> None:
    out, inn = joined.sender(delivery=AT_LEAST_ONCE), joined.receiver(delivery=AT_LEAST_ONCE)
    joined.segment()
    flow = joined.flow()
    big = np.arange(5000, dtype=np.int32)
    for i in range(6):
        out.send(b"%d" % i, [big + i], None, soon())
    taken = inn.receive_many(3, soon())
    taken[1].ack()
    joined.a.port.lose_flow_out(flow, 3, 6)
    with pytest.raises(errors.DeadlineExceeded, match="5 messages wait for redelivery"):
        out.send(b"new", [], None, soon(0.02))
    second = joined.b.port.open_receiver(22, 7, 99, 0, AT_LEAST_ONCE)
    joined.flow(receiver=22)
    out.send(b"new", [], None, soon())
    again = second.receive_many(10, soon())
    assert [m.meta for m in again] == [b"0", b"2", b"3", b"4", b"5", b"new"]
    assert [m.redelivered for m in again] == [True] * 5 + [False]
    assert [m.sequence for m in again] == [1, 3, 4, 5, 6, 7]
    assert np.array_equal(again[1].tensor(0, "int32", (5000,)), big + 2)
    for message in again:
        message.ack()
        message.release()
    assert out.flush(soon()) and out.counts() == {(DELIVERED, 0): 7}
    del again, taken, message
    joined.b.port.progress()
    assert joined.a.port.idle_segments() == [1]


def test_key_of_a_closed_flow_waits_for_its_messages_though_another_flow_is_open(
    joined: Pair,
) -> None:
    out, inn = joined.sender(delivery=AT_LEAST_ONCE), joined.receiver(delivery=AT_LEAST_ONCE)
    flow = joined.flow()
    out.send(b"first", [], b"key", soon())
    other = joined.b.port.open_receiver(22, 7, 99, STREAM, AT_LEAST_ONCE)
    joined.flow(receiver=22)
    joined.a.port.close_flow_out(flow)
    with pytest.raises(errors.DeadlineExceeded, match="the key waits until older flows"):
        out.send(b"second", [], b"key", soon(0.02))
    assert other.pending() == 0
    inn.receive(soon()).ack()
    out.send(b"second", [], b"key", soon())
    assert other.receive(soon()).meta == b"second"


def test_lost_flow_at_most_once_splits_at_what_was_handed_over(joined: Pair) -> None:
    out = joined.sender()
    flow = joined.flow()
    send_each(out, [b"x"] * 5)
    joined.a.port.lose_flow_out(flow, 2, 6)
    assert out.flush(soon()) and out.counts() == {(DELIVERED, 0): 2, (FAILED, 6): 3}


def test_waiting_message_expires_without_a_consumer(joined: Pair) -> None:
    out = joined.sender(delivery=AT_LEAST_ONCE)
    flow = joined.flow()
    out.send(b"a", [], None, soon(), expires_ns=soon(0.01))
    out.send(b"b", [], None, soon())
    joined.a.port.lose_flow_out(flow, 0, 6)
    time.sleep(0.02)  # the deadline itself is what is tested
    joined.flow()
    assert out.counts() == {(DROPPED, 1): 1}


def test_message_that_waits_for_a_consumer_can_be_cancelled(joined: Pair) -> None:
    out = joined.sender(delivery=AT_LEAST_ONCE)
    flow = joined.flow()
    first, second = send_each(out, [b"a", b"b"])
    assert not out.cancel(second)
    joined.a.port.lose_flow_out(flow, 0, 6)
    assert out.cancel(second) and not out.cancel(second)
    assert out.counts() == {(DROPPED, 9): 1}
    out.close()
    assert out.flush(soon()) and out.counts() == {(DROPPED, 9): 1, (FAILED, 10): 1}
    assert first == 1


def test_key_stays_on_its_flow_when_another_consumer_comes(joined: Pair) -> None:
    out = joined.sender()
    inn = joined.receiver()
    joined.flow()
    keys = [b"k%d" % i for i in range(20)]
    for key in keys:
        out.send(b"1", [], key, soon())
    other = joined.b.port.open_receiver(22, 7, 99, 0, 0)
    joined.flow(receiver=22)
    for key in keys:
        out.send(b"2", [], key, soon())
    fresh = [b"n%d" % i for i in range(40)]
    for key in fresh:
        out.send(b"3", [], key, soon())
    first = [(m.key, m.meta) for m in inn.receive_many(1000, soon())]
    second = [(m.key, m.meta) for m in other.receive_many(1000, soon())]
    assert [k for k, meta in first if meta == b"2"] == keys
    assert second and {meta for _, meta in second} == {b"3"}


def test_queue_shares_work_and_skips_a_consumer_without_credit(joined: Pair) -> None:
    out = joined.sender(pattern=QUEUE)
    inn = joined.receiver(pattern=QUEUE)
    other = joined.b.port.open_receiver(22, 7, 99, QUEUE, 0)
    joined.flow(messages=2)
    joined.flow(receiver=22, messages=100)
    send_each(out, [b"x"] * 10)
    assert (inn.pending(), other.pending()) == (2, 8)


def test_new_flow_waits_until_older_ones_have_drained(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    old = joined.flow()
    out.send(b"old", [], None, soon())
    joined.b.port.open_receiver(22, 7, 99, 0, 0)
    joined.flow(receiver=22, after_drain=True)
    joined.a.port.close_flow_out(old)
    with pytest.raises(errors.DeadlineExceeded, match="older flows have drained"):
        out.send(b"new", [], None, soon(0.02))
    assert inn.receive(soon()).meta == b"old"
    assert out.send(b"new", [], None, soon()) == 2


@pytest.mark.promise("P1")
def test_new_flow_does_not_wait_for_one_that_came_together_with_it(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    old = joined.flow()
    other, third = (joined.b.port.open_receiver(n, 7, 99, 0, 0) for n in (22, 23))
    busy = joined.flow(receiver=22, after_drain=True)
    late = joined.flow(receiver=23, after_drain=True)
    joined.a.port.close_flow_out(old)
    out.send(b"busy", [], None, soon(), flow=busy)
    out.send(b"late", [], None, soon(0.5), flow=late)
    assert other.pending() == 1 and third.receive(soon()).meta == b"late"
    assert inn.pending() == 0


def test_explicit_flow_is_used_and_its_loss_is_named(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    flow = joined.flow()
    out.send(b"r", [], None, soon(), flow=flow, correlation=5, reply_flow=6, flags=8)
    message = inn.receive(soon())
    assert (message.correlation, message.reply_flow, message.flags, message.flow) == (5, 6, 8, flow)
    with pytest.raises(errors.PeerLostError):
        out.send(b"r", [], None, soon(), flow=4242)


def test_flows_may_come_before_their_endpoints(joined: Pair) -> None:
    joined.flow()
    out = joined.sender()
    out.send(b"early", [], None, soon())
    joined.b.port.progress()
    assert joined.receiver().receive(soon()).meta == b"early"


def test_closing_flow_in_drains_then_forgets(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    flow = joined.flow()
    send_each(out, [b"1", b"2"])
    joined.b.port.close_flow_in(flow, True)
    assert [m.meta for m in inn.receive_many(5, soon())] == [b"1", b"2"]
    joined.b.port.progress()
    assert joined.b.port.stats()["flows_in"] == 0
    assert out.flush(soon()) and out.counts() == {(DELIVERED, 0): 2}
