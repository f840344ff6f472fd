"""How messages end, however the port is used: acknowledged, refused, handed back, redelivered, requested, given back.

Each sentence holds for polling, blocking, asyncio, batched and loaned use, for declared messages and for plain bytes,
on a direct lane and between nodes.
"""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import pytest

from fabric import errors, limits
from tests.conformance.uses_places import (
    Trial,
    cases,
    in_a_thread,
    numbered,
    tcp_places,
    trials,
    until,
)

pytestmark = pytest.mark.promise("P1", "P6")

tcp = pytest.fixture(tcp_places, scope="module")
use = pytest.fixture(trials, params=cases("direct", "tcp", is_short=True))

WINDOW = limits.CREDIT_MESSAGES_MIN  #: of a flow between nodes
SLOT = b"s" * 20_000  #: does not fit into a record
ONE_CALL = (
    "polling",
    "sleeping",
    "adaptive",
    "asyncio",
)  #: a request is a call of its own in every use


def test_message_is_out_until_it_is_acknowledged_or_refused(use: Trial) -> None:
    out, inn = use.pair(delivery="at_least_once")
    out.send([b"kept", b"refused"])
    kept, refused = inn.take(2)
    refused.nack()
    refused.release()
    with pytest.raises(errors.DeadlineExceeded, match="have not ended"):
        out.flush(0.05)
    kept.ack()
    assert kept.done() == b"kept"
    use.settled(out, delivered=1, failed_consumer_error=1)


def test_unacknowledged_messages_take_up_the_window(use: Trial) -> None:
    out, inn = use.pair({"messages": WINDOW}, delivery="at_least_once")
    out.send(numbered(WINDOW))
    held = inn.take(WINDOW)
    with pytest.raises(errors.DeadlineExceeded, match=use.channel):
        out.send([b"later"], deadline=0.1)
    assert [got.done() for got in held] == numbered(WINDOW)
    assert out.send([b"now"], deadline=10.0) == 1
    assert inn.read(1) == [b"now"]
    use.settled(out, delivered=WINDOW + 1)


def test_closed_receiver_hands_back_what_it_was_not_asked_for(use: Trial) -> None:
    out, first = use.pair(pattern="queue", delivery="at_least_once")
    out.send(numbered(8))
    acked, late = first.take(2)
    assert acked.done() == b"0"
    until("the rest", lambda: first.pending() == 6)
    second = use.seat("right").receiver(use.channel, use.content)
    first.close()
    assert late.done() == b"1"  # was handed over before
    assert sorted(second.read(6)) == numbered(6, 2)
    use.settled(out, delivered=8)


@pytest.mark.parametrize(
    "use", [*cases("direct", is_short=True)[::3], *cases("tcp")[::3]], indirect=True
)
def test_what_a_closed_receiver_keeps_unacknowledged_goes_to_another_flagged(use: Trial) -> None:
    out, first = use.pair(pattern="queue", delivery="at_least_once")
    out.send(numbered(3))
    kept = first.take(2)
    first.close()
    second = use.seat("right").receiver(use.channel, use.content)
    found = {}
    for got in second.take(3):
        is_flagged = got.is_redelivered
        found[got.done()] = is_flagged
    assert found.keys() == set(numbered(3)) and found[b"0"] and found[b"1"]
    del kept  # they are another's by now
    use.settled(out, delivered=3)


def test_close_of_at_most_once_ends_what_is_queued(use: Trial) -> None:
    out, inn = use.pair()
    out.send(numbered(5))
    assert inn.read(1) == [b"0"]
    until("the rest", lambda: inn.pending() >= 1)
    queued = inn.pending()
    inn.close()
    out.flush()
    found = out.ends()
    assert found["delivered"] == 5 - found["failed(closed)"] and found["failed(closed)"] >= queued


def test_close_ends_every_wait(use: Trial) -> None:
    out, inn = use.pair({"messages": WINDOW})
    receiving, got = in_a_thread(lambda: inn.take(1, 20.0))
    time.sleep(0.05)
    inn.close()
    receiving.join(5.0)
    assert not receiving.is_alive() and isinstance(got[0], errors.ClosedError)
    until("the flow's end", lambda: out.flow_count() == 0)
    sending, sent = in_a_thread(lambda: out.send([b"nobody is there"], deadline=20.0))
    time.sleep(0.05)
    out.close()
    sending.join(5.0)
    assert not sending.is_alive() and isinstance(sent[0], errors.ClosedError)


