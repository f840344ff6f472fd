"""What a user may rely on, however the port is used: order, content, room, overflow, deadlines.

Each sentence holds for polling, blocking, asyncio, batched and loaned use, for declared messages and for plain bytes,
on a direct lane and between nodes.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

from fabric import errors
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

CREDIT = 8


tcp = pytest.fixture(tcp_places, scope="module")
use = pytest.fixture(trials, params=cases("direct", "tcp"))


def test_contents_of_every_size_arrive_whole_and_in_order(use: Trial) -> None:
    out, inn = use.pair(delivery="at_least_once")
    chance = np.random.default_rng(use.number)
    sizes = [*use.content.edges, *(int(2 ** chance.uniform(0, 21)) for _ in range(6))]
    values = [chance.bytes(size) for size in chance.permutation(sizes)]
    thread, sent = in_a_thread(lambda: out.send(values, deadline=20.0))
    assert inn.read(len(values)) == values
    thread.join()
    assert sent == [len(values)]
    use.settled(out, delivered=len(values))


def test_sender_waits_for_room(use: Trial) -> None:
    out, inn = use.pair({"messages": CREDIT})
    values = numbered(10 * CREDIT)
    thread, sent = in_a_thread(lambda: out.send(values, deadline=20.0))
    until("a full window", lambda: inn.pending() == CREDIT)
    assert inn.read(len(values)) == values
    thread.join()
    assert sent == [len(values)]
    use.settled(out, delivered=len(values))


def test_sender_without_room_gives_up_at_its_deadline_and_sends_nothing(use: Trial) -> None:
    out, inn = use.pair({"messages": CREDIT})
    assert out.send(numbered(CREDIT), deadline=5.0) == CREDIT
    begun = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded, match=use.channel):
        out.send([b"late"], deadline=0.05)
    assert 0.05 <= time.monotonic() - begun < 2.0
    with pytest.raises(errors.WouldBlock, match=use.channel):
        out.send([b"now"], deadline=0)
    assert inn.read(CREDIT) == numbered(CREDIT)
    use.settled(out, delivered=CREDIT)


def test_what_finds_room_before_the_deadline_is_accepted_in_order(use: Trial) -> None:
    out, inn = use.pair({"messages": CREDIT})
    assert out.send(numbered(2 * CREDIT), deadline=0.1) == CREDIT
    until("their arrival or their end", lambda: inn.pending() + sum(out.ends().values()) >= CREDIT)
    got = inn.read(CREDIT, 0.0)  # in time or not: the deadline is their life's, too
    assert set(got) <= set(numbered(CREDIT))
    use.settled(out, delivered=len(got), dropped_expired=CREDIT - len(got))


def test_reject_raises_at_once_and_counts_the_attempt(use: Trial) -> None:
    out, inn = use.pair({"messages": CREDIT}, overflow="reject")
    assert out.send(numbered(CREDIT), deadline=5.0) == CREDIT
    begun = time.monotonic()
    with pytest.raises(errors.RejectedError, match=use.channel):
        out.send([b"one too many"], deadline=10.0)
    assert time.monotonic() - begun < 5.0
    assert inn.read(CREDIT) == numbered(CREDIT)
    use.settled(out, delivered=CREDIT, failed_rejected=1)


def test_drop_newest_keeps_the_first_ones(use: Trial) -> None:
    out, inn = use.pair({"messages": CREDIT}, overflow="drop_newest")
    assert out.send(numbered(3 * CREDIT), deadline=5.0) == 3 * CREDIT
    assert inn.read(CREDIT) == numbered(CREDIT)
    use.settled(out, delivered=CREDIT, dropped_overflow_newest=2 * CREDIT)


def test_drop_oldest_keeps_the_last_ones_though_nobody_reads(use: Trial) -> None:
    out, inn = use.pair({"messages": CREDIT}, overflow="drop_oldest")
    values = numbered(10 * CREDIT)
    assert out.send(values, deadline=10.0) == len(values)
    until("the drops", lambda: out.ends().get("dropped(overflow_oldest)", 0) >= 9 * CREDIT)
    kept = []
    while more := inn.read(1, 0.1):
        kept += more
    assert kept == [value for value in values if value in kept] and kept[-1] == values[-1]
    assert 1 <= len(kept) <= CREDIT
    use.settled(out, delivered=len(kept), dropped_overflow_oldest=len(values) - len(kept))


def test_message_that_is_not_consumed_in_time_is_dropped_and_never_handed_over(use: Trial) -> None:
    out, inn = use.pair(delivery="at_least_once")
    out.send([b"first"])
    out.send([b"short-lived"], deadline=0.05)
    out.send([b"last"])
    until("all of it", lambda: inn.pending() >= 2)
    time.sleep(0.06)
    assert inn.read(2) == [b"first", b"last"]
    use.settled(out, delivered=2, dropped_expired=1)


@pytest.mark.parametrize("use", cases("tcp"), indirect=True)
def test_send_that_names_no_deadline_takes_the_one_of_its_channel(use: Trial) -> None:
    left = use.seat("left")
    left.declare(use.channel, use.content, deadline=0.1)
    out = left.sender(use.channel, use.content)
    begun = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded, match=use.channel):
        out.send([b"nobody is there"])
    assert time.monotonic() - begun < 5.0


def test_receive_looks_or_waits_as_long_as_it_was_told(use: Trial) -> None:
    out, inn = use.pair()
    for timeout in (0.0, 0.05):
        begun = time.monotonic()
        assert inn.take(1, timeout) == [] == inn.read(1, timeout)
        assert 2 * timeout <= time.monotonic() - begun < 2.0
    out.send([b"there"])
    assert inn.read(1) == [b"there"]


def test_keys_keep_their_order_beside_each_other(use: Trial) -> None:
    out, inn = use.pair()
    for number in range(20):
        assert out.send([b"%d" % number], key=f"k{number % 3}") == 1
    seen: dict[bytes | None, list[int]] = {}
    for got in inn.take(20):
        seen.setdefault(got.key, []).append(int(got.done()))
    assert seen == {f"k{k}".encode(): list(range(k, 20, 3)) for k in range(3)}
    use.settled(out, delivered=20)
