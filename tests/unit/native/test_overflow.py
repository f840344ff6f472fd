"""No room: block, reject and drop_newest at the sender; a table that few long-lived messages do not fill."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fabric import _native, errors
from fabric.controlplane import audit
from tests.unit.native.pair import (
    AT_LEAST_ONCE,
    DELIVERED,
    DROPPED,
    FAILED,
    QUEUE,
    STREAM,
    Pair,
    pair,
    soon,
)

BLOCK, DROP_OLDEST, DROP_NEWEST, REJECT = range(4)
REQUEST, REPLY = 3, 4
OVERFLOW_NEWEST, REJECTED, PEER_LOST, OUTCOME_UNKNOWN = 3, 4, 6, 7
TABLE = 2048


@pytest.fixture
def joined() -> Iterator[Pair]:
    with pair() as both:
        yield both


def open_sender(
    joined: Pair, overflow: int, pattern: int = STREAM, delivery: int = 0, klass: int = 1
) -> Any:
    return joined.a.port.open_sender(11, 7, 99, pattern, delivery, klass, overflow=overflow)


def audited(joined: Pair) -> dict[str, Any]:
    """Counts of the channel; fails on any difference."""
    places = (joined.a, joined.b)
    ports = [{**_native.inspect_state(place.state), "is_alive": True} for place in places]
    directions = [_native.inspect_lane(joined.lane_fd, side) for side in (0, 1)]
    lanes = [{"lane": 1, "directions": directions}]
    report = audit.compare([{"node": "a", "ports": ports, "lanes": lanes}])
    assert report["balanced"], report["differences"]
    counts: dict[str, Any] = report["channels"]["#7"]
    return counts


@pytest.mark.promise("P1", "P8")
@pytest.mark.parametrize("pattern", [STREAM, QUEUE, REQUEST, REPLY])
def test_reject_raises_at_once_and_is_counted(joined: Pair, pattern: int) -> None:
    out, inn = open_sender(joined, REJECT, pattern), joined.receiver(pattern=pattern)
    flow = joined.flow(messages=2)
    named = flow if pattern == REPLY else 0
    for _ in range(2):
        out.send(b"m", [], None, soon(), flow=named)
    with pytest.raises(errors.RejectedError, match=f"credit of flow {flow}"):
        out.send(b"m", [], None, soon(), flow=named)
    assert out.counts() == {(FAILED, REJECTED): 1}
    assert audited(joined)["accepted"] == 3
    assert len(inn.receive_many(9, soon())) == 2
    assert out.send(b"m", [], None, soon(), flow=named) == 4
    assert out.flush(0) is False and audited(joined)["failed"] == {"rejected": 1}


def test_reject_of_an_acknowledged_channel_frees_what_was_copied(joined: Pair) -> None:
    out = open_sender(joined, REJECT, delivery=AT_LEAST_ONCE)
    inn = joined.receiver(delivery=AT_LEAST_ONCE)
    joined.flow(messages=1)
    joined.segment(slots=2)
    out.send(b"m", [b"x" * 6000], None, soon())
    loan = out.loan([6000])
    with pytest.raises(errors.RejectedError):
        out.send_loan(loan, b"m", None, soon())
    loan.discard()
    with pytest.raises(errors.RejectedError):
        out.send(b"m", [b"x" * 6000], None, soon())
    assert joined.a.port.stats()["slots_taken"] == 1
    message = inn.receive(soon())
    message.ack()
    message.release()
    assert out.flush(soon()) and joined.a.port.stats()["slots_taken"] == 0
    assert out.counts() == {(DELIVERED, 0): 1, (FAILED, REJECTED): 2}


@pytest.mark.promise("P1")
@pytest.mark.parametrize("pattern", [STREAM, QUEUE])
def test_drop_newest_returns_the_sequence_and_counts_the_drop(joined: Pair, pattern: int) -> None:
    out, inn = open_sender(joined, DROP_NEWEST, pattern), joined.receiver(pattern=pattern)
    joined.flow(messages=2)
    joined.segment(slots=3)
    sent = [out.send(b"m", [b"x" * 6000], None, 0) for _ in range(10)]
    assert sent == list(range(1, 11))
    assert joined.a.port.stats()["slots_taken"] == 2
    loan = out.loan([6000])
    assert out.send_loan(loan, b"m", None, soon()) == 11
    assert joined.a.port.stats()["slots_taken"] == 2
    assert audited(joined)["dropped"] == {"overflow_newest": 9}
    got = inn.receive_many(10, soon())
    assert [m.sequence for m in got] == [1, 2]
    for message in got:
        message.release()
    assert out.flush(soon()) and out.ended_upto() == 11
    assert out.send_many([b"m"] * 4, [[]] * 4, [None] * 4, soon()) == 4
    assert [m.sequence for m in inn.receive_many(10, soon())] == [12, 13]
    assert out.flush(soon())
    assert out.counts() == {(DELIVERED, 0): 4, (DROPPED, OVERFLOW_NEWEST): 11}


def test_batch_stops_at_a_rejection_and_counts_only_one_that_is_raised(joined: Pair) -> None:
    out = open_sender(joined, REJECT)
    joined.receiver()
    joined.flow(messages=3)
    assert out.send_many([b"m"] * 5, [[]] * 5, [None] * 5, soon()) == 3
    assert out.counts() == {}
    with pytest.raises(errors.RejectedError):
        out.send_many([b"m"] * 2, [[]] * 2, [None] * 2, soon())
    assert out.counts() == {(FAILED, REJECTED): 1}


@pytest.mark.parametrize("overflow", [DROP_NEWEST, REJECT])
def test_sender_without_a_consumer_waits_whatever_the_policy(joined: Pair, overflow: int) -> None:
    out = open_sender(joined, overflow)
    with pytest.raises(errors.DeadlineExceeded, match="no consumer"):
        out.send(b"m", [], None, soon(0.02))


@pytest.mark.parametrize("overflow", [DROP_OLDEST, DROP_NEWEST])
def test_dropping_what_must_be_acknowledged_is_refused(joined: Pair, overflow: int) -> None:
    with pytest.raises(ValueError, match="at_most_once only"):
        open_sender(joined, overflow, delivery=AT_LEAST_ONCE)


@pytest.mark.promise("P4", "P8")
def test_few_messages_that_live_long_do_not_fill_the_table(joined: Pair) -> None:
    """A queue whose first consumer keeps 5 messages: the other goes on for many times the table's size."""
    out = open_sender(joined, BLOCK, QUEUE, AT_LEAST_ONCE)
    slow = joined.receiver(pattern=QUEUE, delivery=AT_LEAST_ONCE)
    joined.flow(messages=5)
    joined.segment()
    for _ in range(5):
        out.send(b"slow", [b"\x05" * 6000], None, soon())
    kept = slow.receive_many(5, soon())
    fast = joined.b.port.open_receiver(22, 7, 99, QUEUE, AT_LEAST_ONCE)
    joined.flow(receiver=22)
    for i in range(3 * TABLE):
        out.send(b"%d" % i, [], None, soon())
        message = fast.receive(soon())
        assert message.meta == b"%d" % i
        message.ack()
    joined.b.port.progress()
    joined.a.port.progress()
    counts = audited(joined)
    assert counts["accepted"] == 3 * TABLE + 5 and counts["in_flight"] == 5
    assert out.ended_upto() == 0
    assert [bytes(m.tensor(0, "uint8", (6000,)).data) for m in kept] == [b"\x05" * 6000] * 5
    kept[0].ack()
    assert out.ended_upto() == 1
    joined.a.port.lose_flow_out(1, 5, PEER_LOST)  # what moved in the table is redelivered, in order
    again = fast.receive_many(9, soon())
    assert [(m.sequence, m.redelivered) for m in again] == [(i, True) for i in range(2, 6)]
    assert again[0].tensor(0, "uint8", (6000,))[1] == 5
    for message in again:
        message.ack()
        message.release()
    for message in kept:
        message.release()
    assert out.flush(soon()) and out.counts() == {(DELIVERED, 0): 3 * TABLE + 5}
    joined.b.port.progress()
    assert out.ended_upto() == 3 * TABLE + 5 and audited(joined)["in_flight"] == 0


