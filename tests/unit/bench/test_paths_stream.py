"""The stream workload over an end in memory: what it says of messages that are whole, torn, late or never come."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np

from bench.paths.stream import HEAD, body, is_intact, stamp, stream_far, stream_near

SIZE = 4096
ORDER = {"size": SIZE, "window": 2, "count": 5, "give_up_s": 5.0}


class Memory:
    """Both ends of a stream in one object; `spoil` may change a message on its way or lose it."""

    def __init__(self, spoil: Any = None) -> None:
        self._there: deque[np.ndarray[Any, Any]] = deque()
        self._lock = threading.Condition()
        self._spoil = spoil

    def post(self, array: np.ndarray[Any, Any], until_ns: int) -> None:
        message = array.copy()
        if self._spoil is None or self._spoil(message):
            with self._lock:
                self._there.append(message)
                self._lock.notify()

    def finish(self, handle: None, until_ns: int) -> None:
        return

    def take(self, until_ns: int) -> np.ndarray[Any, Any] | None:
        with self._lock:
            self._lock.wait_for(lambda: bool(self._there), 0.05)
            return self._there.popleft() if self._there else None

    def release(self) -> None:
        return


def play(end: Memory, order: dict[str, Any]) -> tuple[Any, Any]:
    """Run both halves, one after the other."""
    near = stream_near(end, order)
    return near, stream_far(end, order)


def test_every_message_is_told_once_in_order() -> None:
    near, far = play(Memory(), ORDER)
    assert [row[2] for row in far["arrivals"]] == [0, 1, 2, 3, 4]
    assert near["sent"] == 5
    assert near["ended"] and far["ended"] and far["torn"] == 0


def test_a_changed_byte_in_the_middle_is_torn() -> None:
    def spoil(message: np.ndarray[Any, Any]) -> bool:
        if message[: HEAD.itemsize].view(HEAD)[0]["number"] == 3:
            message[SIZE // 2] ^= 1
        return True

    assert play(Memory(spoil), ORDER)[1]["torn"] == 1


def test_a_lost_last_message_ends_the_wait_and_is_said() -> None:
    def spoil(message: np.ndarray[Any, Any]) -> bool:
        return not message[: HEAD.itemsize].view(HEAD)[0]["is_last"]

    near, far = play(Memory(spoil), ORDER)
    assert near["ended"] and not far["ended"]
    assert len(far["arrivals"]) == 4


def test_an_end_that_fails_leaves_what_was_measured_and_the_reason() -> None:
    class Failing(Memory):
        def post(self, array: np.ndarray[Any, Any], until_ns: int) -> None:
            if array[: HEAD.itemsize].view(HEAD)[0]["number"] == 2:
                raise TimeoutError("no room")
            super().post(array, until_ns)

    near, _ = play(Failing(), ORDER)
    assert near["sent"] == 2
    assert near["failed"] == "TimeoutError: no room"


def test_head_and_tail_of_different_messages_are_not_intact() -> None:
    array = body(SIZE)
    stamp(array, 7, 1, False)
    assert is_intact(array, body(SIZE), SIZE)
    array[-8:].view("<u8")[0] = 6
    assert not is_intact(array, body(SIZE), SIZE)
