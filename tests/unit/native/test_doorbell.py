"""What a peer can do to a doorbell, which it must be able to write: nothing that stops its owner or who rings it."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fabric import _native
from tests.unit.native.pair import AT_MOST_ONCE, BLOCK, STREAM, Pair, pair, send_each, soon

AWAKE, FUTEX, MESSAGES = 0, 1, 3  # Wake


@contextmanager
def doorbell_of_b(joined: Pair) -> Iterator[mmap.mmap]:
    """The doorbell of b, as every port that has a lane with it can map it."""
    with mmap.mmap(joined.b.doorbell, os.fstat(joined.b.doorbell).st_size) as bell:
        yield bell


@contextmanager
def receiving_beside(joined: Pair) -> Iterator[mmap.mmap]:
    """A thread of a waits for a message of b; yields the doorbell of a once that thread sleeps."""
    back = joined.b.port.open_sender(12, 8, 99, STREAM, AT_MOST_ONCE, 1)
    into = joined.a.port.open_receiver(22, 8, 99, STREAM, AT_MOST_ONCE, overflow=BLOCK)
    joined.a.port.add_flow_in(22, 900, joined.lane, joined.b.number, 64, 1 << 20)
    joined.b.port.add_flow_out(12, 900, joined.lane, 22, 64, 1 << 20, 1, False)
    got: list[Any] = []
    thread = in_a_thread(lambda: got.append(into.receive(soon(20.0))))
    with mmap.mmap(joined.a.doorbell, os.fstat(joined.a.doorbell).st_size) as bell:
        asleep(bell)
        yield bell
    back.send(b"reply", [], None, soon())
    thread.join(5.0)
    assert got[0].meta == b"reply"


def asleep(bell: mmap.mmap) -> int:
    """Wait until the doorbell's owner sleeps; returns as what."""
    until = time.monotonic() + 5
    while bell[0] == AWAKE and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(0.02)  # from its word to its futex
    return bell[0]


def sleeps_for_all(bell: mmap.mmap) -> bool:
    """Tell whether the doorbell's owner comes to wait for the ends of its own messages too."""
    until = time.monotonic() + 5
    while bell[0] != FUTEX and time.monotonic() < until:
        time.sleep(0.002)
    return bell[0] == FUTEX


def in_a_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.promise("P4")
def test_peer_that_fills_the_doorbell_holds_up_nothing() -> None:
    with pair() as joined, doorbell_of_b(joined) as bell:
        out, inn = joined.sender(), joined.receiver()
        joined.flow()
        send_each(out, [b"1", b"2", b"3"])
        for expected in (b"1", b"2", b"3"):
            bell[:] = b"\xff" * len(bell)
            began = time.monotonic()
            assert inn.receive(soon()).meta == expected
            assert time.monotonic() - began < 0.5


@pytest.mark.promise("P4")
def test_peer_that_silences_the_doorbell_delays_by_less_than_a_second() -> None:
    """The state word says `awake` while its owner sleeps: nobody rings, and the service thread finds the message."""
    with pair(service_thread=True) as joined, doorbell_of_b(joined) as bell:
        out, inn = joined.sender(), joined.receiver()
        joined.flow()
        got: list[Any] = []
        thread = in_a_thread(lambda: got.append(inn.receive(soon(10.0))))
        asleep(bell)
        bell[0:4] = bytes(4)
        send_each(out, [b"1"])
        thread.join(2.0)
        assert not thread.is_alive(), "the owner slept on beside a message"
        assert got[0].meta == b"1"


@pytest.mark.promise("P4")
def test_port_that_fills_its_eventfd_blocks_nobody_who_rings() -> None:
    with pair() as joined:
        out, _ = joined.sender(), joined.receiver()
        joined.flow()
        flags = fcntl.fcntl(joined.b.event, fcntl.F_GETFL)
        fcntl.fcntl(joined.b.event, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
        assert joined.b.port.arm()
        os.eventfd_write(joined.b.event, 0xFFFFFFFFFFFFFFFE)
        thread = in_a_thread(lambda: send_each(out, [b"1"]))
        thread.join(2.0)
        stuck = thread.is_alive()
        os.eventfd_read(joined.b.event)  # lets a writer that is stuck go
        thread.join(5.0)
        assert not stuck


@pytest.mark.promise("P4")
def test_peer_that_makes_the_eventfd_blocking_does_not_stop_its_owner() -> None:
    with pair() as joined:
        flags = fcntl.fcntl(joined.b.event, fcntl.F_GETFL)
        fcntl.fcntl(joined.b.event, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
        thread = in_a_thread(joined.b.port.disarm)
        thread.join(2.0)
        stuck = thread.is_alive()
        if stuck:
            os.eventfd_write(joined.b.event, 1)
        thread.join(5.0)
        assert not stuck


def test_freeze_word_is_not_in_the_doorbell() -> None:
    with pair() as joined, doorbell_of_b(joined) as bell:
        before = bytes(bell)
        assert _native.freeze(joined.b.state, soon())
        assert bytes(bell) == before
        _native.thaw(joined.b.state)


def test_thread_that_waits_for_a_message_sleeps_through_the_ends_of_its_own() -> None:
    with pair() as joined:
        out, inn = joined.sender(), joined.receiver()
        joined.flow()
        with receiving_beside(joined) as bell:
            send_each(out, [b"1"])
            assert inn.receive(soon()).meta == b"1"
            joined.b.port.progress()  # what b owes is said
            assert bell[0] == MESSAGES, "the end of a message woke who waits for another"
            assert joined.a.port.stats()["returns_in"] == 0
        assert joined.a.port.stats()["returns_in"] == 1  # the reply brought it along


def test_many_ends_wake_even_who_waits_for_a_message() -> None:
    with pair() as joined:
        out, inn = joined.sender(), joined.receiver()
        joined.flow()
        with receiving_beside(joined):
            send_each(out, [b"x"] * 200)
            for _ in range(200):
                inn.receive(soon())
            until = time.monotonic() + 5
            while joined.a.port.stats()["returns_in"] == 0 and time.monotonic() < until:
                time.sleep(0.005)
            assert joined.a.port.stats()["returns_in"] > 0


def test_sender_that_waits_for_room_is_told_beside_a_thread_that_waits_for_a_message() -> None:
    with pair() as joined:
        out, inn = joined.sender(), joined.receiver()
        joined.flow(messages=2)
        with receiving_beside(joined) as bell:
            send_each(out, [b"1", b"2"])
            third = in_a_thread(lambda: send_each(out, [b"3"], soon(10.0)))
            assert sleeps_for_all(bell)
            assert [inn.receive(soon()).meta for _ in range(2)] == [b"1", b"2"]
            joined.b.port.progress()
            third.join(5.0)
            assert not third.is_alive(), "nobody told the sender that there is room"
            assert inn.receive(soon()).meta == b"3"


def test_event_loop_is_told_beside_a_thread_that_waits_for_a_message() -> None:
    with pair() as joined:
        out, inn = joined.sender(), joined.receiver()
        joined.flow()
        with receiving_beside(joined) as bell:
            send_each(out, [b"1"])
            while not joined.a.port.arm():  # earlier news first
                pass
            assert sleeps_for_all(bell)
            assert inn.receive(soon()).meta == b"1"
            joined.b.port.progress()
            ready, _, _ = select.select([joined.a.event], [], [], 5.0)
            assert ready, "the event loop sleeps on beside news"