@pytest.mark.promise("P8")
def test_table_that_is_full_of_living_messages_is_named(joined: Pair) -> None:
    out = joined.sender(delivery=AT_LEAST_ONCE)
    inn = joined.receiver(delivery=AT_LEAST_ONCE)
    joined.flow(messages=4000)
    taken = []
    with pytest.raises(errors.WouldBlock, match="outstanding table full: it holds 2047"):
        while True:
            out.send(b"m", [], None, 0)
            taken += inn.receive_many(10, 0)
    assert len(taken) == TABLE - 1
    taken[1000].ack()
    assert out.send(b"m", [], None, soon()) == TABLE
    assert audited(joined)["in_flight"] == TABLE - 1


def test_reply_to_a_lost_requester_goes_to_nobody_else(joined: Pair) -> None:
    out = open_sender(joined, BLOCK, REPLY, AT_LEAST_ONCE)
    inn = joined.receiver(pattern=REPLY, delivery=AT_LEAST_ONCE)
    mine = joined.flow()
    other = joined.b.port.open_receiver(22, 7, 99, REPLY, AT_LEAST_ONCE)
    joined.flow(receiver=22)
    for _ in range(2):
        out.send(b"r", [], None, soon(), flow=mine)
    inn.receive(soon())
    joined.a.port.lose_flow_out(mine, 1, PEER_LOST)
    assert other.receive(0) is None
    assert out.counts() == {(FAILED, OUTCOME_UNKNOWN): 1, (FAILED, PEER_LOST): 1}


