"""Workloads of group `paths`, under the interpreter of the subject: nothing here needs more than numpy.

A *stream end* is what a subject's ``connect`` returns; beside ``close()``:

- ``post(array, until_ns)`` begins to send an array and returns a handle, or None where the array may be written again;
- ``finish(handle, until_ns)`` waits until it may be written again;
- ``borrow(size, until_ns)``, where there is one, returns an array of the library's own memory for the next ``post``;
- ``take(until_ns)`` returns an array over the next message, or None where none came; ``release()`` gives it back;
- ``send(data)`` and ``receive()`` carry 64 B for `pings`.

Waits that are over raise `TimeoutError`: what was measured until then is the answer. Times are CLOCK_MONOTONIC.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

Order = dict[str, Any]
HEAD = np.dtype([("number", "<u8"), ("sent_ns", "<u8"), ("is_last", "<u8"), ("bytes", "<u8")])
TAIL_BYTES = 8
BLOCK = 1 << 20
PING_BYTES = 64
PING_PAUSE_S = 0.001
LAST = b"L"
clock = time.monotonic_ns


class Streaming:
    """Mix in: the workloads as methods, so that `bench.loops` finds them."""

    workloads: tuple[str, ...] = ("stream", "pings")

    def stream(self, role: str, order: Order) -> Order:
        """Send, or take, messages of `size` bytes: `count` of them, or for `seconds`."""
        return stream_near(self, order) if role == "near" else stream_far(self, order)

    def pings(self, role: str, order: Order) -> Order:
        """Make round trips of 64 B for `seconds`, a pause between them."""
        return pings_near(self, order) if role == "near" else pings_far(self, order)


def body(size: int) -> np.ndarray[Any, Any]:
    """Return what a message holds between its head and its tail: one random block again and again."""
    block = np.random.default_rng(5).integers(0, 256, BLOCK, np.uint8)
    return np.tile(block, -(-size // BLOCK))[:size]


def stamp(array: np.ndarray[Any, Any], number: int, now: int, is_last: bool) -> None:
    """Write head and tail."""
    array[: HEAD.itemsize].view(HEAD)[0] = (number, now, is_last, array.nbytes)
    array[-TAIL_BYTES:].view("<u8")[0] = number


def is_intact(array: np.ndarray[Any, Any], block: np.ndarray[Any, Any], size: int) -> bool:
    """Whether head, tail and all between them are of one message, as it was sent."""
    head = array[: HEAD.itemsize].view(HEAD)[0]
    if len(array) != size or head["bytes"] != size:
        return False
    if array[-TAIL_BYTES:].view("<u8")[0] != head["number"]:
        return False
    for at in range(0, size, BLOCK):
        start, stop = max(at, HEAD.itemsize), min(at + BLOCK, size - TAIL_BYTES)
        mine, sent = array[start:stop], block[start - at : stop - at]
        words = len(mine) // 8 * 8
        if not np.array_equal(mine[:words].view("<u8"), sent[:words].view("<u8")):
            return False
    return True


def stream_near(end: Any, order: Order) -> Order:
    """Send with at most `window` messages under way; the last one says that it is the last."""
    size, window, count = order["size"], order["window"], order.get("count", 0)
    slots = min(window + 1, count or window + 1)
    borrow = getattr(end, "borrow", None)
    arrays = [body(size) for _ in range(1 if borrow else slots)]
    give_up = clock() + int(order["give_up_s"] * 1e9)
    pending: deque[Any] = deque()
    start, number, failed, is_last = 0, 0, "", False
    try:
        while not is_last:
            if len(pending) == slots:
                end.finish(pending.popleft(), give_up)
            array = arrays[0 if borrow else number % slots]
            if borrow:
                array = filled(borrow(size, give_up), array)
            now = clock()
            start = start or now  # the first message is there by then
            over = now - start >= int(order.get("seconds", 0) * 1e9)
            is_last = number + 1 == count if count else over
            stamp(array, number, now, is_last)
            pending.append(end.post(array, give_up))
            number += 1
        while pending:
            end.finish(pending.popleft(), give_up)
    except Exception as error:
        failed = f"{type(error).__name__}: {error}"
    ns = clock() - start
    return {"start": start, "sent": number, "ended": is_last, "failed": failed, "ns": ns}


def filled(array: np.ndarray[Any, Any], contents: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Write an array's contents."""
    array[:] = contents
    return array


def stream_far(end: Any, order: Order) -> Order:
    """Take messages until the last one, or until nobody waits any more; (arrived, sent, number) of each."""
    size, until = order["size"], clock() + int(order["give_up_s"] * 1e9)
    block, is_checked = body(min(size, BLOCK)), order.get("is_checked", True)
    arrivals: list[tuple[int, int, int]] = []
    torn, failed, is_last = 0, "", False
    try:
        while not is_last:
            array = end.take(until)
            if array is None:
                break
            at, head = clock(), array[: HEAD.itemsize].view(HEAD)[0]
            arrivals.append((at, int(head["sent_ns"]), int(head["number"])))
            is_last = bool(head["is_last"])
            torn += is_checked and not is_intact(array, block, size)
            end.release()
    except Exception as error:
        failed = f"{type(error).__name__}: {error}"
    return {"arrivals": arrivals, "torn": torn, "ended": is_last, "failed": failed}


def pings_near(end: Any, order: Order) -> Order:
    """Time each; (begun, took) in ns."""
    until = clock() + int(order["seconds"] * 1e9)
    data, times, is_over = bytes(PING_BYTES), [], False
    while not is_over:
        begun = clock()
        is_over = begun >= until
        end.send(LAST + data[1:] if is_over else data)
        end.receive()
        times.append((begun, clock() - begun))
        time.sleep(PING_PAUSE_S)
    return {"trips": times}


def pings_far(end: Any, order: Order) -> Order:
    """Send back what comes, the last included."""
    is_over = False
    while not is_over:
        data = bytes(end.receive())
        is_over = data[:1] == LAST
        end.send(data)
    return {}
