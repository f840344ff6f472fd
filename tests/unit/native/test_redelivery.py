"""Redelivery on a stream: in order per key, before anything new, and no key holds up another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fabric import errors
from tests.unit.native.pair import AT_LEAST_ONCE, QUEUE, STREAM, Pair, pair, soon

PEER_LOST = 6


@pytest.fixture
def joined() -> Iterator[Pair]:
    with pair() as both:
        yield both


def three_ways(joined: Pair, pattern: int, messages: int) -> tuple[Any, int, list[Any]]:
    """A sender with one roomy flow, and two receivers to come; returns sender, flow, their receivers."""
    out = joined.sender(pattern=pattern, delivery=AT_LEAST_ONCE)
    joined.receiver(pattern=pattern, delivery=AT_LEAST_ONCE)
    flow = joined.flow()
    others = [joined.b.port.open_receiver(n, 7, 99, pattern, AT_LEAST_ONCE) for n in (22, 23)]
    return out, flow, others


def keys_of(out: Any, joined: Pair, others: list[Any]) -> tuple[bytes, bytes]:
    """Two keys that a stream sends to the first and to the second of two flows."""
    found: dict[int, bytes] = {}
    for i in range(64):
        key = b"k%d" % i
        out.send(b"probe", [], key, soon())
        for n, inn in enumerate(others):
            for message in inn.receive_many(9, 0):
                found.setdefault(n, key)
                message.ack()
        if len(found) == 2:
            assert out.flush(soon())
            return found[0], found[1]
    raise AssertionError("64 keys went to one flow")


def test_key_without_room_holds_up_no_other_key(joined: Pair) -> None:
    out, first_flow, others = three_ways(joined, STREAM, 64)
    joined.a.port.lose_flow_out(first_flow, 0, PEER_LOST)
    joined.flow(receiver=22, messages=4)
    joined.flow(receiver=23, messages=64)
    full, free = keys_of(out, joined, others)
    third = joined.b.port.open_receiver(24, 7, 99, 0, AT_LEAST_ONCE)
    for i in range(4):
        out.send(b"full %d" % i, [], full, soon())
    lost = joined.flow(receiver=24)
    for i in range(3):
        out.send(b"%d" % i, [], full, soon(), flow=lost)
        out.send(b"%d" % i, [], free, soon(), flow=lost)
    assert third.pending() == 6
    joined.a.port.lose_flow_out(lost, 0, PEER_LOST)
    again = others[1].receive_many(9, soon())
    assert [(m.key, m.meta, m.redelivered) for m in again] == [
        (free, b"%d" % i, True) for i in range(3)
    ]
    out.send(b"new", [], free, soon())
    assert others[1].receive(soon()).meta == b"new"
    with pytest.raises(
        errors.DeadlineExceeded, match=r"3 messages wait for redelivery|credit of flow"
    ):
        out.send(b"new", [], full, soon(0.02))
    for message in others[0].receive_many(9, soon()):
        message.ack()
    joined.b.port.progress()
    out.send(b"new", [], full, soon())
    assert [m.meta for m in others[0].receive_many(9, soon())] == [b"0", b"1", b"2", b"new"]


def test_small_new_message_does_not_overtake_a_large_one_of_its_key(joined: Pair) -> None:
    """The flow has credit for the new one, not for the one that waits."""
    out, flow, others = three_ways(joined, STREAM, 64)
    joined.segment()
    out.send(b"large", [b"x" * 6000], b"key", soon())
    new = joined.flow(receiver=22, bytes_=6500)
    out.send(b"fills", [b"x" * 1000], b"key", soon(), flow=new)
    joined.a.port.lose_flow_out(flow, 0, PEER_LOST)
    with pytest.raises(errors.DeadlineExceeded, match="wait for redelivery"):
        out.send(b"small", [], b"key", soon(0.02))
    with pytest.raises(errors.DeadlineExceeded, match="wait for redelivery"):
        out.send(b"small", [], b"key", soon(0.02), flow=new)
    others[0].receive(soon()).ack()
    joined.b.port.progress()
    joined.a.port.progress()
    large = others[0].receive(soon())
    assert large.meta == b"large" and large.redelivered
    large.ack()
    out.send(b"small", [], b"key", soon())
    assert others[0].receive(soon()).meta == b"small"


def test_queue_gives_what_waits_to_whoever_has_room_before_anything_new(joined: Pair) -> None:
    out, flow, others = three_ways(joined, QUEUE, 64)
    for i in range(5):
        out.send(b"%d" % i, [], None, soon())
    joined.flow(receiver=22, messages=2)
    joined.flow(receiver=23, messages=2)
    joined.a.port.lose_flow_out(flow, 0, PEER_LOST)
    with pytest.raises(errors.DeadlineExceeded, match="1 messages wait for redelivery"):
        out.send(b"new", [], None, soon(0.02))
    first = others[0].receive(soon())
    first.ack()
    again = [first, *others[0].receive_many(9, soon()), *others[1].receive_many(9, soon())]
    assert {m.meta for m in again} >= {b"0", b"1", b"2", b"3"}
    for message in again:
        message.ack()
    joined.b.port.progress()
    out.send(b"new", [], None, soon())
    rest = [*others[0].receive_many(9, soon()), *others[1].receive_many(9, soon())]
    assert {m.meta for m in (*again, *rest)} == {b"0", b"1", b"2", b"3", b"4", b"new"}