def test_view_holds_its_memory_until_it_is_released(use: Trial) -> None:
    out, inn = use.pair()
    out.send([SLOT, b"short"])
    large, small = inn.take(2)
    out.flush()
    assert large.value == SLOT and small.value == b"short"
    data = memoryview(large.view) if use.content.type is bytes else large.view.data
    assert bytes(data) == SLOT
    assert memoryview(data).readonly
    del data
    small.release()
    large.release()
    large.release()
    use.settled(out, delivered=2)


def test_views_outlive_their_receiver_and_nobody_writes_over_them(use: Trial) -> None:
    out, inn = use.pair(pattern="queue")
    out.send([SLOT] * 3)
    views = inn.take(3)
    inn.close()
    until("the flow's end", lambda: out.flow_count() == 0)
    other = use.seat("right").receiver(use.channel, use.content)
    until("another flow", lambda: out.flow_count() == 1)
    later = b"n" * len(SLOT)
    for _ in range(10):
        out.send([later] * 20, deadline=10.0)
        assert other.read(20) == [later] * 20
    assert [got.value for got in views] == [SLOT] * 3
    for got in views:
        got.release()
    use.settled(out, delivered=203)


def test_views_that_nobody_keeps_give_their_memory_back(use: Trial) -> None:
    out, inn = use.pair()
    for _ in range(20):
        out.send([SLOT] * 4, deadline=10.0)
        assert len(inn.take(4)) == 4
    gc.collect()
    use.settled(out, delivered=80)


def test_several_threads_share_one_port(use: Trial) -> None:
    out, inn = use.pair({"messages": 8})
    got: list[bytes] = []
    readers = [in_a_thread(lambda: got.extend(inn.read(20, 20.0)))[0] for _ in range(3)]
    senders = [
        in_a_thread(lambda start=start: out.send(numbered(20, start), deadline=20.0))[0]
        for start in (0, 20, 40)
    ]
    for thread in (*senders, *readers):
        thread.join(20.0)
    assert sorted(got, key=int) == numbered(60)
    use.settled(out, delivered=60)


def test_broadcast_reaches_every_receiver_in_order(use: Trial) -> None:
    out, first = use.pair(pattern="broadcast")
    other = "sleeping" if use.use == "batched" else "batched"
    second = use.seat("left", other).receiver(use.channel, use.content)
    until("both flows", lambda: out.flow_count() == 2)
    values = [*numbered(10), SLOT]
    out.send(values, deadline=10.0)
    assert first.read(11) == values == second.read(11)
    use.settled(out, delivered=22)


def test_wrong_value_is_refused_and_nothing_of_its_call_is_sent(use: Trial) -> None:
    out, inn = use.pair()
    with pytest.raises((errors.TypeMismatchError, TypeError, ValueError)):
        out.send(["text"], deadline=5.0)  # type: ignore[list-item]
    assert inn.take(1, 0.0) == []
    out.send([b"good"])
    assert inn.read(1) == [b"good"]
    use.settled(out, delivered=1)


@pytest.mark.parametrize("use", cases("direct", "tcp", uses=ONE_CALL), indirect=True)
def test_requests_are_answered_streamed_and_refused(use: Trial) -> None:
    left, right = use.seat("left"), use.seat("right")
    left.declare(use.channel, use.content, reply=True)

    def handle(value: bytes) -> list[bytes]:
        if value == b"no":
            raise ValueError("refused")
        return [b"%d " % number + value for number in range(3)]

    right.answer(use.channel, use.content, handle)
    ask = left.call(use.channel, use.content)
    for value in (b"a", SLOT, b""):
        assert ask(value, 10.0) == handle(value)
    with pytest.raises(errors.RemoteError, match="refused"):
        ask(b"no", 10.0)
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append((n, ask(b"%d" % n, 10.0))))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [(n, handle(b"%d" % n)) for n in range(4)]


@pytest.mark.parametrize("use", cases("direct", "tcp", uses=ONE_CALL), indirect=True)
def test_request_ends_at_its_deadline(use: Trial) -> None:
    left, right = use.seat("left"), use.seat("right")
    left.declare(use.channel, use.content, reply=True)
    ask = left.call(use.channel, use.content)
    begun = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded, match="no responder"):
        ask(b"?", 0.05)
    held = threading.Event()
    right.answer(use.channel, use.content, lambda value: [value] if held.wait(5.0) else [])
    with pytest.raises(errors.DeadlineExceeded, match=use.channel):
        ask(b"?", 0.2)
    held.set()
    assert time.monotonic() - begun < 4.0
