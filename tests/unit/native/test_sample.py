"""Sampling a living port and its lanes from outside: numbers move with what they count, nothing hostile hangs."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from fabric import _native, errors, limits
from tests.unit.native.pair import AT_LEAST_ONCE, Pair, pair, soon

PAGE = os.sysconf("SC_PAGE_SIZE")
DELIVERED, FAILED = (1, 0), (3, 5)  # (end, reason): consumer_error
BIG = b"x" * 20_000


@pytest.fixture
def joined() -> Iterator[Pair]:
    with pair() as both:
        yield both


def ledger(sampler):
    (row,) = sampler.sample()["ledgers"]
    return row


def test_a_ledger_shows_accepted_outstanding_and_ends_before_they_are_folded(joined: Pair) -> None:
    out, inn = joined.sender(delivery=AT_LEAST_ONCE), joined.receiver(delivery=AT_LEAST_ONCE)
    joined.flow()
    joined.segment()
    sampler = _native.StateSampler(joined.a.state)
    assert sampler.sample()["ledgers"][0]["accepted"] == 0
    for _ in range(3):
        out.send(b"m", [BIG], None, soon())
    row = ledger(sampler)
    assert (row["channel"], row["accepted"], row["outstanding"], row["counts"]) == (7, 3, 3, {})
    assert row["outstanding_bytes"] >= 60_000
    joined.b.port.progress()
    first, second, _third = inn.receive_many(3, soon())
    second.ack()  # behind the first, so nothing can be folded
    joined.b.port.progress()
    joined.a.port.progress()
    row = ledger(sampler)
    assert (row["outstanding"], row["counts"]) == (2, {DELIVERED: 1})
    assert row["delivered_bytes"] >= 20_000
    first.nack(FAILED[1])
    joined.b.port.progress()
    joined.a.port.progress()
    row = ledger(sampler)
    assert (row["accepted"], row["outstanding"], row["counts"]) == (3, 1, {DELIVERED: 1, FAILED: 1})


def test_looking_at_a_port_takes_no_memory_for_what_nobody_used(joined: Pair) -> None:
    def bytes_of(fd: int) -> int:
        return os.fstat(fd).st_blocks * 512

    sampler = _native.StateSampler(joined.a.state)
    idle = bytes_of(joined.a.state)
    assert idle <= 2 * PAGE
    sampler.sample()
    _native.inspect_state(joined.a.state)
    assert bytes_of(joined.a.state) == idle
    out = joined.sender()
    joined.receiver()
    joined.flow()
    out.send(b"m", [b"x"], None, soon())
    used = bytes_of(joined.a.state)
    assert used - idle <= 3 * PAGE
    assert sampler.sample()["ledgers"][0]["accepted"] == 1
    (row,) = _native.inspect_state(joined.a.state)["ledgers"]
    assert row["accepted"] == 1
    assert _native.inspect_ledgers(joined.a.state, [row["endpoint"], 4711]) == [row]
    assert _native.inspect_ledgers(joined.a.state, [4711]) == []
    assert bytes_of(joined.a.state) == used


def test_held_shows_queued_then_views_then_nothing(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    joined.segment()
    sampler = _native.StateSampler(joined.b.state)
    assert sampler.sample()["held"] == []
    for _ in range(2):
        out.send(b"m", [BIG], None, soon())
    joined.b.port.progress()
    (row,) = sampler.sample()["held"]
    assert (row["channel"], row["queued"], row["views"], row["oldest_view_ns"]) == (7, 2, 0, 0)
    assert row["queued_bytes"] >= 40_000
    view = inn.receive(soon())
    (row,) = sampler.sample()["held"]
    assert (row["queued"], row["views"]) == (1, 1)
    assert row["view_bytes"] >= 20_000
    assert 0 < row["oldest_view_ns"] <= _native.monotonic_ns()
    (flow,) = sampler.sample()["flows"]
    assert (flow["drained"], flow["handed"]) == (2, 1)
    view.release()
    inn.receive(soon()).release()
    assert sampler.sample()["held"] == []


def test_a_lane_shows_what_is_in_its_rings_now_and_what_went_through(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    lane = _native.LaneSampler(joined.lane_fd)
    assert lane.sample(0)["record_bytes"] == 0
    out.send(b"m", [], None, soon())
    there = lane.sample(0)
    assert there["record_bytes"] == there["record_bytes_total"] > 0
    assert lane.sample(1)["record_bytes_total"] == 0
    joined.b.port.progress()
    assert lane.sample(0)["record_bytes"] == 0
    inn.receive(soon()).release()
    joined.b.port.progress()
    assert lane.sample(0)["returns"] > 0
    joined.a.port.progress()
    assert lane.sample(0)["returns"] == 0
    assert lane.sample(0)["returns_total"] > 0


def test_a_segment_shows_its_taken_slots(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    joined.segment(slots=8)
    fd = joined.a.fds[-1]
    assert _native.sample_segment(fd) == {"slot_bytes": 1 << 16, "slot_count": 8, "taken": 0}
    out.send(b"m", [BIG], None, soon())
    assert _native.sample_segment(fd)["taken"] == 1
    joined.b.port.progress()
    inn.receive(soon()).release()
    joined.b.port.progress()
    joined.a.port.progress()
    assert _native.sample_segment(fd)["taken"] == 0


@pytest.mark.parametrize(
    "make", [_native.StateSampler, _native.LaneSampler, _native.sample_segment]
)
def test_what_is_no_segment_is_refused(make) -> None:
    fd = os.memfd_create("other")
    try:
        with pytest.raises(errors.FabricError):
            make(fd)
        os.truncate(fd, 256 << 20)
        with pytest.raises(errors.InternalError):
            make(fd)
    finally:
        os.close(fd)


@pytest.mark.promise("P3")
@pytest.mark.deadline(30)
def test_a_hostile_state_of_random_bytes_costs_bounded_time_and_no_crash(joined: Pair) -> None:
    joined.sender()
    sampler = _native.StateSampler(joined.a.state)
    size = os.fstat(joined.a.state).st_size
    noise = bytes((i * 197 + 13) % 256 for i in range(1 << 16))
    for offset in range(4096, size - len(noise), len(noise)):
        os.pwrite(joined.a.state, noise, offset)
    seen = sampler.sample()
    assert len(seen["ledgers"]) <= limits.ENDPOINTS_PER_PORT_MAX
    assert len(seen["flows"]) <= limits.FLOWS_IN_PER_PORT_MAX
    assert all(row["outstanding"] <= limits.OUTSTANDING_PER_ENDPOINT for row in seen["ledgers"])
    os.pwrite(joined.lane_fd, noise, 4096)
    lane = _native.LaneSampler(joined.lane_fd)
    assert lane.sample(0)["record_bytes"] <= limits.LANE_BYTES
    assert lane.sample(1)["returns"] <= limits.RETURN_ENTRIES


def test_sampling_beside_traffic_only_ever_grows(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    sampler = _native.StateSampler(joined.a.state)
    going = threading.Event()

    def traffic() -> None:
        while not going.is_set():
            out.send(b"m", [], None, soon())
            joined.b.port.progress()
            inn.receive(soon()).release()
            joined.b.port.progress()
            joined.a.port.progress()

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        accepted = 0
        deadline = time.monotonic() + 20
        while accepted < 2000 and time.monotonic() < deadline:
            row = ledger(sampler)
            assert row["accepted"] >= accepted
            accepted = row["accepted"]
            assert sum(row["counts"].values()) + row["outstanding"] <= accepted
    finally:
        going.set()
        thread.join(10)
    assert accepted >= 2000
    assert (
        struct.unpack("<Q", os.pread(joined.a.state, 8, 32))[0] == sampler.sample()["heartbeat_ns"]
    )