# -------------------------------------------------------------------- suspect
@pytest.mark.promise("P3")
def test_queue_gives_a_suspect_consumer_nothing_new(joined: Pair) -> None:
    out, inn = open_sender(joined, BLOCK, QUEUE), joined.receiver(pattern=QUEUE)
    flow = joined.flow()
    other = joined.b.port.open_receiver(22, 7, 99, QUEUE, 0)
    joined.flow(receiver=22)
    joined.a.port.suspect_flow(flow, True)
    for _ in range(4):
        out.send(b"m", [], None, soon())
    assert (inn.pending(), other.pending()) == (0, 4)
    joined.a.port.suspect_flow(flow, False)
    for _ in range(4):
        out.send(b"m", [], None, soon())
    assert (inn.pending(), other.pending()) == (4, 4)


@pytest.mark.promise("P3")
def test_key_waits_for_its_suspect_consumer_and_new_keys_avoid_it(joined: Pair) -> None:
    out = open_sender(joined, BLOCK)
    inn = joined.receiver()
    flow = joined.flow()
    out.send(b"1", [], b"old", soon())
    other = joined.b.port.open_receiver(22, 7, 99, 0, 0)
    joined.flow(receiver=22)
    joined.a.port.suspect_flow(flow, True)
    for i in range(20):
        out.send(b"n", [], b"new%d" % i, soon())
    assert other.pending() == 20
    with pytest.raises(errors.DeadlineExceeded, match=r"endpoint 21 of port 200 .* is suspect"):
        out.send(b"2", [], b"old", soon(0.02))
    joined.a.port.suspect_flow(flow, False)
    out.send(b"2", [], b"old", soon())
    assert [m.meta for m in inn.receive_many(5, soon())] == [b"1", b"2"]


def test_flow_that_is_suspect_before_its_sender_opens_stays_so(joined: Pair) -> None:
    flow = joined.flow()
    joined.a.port.suspect_flow(flow, True)
    out = open_sender(joined, REJECT)
    with pytest.raises(errors.RejectedError, match="suspect"):
        out.send(b"m", [], b"key", soon())


# -------------------------------------------------------------------- arena
def test_bulk_never_takes_the_slots_of_tokens(joined: Pair) -> None:
    """Each group of classes asks for segments of its own."""
    token = open_sender(joined, BLOCK, klass=1)
    bulk = joined.a.port.open_sender(12, 8, 99, 0, 0, 3)
    joined.receiver()
    joined.flow()
    joined.segment(slots=2)
    with pytest.raises(_native.NeedSegment) as need:
        bulk.loan([6000])
    assert need.value.args == (6000, 0, 1)
    fd = _native.create_segment(77, joined.a.number, 1, 0, 1 << 16, 1)
    joined.a.fds.append(fd)
    joined.a.port.add_segment(77, fd, True, 1)
    held = bulk.loan([6000])
    with pytest.raises(_native.NeedSegment):
        bulk.loan([6000])
    loans = [token.loan([6000]), token.loan([6000])]
    with pytest.raises(_native.NeedSegment) as need:
        token.loan([6000])
    assert need.value.args == (6000, 0, 0)
    for loan in (held, *loans):
        loan.discard()
    with pytest.raises(ValueError, match="group"):
        joined.a.port.add_segment(78, fd, True, 2)


