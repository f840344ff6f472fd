"""A peer that writes lies into the lane that it shares: its lane fails, typed; nothing else does, nothing hangs."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from fabric import _native, errors
from tests.unit.native.pair import (
    AT_LEAST_ONCE,
    DELIVERED,
    QUEUE,
    Attached,
    Pair,
    pair,
    send_each,
    soon,
)

PAGE = 4096
LANE_BYTES = 256 * 1024
RETURN_ENTRIES = 4096
RECORDS = 2 * PAGE  # layout.hpp: LaneHead, cursors, both record rings, both return rings
RETURNS = RECORDS + 2 * LANE_BYTES
END, CREDIT, RELEASE = 1, 2, 3


def cursor(direction: int, ring: str, which: str) -> int:
    """Offset of a cursor in a lane pair segment."""
    at = {"records": 0, "returns": 128}[ring] + {"head": 0, "tail": 64}[which]
    return PAGE + 256 * direction + at


@dataclass
class Liar:
    """Ports a, b and the hostile c: a sends to both b and c, and receives from both."""

    both: Pair
    c: Attached
    fd: int  # lane 2, between a (side 0) and c (side 1)

    def write(self, offset: int, *values: int) -> None:
        os.pwrite(self.fd, struct.pack(f"<{len(values)}Q", *values), offset)
        ready = 64  # DoorbellLayout::ready
        os.pwrite(self.both.a.doorbell, (1 << 2).to_bytes(8, "little"), ready)  # news on lane 2

    def read(self, offset: int) -> int:
        return int.from_bytes(os.pread(self.fd, 8, offset), "little")

    def put_record(self, direction: int, data: bytes) -> None:
        head = self.read(cursor(direction, "records", "head"))
        os.pwrite(self.fd, data, RECORDS + direction * LANE_BYTES + head % LANE_BYTES)
        self.write(cursor(direction, "records", "head"), head + (len(data) + 7) // 8 * 8)

    def put_return(self, direction: int, kind: int, flow: int, a: int, b: int, **more: int) -> None:
        head = self.read(cursor(direction, "returns", "head"))
        entry = struct.pack(
            "<QQQBBBBI", flow, a, b, kind, more.get("end", 0), more.get("reason", 0), 0, 0
        )
        at = RETURNS + direction * RETURN_ENTRIES * 32 + head % RETURN_ENTRIES * 32
        os.pwrite(self.fd, entry, at)
        self.write(cursor(direction, "returns", "head"), head + 1)


@pytest.fixture
def liar() -> Iterator[Liar]:
    with pair() as both:
        c = Attached.open(300)
        a = both.a
        fd = _native.create_lane_pair(1, a.number, a.incarnation, c.number, c.incarnation)
        a.port.add_lane(2, fd, 0, 1, c.number, c.incarnation, c.doorbell, c.event)
        c.port.add_lane(2, fd, 1, 1, a.number, a.incarnation, a.doorbell, a.event)
        try:
            yield Liar(both, c, fd)
        finally:
            c.close()
            os.close(fd)


def record(flow: int, flow_seq: int = 1, inline: bytes = b"\0" * 8, **fields: int) -> bytes:
    """A record with a producer extension; `fields` replace header fields."""
    extension = struct.pack("<HHQQ4x", 1, 16, 300, 1)
    header = {
        "version": 1,
        "header_len8": (64 + len(extension)) // 8,
        "flags": 0,
        "total_len": 64 + len(extension) + len(inline),
        "flow": flow,
        "flow_seq": flow_seq,
        "sequence": flow_seq,
        "deadline_ns": 0,
        "channel": 7,
        "type": 99,
        "generation": 1,
        "klass": 1,
        "kind": 0,
        "segment_count": 0,
        "payload_bytes": len(inline),
    } | fields
    return struct.pack("<BBHIQQQQIIIBBHQ", *header.values()) + extension + inline


def two_producers(liar: Liar) -> tuple[Any, Any, int, int]:
    """A receiver at a with a flow from b and one from c; the sender at b."""
    a, b, c = liar.both.a, liar.both.b, liar.c
    inn = a.port.open_receiver(21, 7, 99, QUEUE, AT_LEAST_ONCE)
    out = b.port.open_sender(11, 7, 99, QUEUE, AT_LEAST_ONCE, 1)
    good, bad = 501, 502
    a.port.add_flow_in(21, good, 1, b.number, 64, 1 << 20)
    b.port.add_flow_out(11, good, 1, 21, 64, 1 << 20, 1, False)
    a.port.add_flow_in(21, bad, 2, c.number, 64, 1 << 20)
    return inn, out, good, bad


def two_consumers(liar: Liar) -> tuple[Any, int, int]:
    """A sender at a with a flow to b and one to c."""
    a, b = liar.both.a, liar.both.b
    out = a.port.open_sender(12, 8, 99, QUEUE, AT_LEAST_ONCE, 1)
    good, bad = 601, 602
    inn = b.port.open_receiver(22, 8, 99, QUEUE, AT_LEAST_ONCE)
    b.port.add_flow_in(22, good, 1, a.number, 64, 1 << 20)
    a.port.add_flow_out(12, good, 1, 22, 64, 1 << 20, 1, False)
    a.port.add_flow_out(12, bad, 2, 33, 256, 1 << 20, 1, False)
    liar.keep = inn  # type: ignore[attr-defined]
    return out, good, bad


HEADER_LIES = [
    {"version": 9},
    {"header_len8": 255},
    {"header_len8": 1},
    {"total_len": 0},
    {"total_len": 0xFFFFFFFF},
    {"total_len": 8192},
    {"flow": 0},
    {"flow_seq": 0},
    {"flow_seq": 2},
    {"flow_seq": 2**64 - 1},
    {"klass": 200},
    {"kind": 7},
    {"kind": 1, "segment_count": 1},
    {"segment_count": 65535},
    {"segment_count": 1},
    {"payload_bytes": 0},
    {"payload_bytes": 2**64 - 1},
    {"flags": 1 << 15},
]


@pytest.mark.promise("P2", "P4")
@pytest.mark.parametrize("lie", HEADER_LIES, ids=str)
def test_record_that_lies_fails_its_lane_and_no_other(liar: Liar, lie: dict[str, int]) -> None:
    inn, out, _, bad = two_producers(liar)
    liar.put_record(1, record(**{"flow": bad} | lie))
    with pytest.raises(errors.PeerProtocolError):
        inn.receive(soon(0.5))
    send_each(out, [b"1", b"2"])
    assert [inn.receive(soon()).meta for _ in range(2)] == [b"1", b"2"]
    assert inn.receive(0) is None
    assert liar.both.a.port.stats()["lying"] == 1
    ((lane, why),) = liar.both.a.port.broken_lanes()
    assert lane == 2 and why


@pytest.mark.promise("P4")
@pytest.mark.parametrize("lie", ["a gap", "more than its credit"])
def test_producer_behind_a_gateway_that_lies_harms_no_other_flow_of_the_lane(
    liar: Liar, lie: str
) -> None:
    a = liar.both.a
    inn = a.port.open_receiver(21, 7, 99, QUEUE, AT_LEAST_ONCE)
    bad, good = 701, 702
    for flow, producer in ((bad, 1001), (good, 1002)):  # c is the gateway of both producers
        a.port.add_flow_in(21, flow, 2, producer, 2, 1 << 20)
    for flow_seq in [5] if lie == "a gap" else [1, 2, 3, 4]:
        liar.put_record(1, record(bad, flow_seq))
    liar.put_record(1, record(good, 1))
    taken = [] if lie == "a gap" else [1, 2]
    for _ in taken:
        assert inn.receive(soon(0.5)) is not None
    assert inn.receive(soon(0.5)) is not None, "the other producer's"
    with pytest.raises(errors.PeerProtocolError):
        inn.receive(soon(0.5))
    liar.put_record(1, record(bad, 9))
    liar.put_record(1, record(good, 2))
    assert inn.receive(soon(0.5)) is not None
    assert inn.receive(0) is None, "told once"
    assert a.port.stats()["lying"] == 1


def test_record_with_the_flow_of_another_is_refused(liar: Liar) -> None:
    inn, out, good, _ = two_producers(liar)
    liar.put_record(1, record(good))
    with pytest.raises(errors.PeerProtocolError, match="flow of another lane"):
        inn.receive(soon(0.5))
    send_each(out, [b"true"])
    message = inn.receive(soon())
    message.ack()
    assert message.meta == b"true" and out.counts() == {(DELIVERED, 0): 1}


def test_producer_on_a_lane_of_its_own_is_its_peer_whatever_a_record_says(liar: Liar) -> None:
    inn, _, _, own = two_producers(liar)
    whole = bytearray(record(own))
    whole[64:88] = struct.pack("<HHQQ4x", 1, 16, 4711, 4712)
    liar.put_record(1, bytes(whole))
    message = inn.receive(soon(0.5))
    assert (message.producer, message.producer_incarnation) == (liar.c.number, 1)


@pytest.mark.parametrize(
    "extension",
    [
        struct.pack("<HHQQ4x", 1, 60000, 300, 1),  # longer than the header
        struct.pack("<HHQQ4x", 1, 8, 300, 1),  # a producer of half the size
        struct.pack("<HHQQ4x", 3, 8, 300, 1),
    ],
)
def test_extension_that_lies_is_refused(liar: Liar, extension: bytes) -> None:
    inn, _, _, bad = two_producers(liar)
    whole = bytearray(record(bad))
    whole[64 : 64 + len(extension)] = extension
    liar.put_record(1, bytes(whole))
    with pytest.raises(errors.PeerProtocolError):
        inn.receive(soon(0.5))


@pytest.mark.parametrize(
    "entry",
    [
        {"segment": 99999},
        {"slot": 2**31},
        {"offset": 2**63},
        {"length": 1 << 40},
        {"generation": 2},
        {"memory_kind": 77},
        {"index_count": 5},
        {"offset": 1 << 16},
    ],
    ids=str,
)
def test_segment_table_that_lies_never_yields_memory(liar: Liar, entry: dict[str, int]) -> None:
    inn, _, _, bad = two_producers(liar)
    number = liar.both.segment()  # a segment of a's own; a reads it as a foreign one would be read
    liar.both.a.port.add_segment(number, liar.both.a.fds[-1], False)
    row = {
        "memory_kind": 0,
        "device": 0,
        "numa": 0,
        "tenant": 0,
        "segment": number,
        "slot": 0,
        "generation": 1,
        "index_count": 0,
        "offset": 0,
        "length": 64,
        "fence": 0,
    } | entry
    table = struct.pack("<BBHIIIIIQQQ", *row.values())
    inline = struct.pack("<IIQ", 0, 1, 64)
    whole = bytearray(
        record(bad, inline=inline, segment_count=1, payload_bytes=len(inline) + row["length"])
    )
    whole[64 + 24 : 64 + 24] = table
    whole[4:8] = struct.pack("<I", len(whole))
    liar.put_record(1, bytes(whole))
    try:
        message = inn.receive(soon(0.5))
    except errors.PeerProtocolError:
        return
    with pytest.raises(
        (errors.PeerProtocolError, errors.StaleHandleError, errors.FabricError, _native.NeedSegment)
    ):
        message.tensor(0, "uint8", (row["length"],))


CURSOR_LIES = [1, 7, 8 * LANE_BYTES, 2**63, 2**64 - 8, 2**64 - 1]


@pytest.mark.promise("P3")
@pytest.mark.parametrize("value", CURSOR_LIES)
@pytest.mark.parametrize("own_tail", [False, True])
def test_head_of_a_lane_that_lies_ends_in_an_error_and_not_in_a_loop(
    liar: Liar, value: int, own_tail: bool
) -> None:
    """Also when the liar moves the reader's own cursor beside it, and fills the ring with padding."""
    inn, out, _, _ = two_producers(liar)
    pad = struct.pack("<BBHI", 1, 0, 1 << 15, LANE_BYTES)
    os.pwrite(liar.fd, pad, RECORDS + LANE_BYTES)
    if own_tail:
        liar.write(cursor(1, "records", "tail"), max(0, value - LANE_BYTES // 2) // 8 * 8)
    liar.write(cursor(1, "records", "head"), value)
    began = time.monotonic()
    with pytest.raises(errors.PeerProtocolError):
        inn.receive(soon(0.5))
    assert time.monotonic() - began < 0.4
    send_each(out, [b"1"])
    assert inn.receive(soon()).meta == b"1"


@pytest.mark.parametrize("value", [RETURN_ENTRIES + 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("own_tail", [False, True])
def test_head_of_a_return_ring_that_lies_ends_in_an_error(
    liar: Liar, value: int, own_tail: bool
) -> None:
    out, _, bad = two_consumers(liar)
    for slot in range(RETURN_ENTRIES):  # each entry true by itself: credit of a flow nobody knows
        entry = struct.pack("<QQQBBBBI", 9, 1, 1, CREDIT, 0, 0, 0, 0)
        os.pwrite(liar.fd, entry, RETURNS + slot * 32)
    if own_tail:
        liar.write(cursor(0, "returns", "tail"), value - 8)
    liar.write(cursor(0, "returns", "head"), value)
    began = time.monotonic()
    liar.both.a.port.progress()
    assert time.monotonic() - began < 0.4
    with pytest.raises(errors.PeerProtocolError):
        out.send(b"", [], None, soon(0.5), flow=bad)
    out.send(b"", [], None, soon(0.5))


@pytest.mark.parametrize("value", [2**63, 1 << 20, 12, 2**64 - 8])
def test_reader_that_moves_its_cursor_where_it_cannot_be_is_an_error_for_the_sender(
    liar: Liar, value: int
) -> None:
    out, _, bad = two_consumers(liar)
    liar.write(cursor(0, "records", "tail"), value)
    began = time.monotonic()
    with pytest.raises(errors.PeerProtocolError, match="lane tail cannot be true"):
        for _ in range(100):
            out.send(b"x" * 4000, [], None, soon(2.0), flow=bad)
    assert time.monotonic() - began < 1.0
    out.send(b"", [], None, soon(0.5))


FORGED = [
    ("end of another's", END, 601, 1, 1, {"end": 1}),
    ("end that was not sent", END, 602, 1, 9, {"end": 1}),
    ("end before the first", END, 602, 0, 1, {"end": 1}),
    ("range upside down", END, 602, 1, 0, {"end": 1}),
    ("unknown end", END, 602, 1, 1, {"end": 9}),
    ("no end", END, 602, 1, 1, {"end": 0}),
    ("unknown reason", END, 602, 1, 1, {"end": 2, "reason": 99}),
    ("credit of another's", CREDIT, 601, 70, 70, {}),
    ("credit beyond the window", CREDIT, 602, 1 << 40, 1, {}),
    ("bytes beyond the window", CREDIT, 602, 1, 1 << 62, {}),
    ("slot of another's", RELEASE, 601, (1 << 32) | 0, 1, {}),
    ("unknown kind", 9, 602, 1, 1, {}),
]


@pytest.mark.promise("P1", "P4")
@pytest.mark.parametrize("forged", FORGED, ids=lambda forged: forged[0])
def test_forged_return_entry_moves_nothing_and_fails_its_lane(liar: Liar, forged: Any) -> None:
    _, kind, flow, a, b, more = forged
    out, good, bad = two_consumers(liar)
    liar.both.segment()
    out.send(b"", [b"x" * 20_000], None, soon(), flow=good)
    out.send(b"", [], None, soon(), flow=bad)
    before = {row["flow"]: row for row in out.flows()}
    liar.put_return(0, kind, flow, a, b, **more)
    liar.both.a.port.progress()
    assert out.counts() == {}
    after = {row["flow"]: row for row in out.flows()}
    assert after == before
    assert liar.both.a.port.stats()["slots_taken"] == 1
    assert liar.both.a.port.stats()["lying"] == 1
    with pytest.raises(errors.PeerProtocolError, match="return entry cannot be true"):
        out.send(b"", [], None, soon(0.5), flow=bad)
    out.send(b"", [], None, soon(0.5), flow=good)


@pytest.mark.promise("P4")
def test_slot_viewed_after_its_flow_closed_is_released_by_its_own_lane_only(liar: Liar) -> None:
    out, good, _ = two_consumers(liar)
    number = liar.both.segment()
    out.send(b"", [b"x" * 20_000], None, soon(), flow=good)
    inn = liar.keep  # type: ignore[attr-defined]
    view = inn.receive(soon())
    view.ack()
    liar.both.a.port.close_flow_out(good)
    assert liar.both.a.port.stats()["flows_out"] == 1 and out.counts() == {(DELIVERED, 0): 1}
    liar.put_return(0, RELEASE, good, number << 32, 1)
    liar.both.a.port.progress()
    assert liar.both.a.port.stats()["slots_taken"] == 1
    view.release()
    liar.both.b.port.progress()
    liar.both.a.port.progress()
    assert liar.both.a.port.stats()["slots_taken"] == 0


def test_flood_of_repeats_with_reports_that_nobody_reads_is_bounded(liar: Liar) -> None:
    """Each record of an unknown flow asks for a report; the liar never reads one."""
    inn, out, _, _ = two_producers(liar)
    one = record(9999, inline=bytes(40))  # 128 bytes: the ring is a multiple of it
    assert len(one) == 128
    began = time.monotonic()
    for _ in range(60):
        for _ in range(LANE_BYTES // 128):
            liar.put_record(1, one)
        liar.both.a.port.progress()
        if liar.both.a.port.stats()["lying"]:
            break
    assert liar.both.a.port.stats()["lying"] == 1, "reports pile up without end"
    assert time.monotonic() - began < 20
    send_each(out, [b"1"])
    with pytest.raises(errors.PeerProtocolError, match="reports"):
        inn.receive(0)
        inn.receive(0)
