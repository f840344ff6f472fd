"""What a peer can do to a doorbell, which it must be able to write: nothing that stops its owner or who rings it."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fabric import _native
from tests.unit.native.pair import Pair, pair, send_each, soon


@contextmanager
def doorbell_of_b(joined: Pair) -> Iterator[mmap.mmap]:
    """The doorbell of b, as every port that has a lane with it can map it."""
    with mmap.mmap(joined.b.doorbell, os.fstat(joined.b.doorbell).st_size) as bell:
        yield bell


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
        until = time.monotonic() + 5
        while bell[0] != 1 and time.monotonic() < until:  # Wake::futex
            time.sleep(0.005)
        time.sleep(0.02)
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
