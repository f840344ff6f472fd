"""Shared memory that holds anything at all: looking at it is an answer or a typed error, never a crash or a hang."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric import _native, errors
from fabric.controlplane.audit import compare
from tests.unit.native.pair import AT_LEAST_ONCE, Pair, pair, send_each, soon

pytestmark = pytest.mark.promise("P2", "P3")

_SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
WORDS = st.sampled_from(
    [0, 1, 2, 3, 5, 255, 256, 0xFFFF, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 2048, 2**64 - 1]
) | st.integers(0, 2**64 - 1)


@contextmanager
def busy_pair() -> Iterator[Pair]:
    """Two ports with messages in every place: lane, held table, return ring, ledger."""
    with pair() as joined:
        out = joined.sender(delivery=AT_LEAST_ONCE)
        inn = joined.receiver(delivery=AT_LEAST_ONCE)
        joined.flow()
        joined.segment()
        send_each(out, [b"%d" % i for i in range(8)])
        out.send(b"", [b"x" * 20_000], None, soon())
        views = inn.receive_many(4, soon())
        views[0].ack()
        send_each(out, [b"9"])
        yield joined


def regions(fd: int, joined: Pair) -> list[tuple[int, int]]:
    """Where in a segment something is written at all: (offset, length)."""
    if fd == joined.lane_fd:
        return [(0, 64), (4096, 512), (8192, 2048), (8192 + 2 * 256 * 1024, 1024)]
    size, at, found = os.fstat(fd).st_size, 0, []
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)  # most of a state was never written
        except OSError:
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found += [(page, 4096) for page in range(start, at, 4096) if any(os.pread(fd, 4096, page))]
    return found


def look(joined: Pair) -> None:
    """What daemon and auditor do with a segment; every answer is compared as an audit would."""
    began = time.monotonic()
    ports: list[dict[str, Any]] = []
    for side in (joined.a, joined.b):
        try:
            ports.append(_native.inspect_state(side.state))
        except errors.FabricError:
            ports.append({"port": side.number, "flows": [], "held": [], "ledgers": [], "error": ""})
    directions: list[dict[str, Any]] = []
    for direction in (0, 1):
        try:
            directions.append(_native.inspect_lane(joined.lane_fd, direction))
        except errors.FabricError as error:
            directions.append({"error": str(error)})
    lane = {"lane": 1, "ports": [100, 200], "directions": directions}
    compare([{"node": "a", "ports": ports, "lanes": [lane]}])
    assert time.monotonic() - began < 5.0


@_SETTINGS
@given(data=st.data())
def test_any_word_in_a_state_or_lane_is_an_answer_or_an_error(data: st.DataObject) -> None:
    with busy_pair() as joined:
        fd = data.draw(st.sampled_from([joined.a.state, joined.b.state, joined.lane_fd]))
        places = regions(fd, joined)
        for _ in range(data.draw(st.integers(1, 6))):
            start, length = data.draw(st.sampled_from(places))
            at = start + data.draw(st.integers(0, length // 4 - 2)) * 4
            os.pwrite(fd, struct.pack("<Q", data.draw(WORDS)), at)
        look(joined)


@_SETTINGS
@given(data=st.data())
def test_adopting_a_ledger_that_lies_ends(data: st.DataObject) -> None:
    """The dead port's own process may have written anything; a surviving child of it may write on."""
    with busy_pair() as joined:
        fd = joined.a.state
        places = regions(fd, joined)
        for _ in range(data.draw(st.integers(1, 6))):
            start, length = data.draw(st.sampled_from(places))
            at = start + data.draw(st.integers(0, length // 4 - 2)) * 4
            os.pwrite(fd, struct.pack("<Q", data.draw(WORDS)), at)
        began = time.monotonic()
        try:
            adopter = _native.Adopter(fd)
        except errors.PeerProtocolError:
            return
        adopter.add_lane(joined.lane_fd, 0, 1)
        adopter.step()
        adopter.lose_flow(1, 2**64 - 1, 6)
        adopter.finish(7)
        assert time.monotonic() - began < 5.0
        look(joined)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(junk=st.binary(min_size=1, max_size=4096), page=st.integers(0, 200))
def test_pages_of_junk_are_an_answer_or_an_error(junk: bytes, page: int) -> None:
    with busy_pair() as joined:
        for fd in (joined.a.state, joined.b.state, joined.lane_fd):
            os.pwrite(fd, junk, 4096 * (page % (os.fstat(fd).st_size // 4096)))
        look(joined)


@_SETTINGS
@given(data=st.data())
def test_ports_survive_any_word_in_the_lane_between_them(data: st.DataObject) -> None:
    """Both ports go on or raise a typed error; neither waits past its deadline."""
    with busy_pair() as joined:
        sender = joined.a.port.open_sender(12, 7, 99, 1, AT_LEAST_ONCE, 1)
        receiver = joined.b.port.open_receiver(22, 7, 99, 1, AT_LEAST_ONCE)
        joined.flow(sender=12, receiver=22)
        for _ in range(data.draw(st.integers(1, 8))):
            start, length = data.draw(st.sampled_from(regions(joined.lane_fd, joined)[1:]))
            at = start + data.draw(st.integers(0, length // 4 - 2)) * 4
            os.pwrite(joined.lane_fd, struct.pack("<Q", data.draw(WORDS)), at)
            for side in (joined.a, joined.b):  # news on lane 1
                os.pwrite(side.doorbell, (1 << 1).to_bytes(8, "little"), 64)
            began = time.monotonic()
            for call in (
                lambda: sender.send(b"x", [], None, soon(0.05)),
                lambda: receiver.receive_many(10, soon(0.05)),
                joined.a.port.progress,
                joined.b.port.progress,
            ):
                with suppress(errors.FabricError, _native.NeedSegment):
                    call()
            assert time.monotonic() - began < 2.0
