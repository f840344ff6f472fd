"""The work itself, the same for every subject: two halves of each workload, over whatever an end can do.

An end is what a subject's ``connect(role, folder, options)`` returns. It has ``close()`` and some of these, best as
bound functions of the library itself, so that nothing of the bench stands in the timed part:

=====================================  ==============================================================================
``send(data)``, ``receive()``          one message of bytes; ``receive`` blocks and returns any buffer of them
``send_many(list)``                    one crossing for several; with it ``receive_many(most)`` → list, at least one
``send_typed(a, b, c, text, tensor)``  two ints, a float, a text and a numpy array; ``receive_typed()`` → the same five
``send_array(array)``                  a large numpy array; ``receive_array()`` → an array over what came, and
                                       ``release_array()`` gives its memory back before the next one is asked for
``loan(size)``                         → a numpy array to write in place; ``send_loan()`` sends it
=====================================  ==============================================================================

`receive_array` and `loan` hold one array at a time. Before each order ``prepare(order)`` is called where there is
one: ``order["message_bytes"]`` is the length of every message of `send` in it, for libraries without bounds between
messages. An end may replace a workload by a method of its name, called with (role, order), where its library offers
something that these calls cannot express; `workloads` names what it has beside these.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from functools import lru_cache
from itertools import repeat
from typing import Any

import numpy as np

Order = dict[str, Any]
CALLS = ("send", "send_many", "send_typed", "send_array", "loan")
TYPED_BYTES = 1024
ACK_BYTES = 8
SOURCES = 4  # arrays that a sender takes in turn, so that none is in the cache only because it was just sent


def describe(end: Any) -> Order:
    """Say what an end can do."""
    offered = [name for name in (*CALLS, *WORKLOADS) if getattr(end, name, None) is not None]
    return {"can": [*offered, *getattr(end, "workloads", ())]}


def run(end: Any, role: str, order: Order) -> Order:
    """Run one half of a workload.

    Raises
    ------
    KeyError
        No such workload.
    """
    order["message_bytes"] = message_bytes(order)
    if hasattr(end, "prepare"):
        end.prepare(order)
    own = getattr(end, order["run"], None)
    if own is not None:
        return dict(own(role, order))
    near, far = WORKLOADS[order["run"]]
    return (near if role == "near" else far)(end, order)


def message_bytes(order: Order) -> int:
    """Return the length of small messages in an order: those that are measured, or confirmations."""
    is_measured = order["run"] in ("round_trips", "one_way") or (
        order["run"] == "verify" and not order.get("as_array")
    )
    return int(order["size"]) if is_measured else ACK_BYTES


def payload(order: Order, size: int | None = None) -> np.ndarray[Any, Any]:
    """Return random bytes that both halves can make from the order's seed; not to be written to."""
    return _random_bytes(order.get("seed", 1), order["size"] if size is None else size)


@lru_cache(maxsize=SOURCES)
def _random_bytes(seed: int, size: int) -> np.ndarray[Any, Any]:
    """Make them once for all rounds: what that costs belongs to no message."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


# ------------------------------------------------------------------ round trips
def round_trips_near(end: Any, order: Order) -> Order:
    """Time `count` round trips of `size` bytes; ``ns`` of each."""
    send, receive, clock = end.send, end.receive, time.perf_counter_ns
    data, times = payload(order).tobytes(), []
    for _ in repeat(None, order["count"]):
        start = clock()
        send(data)
        receive()
        times.append(clock() - start)
    return {"ns": times}


def round_trips_far(end: Any, order: Order) -> Order:
    """Send back what comes."""
    send, receive = end.send, end.receive
    for _ in repeat(None, order["count"]):
        send(receive())
    return {}


# ------------------------------------------------------------------ rate
def one_way_near(end: Any, order: Order) -> Order:
    """Time `count` messages, `batch` at a time when given, until the far half confirms the last; ``ns`` in all."""
    count, batch = order["count"], order.get("batch", 1)
    data = payload(order).tobytes()
    start = time.perf_counter_ns()
    if batch == 1:
        send = end.send
        for _ in repeat(None, count):
            send(data)
    else:
        send_many, full = end.send_many, [data] * batch
        for _ in repeat(None, count // batch):
            send_many(full)
    end.receive()
    return {"ns": time.perf_counter_ns() - start}


def one_way_far(end: Any, order: Order) -> Order:
    """Take `count` messages, then confirm."""
    left, size = order["count"], order["size"]
    if order.get("batch", 1) == 1:
        receive = end.receive
        for _ in repeat(None, left):
            data = receive()
    else:
        receive_many, most = end.receive_many, order["batch"]
        while left:
            batch = receive_many(min(most, left))
            left -= len(batch)
        data = batch[-1]
    if len(data) != size:
        raise AssertionError(f"{len(data)} bytes came where {size} were sent")
    end.send(bytes(size))
    return {}


# ------------------------------------------------------------------ typed messages
def typed_near(end: Any, order: Order) -> Order:
    """Time `count` messages of four scalars and a tensor of 1 KiB until the far half confirms the last; ``ns``."""
    send, count = end.send_typed, order["count"]
    tensor = payload(order, TYPED_BYTES).view(np.float32)
    start = time.perf_counter_ns()
    for step in range(count):
        send(step, 7, 0.5, "request-1", tensor)
    end.receive_typed()
    return {"ns": time.perf_counter_ns() - start}


def typed_far(end: Any, order: Order) -> Order:
    """Take `count` typed messages, look at every field, then confirm."""
    receive = end.receive_typed
    expected = payload(order, TYPED_BYTES).view(np.float32)
    first = expected[3].tobytes()
    for step in range(order["count"]):
        a, b, c, text, tensor = receive()
        if a != step or b != 7 or c != 0.5 or text != "request-1" or len(tensor) != len(expected):
            raise AssertionError(f"message {step} is not what was sent: {a, b, c, text}")
    if tensor[3].tobytes() != first:
        raise AssertionError("the last tensor is not what was sent")
    end.send_typed(0, 0, 0.0, "done", expected)
    return {}


# ------------------------------------------------------------------ bulk
def bulk_near(end: Any, order: Order) -> Order:
    """Time `count` arrays of `size` bytes, `window` of them unconfirmed at most; ``ns`` in all."""
    send, count, window = end.send_array, order["count"], order.get("window", 1)
    sources = [payload({**order, "seed": seed}) for seed in range(min(SOURCES, count))]
    start = time.perf_counter_ns()
    for number in range(count):
        if number >= window:
            end.receive()
        send(sources[number % len(sources)])
    for _ in range(min(window, count)):
        end.receive()
    return {"ns": time.perf_counter_ns() - start}


def loaned_near(end: Any, order: Order) -> Order:
    """The same with memory of the fabric, which is written once before: the sender's data are born in place."""
    count, window = order["count"], order.get("window", 1)
    start = time.perf_counter_ns()
    for number in range(count):
        if number >= window:
            end.receive()
        end.loan(order["size"])[:64] = number % 251
        end.send_loan()
    for _ in range(min(window, count)):
        end.receive()
    return {"ns": time.perf_counter_ns() - start}


