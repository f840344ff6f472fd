"""An audit's freeze: nobody moves inside a cut; an auditor that died is not worth a hang, and is told if it wakes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fabric import _native
from tests.unit.native.pair import AT_LEAST_ONCE, Pair, pair, send_each, soon


@pytest.fixture
def joined() -> Iterator[Pair]:
    with pair() as both:
        yield both


def freeze(joined: Pair) -> int:
    """Freeze b; return its overruns before."""
    before = _native.freeze_overruns(joined.b.state)
    assert _native.freeze(joined.b.state, soon())
    return int(before)


@pytest.mark.promise("P1")
def test_operation_waits_for_the_thaw_and_moves_nothing_before(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    send_each(out, [b"1"])
    before = freeze(joined)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(inn.receive(soon())))
    thread.start()
    time.sleep(1.2)  # longer than a cut lasts, as long as an auditor may be late
    seen = _native.inspect_lane(joined.lane_fd, 0)
    assert len(seen["records"]) == 1 and not got
    assert _native.freeze_overruns(joined.b.state) == before
    _native.thaw(joined.b.state)
    thread.join(5)
    assert got[0].meta == b"1"


@pytest.mark.promise("P3")
def test_freeze_of_a_dead_auditor_is_ignored_and_counted(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    send_each(out, [b"1", b"2"])
    before = freeze(joined)
    began = time.monotonic()
    assert inn.receive(soon()).meta == b"1"
    first = time.monotonic() - began
    assert 1.5 < first < 4.0, (
        "the operation waits longer than a living auditor takes, and no longer"
    )
    began = time.monotonic()
    assert inn.receive(soon()).meta == b"2"
    assert time.monotonic() - began < 0.5, "once is enough"
    after = _native.freeze_overruns(joined.b.state)
    assert after > before, "an auditor that looks now must see that its cut is none"
    _native.thaw(joined.b.state)
    assert inn.receive(0) is None
    assert freeze(joined) == _native.freeze_overruns(joined.b.state)
    _native.thaw(joined.b.state)


@pytest.mark.promise("P4")
def test_batch_taken_during_a_freeze_lets_other_threads_run(joined: Pair) -> None:
    """The call parks without the interpreter's lock: another thread counts on meanwhile."""
    out, inn = joined.sender(delivery=AT_LEAST_ONCE), joined.receiver(delivery=AT_LEAST_ONCE)
    joined.flow()
    send_each(out, [b"%d" % i for i in range(20)])
    freeze(joined)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.extend(inn.receive_many(20, soon())))
    thread.start()
    turns, until = 0, time.monotonic() + 0.3
    while time.monotonic() < until:
        time.sleep(0.01)
        turns += 1
    _native.thaw(joined.b.state)
    thread.join(5)
    assert turns >= 10 and len(got) == 20
