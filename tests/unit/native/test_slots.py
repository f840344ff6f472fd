"""Slots of sends that did not go through: nothing may stay taken after a freeze or a signal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from fabric import _native
from tests.unit.native.pair import Pair, pair, soon


@pytest.fixture
def joined() -> Iterator[Pair]:
    with pair() as both:
        yield both


@contextmanager
def audits(both: Pair) -> Iterator[None]:
    """Another process freezes and thaws port a, over and over."""
    child = os.fork()
    if child == 0:
        try:
            until = soon(20)
            while _native.freeze(both.a.state, until):
                _native.thaw(both.a.state)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        _native.thaw(both.a.state)


def test_slot_is_not_lost_when_an_audit_freezes_the_port_during_the_copy(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    joined.segment(slot_bytes=1 << 15, slots=4)
    value = np.zeros(30_000, dtype=np.uint8)
    with audits(joined):
        for _ in range(3000):
            out.send(b"m", [value], None, soon())
            inn.receive(soon()).release()
    assert out.flush(soon())
    assert joined.a.port.stats()["slots_taken"] == 0


def test_slot_is_not_lost_when_a_signal_ends_the_send(joined: Pair) -> None:
    out = joined.sender()
    joined.segment()

    def handle(*_: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGUSR1, handle)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):  # no consumer: the send waits
            out.send(b"m", [np.zeros(60_000, dtype=np.uint8)], None, soon(20))
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, former)
    assert joined.a.port.stats()["slots_taken"] == 0


def test_array_shows_its_own_tensor_when_another_is_made_meanwhile(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    out.send(b"m", [b"\x01" * 8, b"\x02" * 8], None, soon())
    message = inn.receive(soon())

    class Shape:
        """A sequence whose reading asks for the other tensor, as another thread might."""

        def __iter__(self) -> Iterator[int]:
            other.append(message.tensor(1, "uint8", (8,)))
            return iter((8,))

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> int:
            return (8,)[index]

    other: list[np.ndarray] = []
    array = message.tensor(0, "uint8", Shape())
    assert other and array.tolist() == [1] * 8


def test_foreign_mapping_that_nobody_uses_is_given_up_and_a_held_one_is_not(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    segment = joined.segment()
    joined.flow()
    big = np.arange(5000, dtype=np.int32)
    for _ in range(2):
        out.send(b"", [big], None, soon())
    read, unread = inn.receive_many(2, soon())
    array = read.tensor(0, "int32", (5000,))
    port = joined.b.port
    assert [port.drop_unused_readers() for _ in range(3)] == [0, 0, 0], "messages lie in it"
    read.release()
    unread.release()
    assert [port.drop_unused_readers() for _ in range(2)] == [1, 0]
    assert port.stats()["readers"] == 0
    out.send(b"", [big], None, soon())
    again = inn.receive_many(1, soon())[0]
    with pytest.raises(_native.NeedSegment, match=str(segment)):
        again.tensor(0, "int32", (5000,))
    del array, again