def bulk_far(end: Any, order: Order) -> Order:
    """Take arrays and confirm each, once its bytes are summed where the order says so."""
    receive, release, total = end.receive_array, end.release_array, 0
    reads = order.get("read", False)
    for _ in repeat(None, order["count"]):
        array = receive()
        if reads:  # whole words: how fast the memory can be read, not how fast bytes can be widened
            total += int(np.add.reduce(array.view(np.uint64)))
        size = len(array)
        del array
        release()
        end.send(bytes(order["message_bytes"]))
    if size != order["size"]:
        raise AssertionError(f"{size} bytes came where {order['size']} were sent")
    return {"sum": total % (1 << 64)}


# ------------------------------------------------------------------ one hand-over, timed over both processes
def hand_over_near(end: Any, order: Order) -> Order:
    """Loan, write in place, send; ``at`` (CLOCK_MONOTONIC, ns) each send was called, each after the one before came."""
    moments = []
    for number in range(order["count"]):
        array = end.loan(order["size"])
        array[:] = number % 251
        del array
        moments.append(time.monotonic_ns())
        end.send_loan()
        end.receive()
    return {"at": moments}


def hand_over_far(end: Any, order: Order) -> Order:
    """Say when each ``receive`` returned."""
    moments = []
    for _ in repeat(None, order["count"]):
        array = end.receive_array()
        moments.append(time.monotonic_ns())
        del array
        end.release_array()
        end.send(bytes(order["message_bytes"]))
    return {"at": moments}


# ------------------------------------------------------------------ what an idle end costs; whether bytes are right
def idle_near(end: Any, order: Order) -> Order:
    """Say nothing for `seconds`, then something."""
    time.sleep(order["seconds"])
    end.send(bytes(order["message_bytes"]))
    return {}


def idle_far(end: Any, order: Order) -> Order:
    """Wait for it; what that costs is the answer's `cpu_ns`."""
    end.receive()
    return {}


def verify_near(end: Any, order: Order) -> Order:
    """Send `count` random messages of `size`, arrays and ``loaned`` ones where the order says so; ``crc`` of each."""
    found = []
    for seed in range(order["count"]):
        data = payload({**order, "seed": order["seed"] * 1000 + seed})
        found.append(zlib.crc32(data))
        if order.get("loaned"):
            end.loan(order["size"])[:] = data
            end.send_loan()
        elif order.get("as_array"):
            end.send_array(data)
        else:
            end.send(data.tobytes())
        end.receive()
    return {"crc": found}


def verify_far(end: Any, order: Order) -> Order:
    """Say what came; ``crc`` of each."""
    found = []
    for _ in repeat(None, order["count"]):
        if order.get("as_array"):
            found.append(zlib.crc32(end.receive_array()))
            end.release_array()
        else:
            found.append(zlib.crc32(end.receive()))
        end.send(bytes(order["message_bytes"]))
    return {"crc": found}


Half = Callable[[Any, Order], Order]
WORKLOADS: dict[str, tuple[Half, Half]] = {
    "round_trips": (round_trips_near, round_trips_far),
    "one_way": (one_way_near, one_way_far),
    "typed": (typed_near, typed_far),
    "bulk": (bulk_near, bulk_far),
    "loaned": (loaned_near, bulk_far),
    "hand_over": (hand_over_near, hand_over_far),
    "idle": (idle_near, idle_far),
    "verify": (verify_near, verify_far),
}
