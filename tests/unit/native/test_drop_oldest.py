"""drop_oldest: the receiver's queue gives up its oldest, so that its senders never wait for a reader."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.native.pair import (
    AT_LEAST_ONCE,
    DELIVERED,
    DROP_OLDEST,
    DROPPED,
    QUEUE,
    Pair,
    audit,
    pair,
    send_each,
    soon,
)

OVERFLOW_OLDEST = 2


@pytest.fixture
def joined() -> Iterator[Pair]:
    with pair() as both:
        yield both


@pytest.fixture
def served() -> Iterator[Pair]:
    """Ports with service threads: nobody else makes progress on the receiving side."""
    with pair(service_thread=True) as both:
        yield both


def rest(inn: Any) -> list[bytes]:
    got = []
    while (message := inn.receive(0)) is not None:
        got.append(message.meta)
    return got


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 16, 256])
def test_newest_three_quarters_of_the_window_stay(joined: Pair, window: int) -> None:
    out, inn = joined.sender(), joined.receiver(overflow=DROP_OLDEST)
    joined.flow(messages=window)
    sent = [b"%d" % i for i in range(4 * window)]
    for meta in sent:
        out.send(meta, [], None, 0)  # 0: would raise if it had to wait
        joined.b.port.progress()
        joined.a.port.progress()
    assert audit(joined)["differences"] == []
    kept = max(1, window * 3 // 4)
    assert rest(inn) == sent[-kept:]
    dropped = len(sent) - kept
    assert out.counts() == {(DELIVERED, 0): kept, (DROPPED, OVERFLOW_OLDEST): dropped}
    assert joined.b.port.stats()["overflowed"] == dropped


@pytest.mark.parametrize("size", [100, 400, 600, 1000])
def test_bytes_of_the_window_are_kept_free_as_well(joined: Pair, size: int) -> None:
    """Down to one message that fills more than half of the window by itself."""
    out, inn = joined.sender(), joined.receiver(overflow=DROP_OLDEST)
    joined.flow(messages=64, bytes_=1032)
    for i in range(20):
        out.send(b"%02d" % i + b"x" * (size - 2), [], None, 0)
        joined.b.port.progress()
        joined.a.port.progress()
    kept = [meta[:2] for meta in rest(inn)]
    assert kept[-1] == b"19" and len(kept) == max(1, 774 // size)


def test_one_flow_that_is_full_costs_the_others_nothing(joined: Pair) -> None:
    out = joined.sender(pattern=QUEUE)
    inn = joined.receiver(pattern=QUEUE, overflow=DROP_OLDEST)
    first = joined.flow(messages=8)
    send_each(out, [b"a", b"b"])
    joined.b.port.progress()
    joined.a.port.close_flow_out(first)
    joined.flow(messages=8)
    for i in range(30):
        out.send(b"%d" % i, [], None, 0)
        joined.b.port.progress()
        joined.a.port.progress()
    assert rest(inn) == [b"a", b"b"] + [b"%d" % i for i in range(24, 30)]


def test_what_was_handed_is_never_dropped(joined: Pair) -> None:
    """The window bounds what is unacknowledged, too: only unread messages are given up."""
    out = joined.sender(delivery=AT_LEAST_ONCE)
    inn = joined.receiver(delivery=AT_LEAST_ONCE, overflow=DROP_OLDEST)
    joined.flow(messages=8)
    send_each(out, [b"0", b"1"])
    views = inn.receive_many(2, soon())
    send_each(out, [b"%d" % i for i in range(2, 8)])
    joined.b.port.progress()
    for view in views:
        view.ack()
    assert rest(inn) == [b"%d" % i for i in range(2, 8)]
    assert out.counts() == {(DELIVERED, 0): 2}


def test_slots_of_dropped_messages_come_back(joined: Pair) -> None:
    out, _ = joined.sender(), joined.receiver(overflow=DROP_OLDEST)
    joined.flow(messages=4)
    joined.segment(slots=5)
    for _ in range(40):
        out.send(b"", [b"x" * 50_000], None, 0)
        joined.b.port.progress()
        joined.a.port.progress()
    assert joined.a.port.stats()["slots_taken"] == 3


@pytest.mark.promise("P4")
def test_sender_never_waits_for_a_reader_that_does_not_come(served: Pair) -> None:
    """No thread of the receiving process reads: its native thread alone keeps the credit coming, without delay."""
    out, inn = served.sender(), served.receiver(overflow=DROP_OLDEST)
    served.flow(messages=16)
    count, began = 3000, time.monotonic()
    for i in range(count):
        out.send(b"%d" % i, [], None, soon(2.0))
    took = time.monotonic() - began
    assert took < 5.0, (
        f"{took:.1f} s: the ticks of the service thread would need {count / 16 * 0.05:.0f} s"
    )
    assert out.flush(soon(0.2)) is False
    newest = rest(inn)
    assert newest[-1] == b"%d" % (count - 1) and len(newest) <= 16
    assert out.flush(soon())
    counts = out.counts()
    assert counts[(DROPPED, OVERFLOW_OLDEST)] + counts[(DELIVERED, 0)] == count


def test_reader_and_native_thread_take_turns_at_the_doorbell(served: Pair) -> None:
    """Between two waits of the reader the native thread drains; each wait still ends when something comes."""
    out, inn = served.sender(), served.receiver(overflow=DROP_OLDEST)
    served.flow(messages=16)
    for turn in range(100):
        for i in range(40):
            out.send(b"%d.%d" % (turn, i), [], None, soon(2.0))
        last = b""
        while last != b"%d.39" % turn:
            message = inn.receive(soon(2.0))
            assert message is not None, "the reader slept through a message"
            last = message.meta


@pytest.mark.promise("P8")
def test_native_thread_of_an_idle_port_sleeps(served: Pair) -> None:
    served.receiver(overflow=DROP_OLDEST)
    served.flow(messages=16)
    time.sleep(0.2)
    before = time.process_time()
    time.sleep(1.5)
    used = time.process_time() - before
    assert used < 0.05, f"{used * 1e3:.1f} ms of CPU in 1.5 s, both ports"


def test_event_loop_is_told_while_the_native_thread_leads(served: Pair) -> None:
    import select

    out, inn = served.sender(), served.receiver(overflow=DROP_OLDEST)
    served.flow(messages=16)
    poll = select.poll()
    poll.register(served.b.port.event_fd(), select.POLLIN)
    for i in range(20):
        while not served.b.port.arm():
            assert rest(inn) == []
        out.send(b"%d" % i, [], None, soon())
        assert poll.poll(2000), "the event loop slept through a message"
        served.b.port.disarm()
        assert rest(inn) == [b"%d" % i]