@pytest.mark.promise("P2")
@pytest.mark.parametrize("told", [{"reason": 10}, {"reason": 7, "reader_lives": True}], ids=str)
def test_view_of_a_consumer_that_lives_keeps_its_slot(joined: Pair, told: dict[str, Any]) -> None:
    out, inn = joined.sender(), joined.receiver()
    flow = joined.flow()
    joined.segment(slots=1)
    out.send(b"m", [b"\x01" * 6000], None, soon())
    view = inn.receive(soon())
    joined.a.port.lose_flow_out(flow, 1, **told)
    with pytest.raises(_native.NeedSegment):
        out.loan([6000])
    assert view.tensor(0, "uint8", (6000,))[0] == 1
    view.release()
    joined.a.port.progress()
    out.loan([6000]).discard()


@pytest.mark.promise("P9")
@pytest.mark.parametrize("how", ["flow_lost", "lane_removed"])
def test_death_of_a_closed_consumer_frees_the_slots_of_its_views(joined: Pair, how: str) -> None:
    out, inn = joined.sender(), joined.receiver()
    flow = joined.flow()
    joined.segment(slots=1)
    out.send(b"m", [b"\x01" * 6000], None, soon())
    view = inn.receive(soon())
    joined.a.port.lose_flow_out(flow, 1, 10)
    if how == "flow_lost":
        joined.a.port.lose_flow_out(flow, 1, PEER_LOST)
    else:
        joined.a.port.remove_lane(1)
    assert view.meta == b"m"
    assert joined.a.port.stats()["slots_taken"] == 0


# -------------------------------------------------------------------- forgetting
@pytest.mark.promise("P9")
def test_ten_thousand_senders_come_and_go(joined: Pair) -> None:
    """The ledger has 128 rows: each is given back, and nothing of a forgotten sender stays in the port."""
    for i in range(10_000):
        endpoint = 1000 + i
        out = joined.a.port.open_sender(endpoint, 7, 99, STREAM, 0, 1)
        if i % 100 == 0:
            inn = joined.b.port.open_receiver(50_000 + i, 7, 99, 0, 0)
            joined.flow(sender=endpoint, receiver=50_000 + i)
            out.send(b"m", [], None, soon())
            assert inn.receive(soon()).meta == b"m"
            assert out.flush(soon())
            last = out
        out.close()
        joined.a.port.forget_sender(endpoint)
    assert joined.a.port.stats()["flows_out"] == 0
    assert _native.inspect_state(joined.a.state)["ledgers"] == []
    assert last.counts() == {(DELIVERED, 0): 1} and last.flush(0) and last.ended_upto() == 1
    with pytest.raises(errors.ClosedError):
        last.send(b"m", [], None, soon())


def test_flow_that_comes_after_its_sender_was_forgotten_is_not_kept(joined: Pair) -> None:
    """More of them than flows may wait for a sender that is not open yet."""
    for i in range(1100):
        joined.a.port.open_sender(1000 + i, 7, 99, STREAM, 0, 1).close()
        joined.a.port.forget_sender(1000 + i)
        joined.a.port.add_flow_out(1000 + i, 5000 + i, 1, 21, 64, 1 << 20, 1, False)
    flow = joined.flow()
    out, inn = joined.sender(), joined.receiver()
    assert out.flows()[0]["flow"] == flow and out.send(b"m", [], None, soon()) == 1
    assert inn.receive(soon()).meta == b"m"


def test_sender_with_messages_outstanding_is_not_forgotten(joined: Pair) -> None:
    out = joined.sender()
    joined.flow()
    out.send(b"m", [], None, soon())
    out.close()
    with pytest.raises(ValueError, match="outstanding"):
        joined.a.port.forget_sender(11)
