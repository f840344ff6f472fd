"""What a peer engine may not do: replay, overwrite, speak for others, fall silent. Refused, and the state is clean."""

from __future__ import annotations

import select
import struct
from collections.abc import Iterator

import pytest

from fabric import _native, limits
from fabric.abc.link import PLAIN_CHUNKS
from fabric.testing.link_conformance import payload_of, take
from fabric.testing.rigs import EngineRig, TcpRig
from tests.conformance.raw_peer import (
    ANNOUNCE,
    CHUNK,
    EAGER,
    FLOW_IN,
    FLOW_OUT,
    GRANT,
    OTHER,
    OTHER_SESSION,
    PING,
    REPORT,
    SESSION,
    Node,
    Peer,
    record,
)

SIZE = 1000


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as opened:
        yield opened


def announced(node: Node, transfer: int) -> None:
    """Announce the first message of the flow and wait for its slot."""
    node.peer.send(1, ANNOUNCE, transfer, SIZE, record(FLOW_IN, 1, SIZE))
    node.event("grow")
    assert node.peer.expect(0, GRANT)[0] == transfer


@pytest.mark.promise("P2")
def test_a_chunk_that_comes_twice_does_not_touch_verified_bytes(node: Node) -> None:
    announced(node, 5)
    node.peer.send(1, CHUNK, 5, 0, b"a" * 600)
    node.peer.send(1, CHUNK, 5, 0, b"z" * 600)
    node.peer.send(1, CHUNK, 5, 500, b"z" * 200)
    node.peer.send(1, CHUNK, 5, 600, b"b" * 400)
    assert node.payload(SIZE) == b"a" * 600 + b"b" * 400
    assert node.engine.stats()["sessions"][0]["chunks_late"] == 2


@pytest.mark.promise("P2")
def test_a_chunk_without_checksum_is_refused_where_it_was_not_agreed(node: Node) -> None:
    announced(node, 5)
    node.peer.send(1, CHUNK, 5, 0, b"z" * SIZE, PLAIN_CHUNKS)
    assert "refused" in node.event("link_down")["reason"]
    node.peer.connect(1)
    node.peer.send(1, CHUNK, 5, 0, b"a" * SIZE)
    assert node.payload(SIZE) == b"a" * SIZE


@pytest.mark.promise("P2")
def test_a_chunk_of_another_transfer_finds_no_place(node: Node) -> None:
    announced(node, 5)
    node.peer.send(1, CHUNK, 4, 0, b"z" * SIZE)
    node.peer.send(1, CHUNK, 5, 0, b"a" * SIZE)
    node.peer.send(1, CHUNK, 5, 0, b"z" * SIZE)  # after the message was complete
    assert node.payload(SIZE) == b"a" * SIZE


@pytest.mark.promise("P2")
def test_a_replayed_frame_breaks_the_connection(node: Node) -> None:
    sealed = node.peer.send(0, PING, 1)
    node.peer.socks[0].sendall(sealed)
    assert node.event("link_down")["reason"] == "peer protocol: gap in frame sequence"
    with pytest.raises((EOFError, ConnectionError)):
        while True:
            node.peer.expect(0, GRANT)


@pytest.mark.promise("P2")
def test_a_payload_that_is_not_the_sum_of_its_parts_is_refused(node: Node) -> None:
    body = bytearray(record(FLOW_IN, 1, SIZE))
    struct.pack_into("<Q", body, 56, SIZE)
    node.peer.send(1, ANNOUNCE, 5, SIZE, bytes(body))
    assert "refused" in node.event("link_down")["reason"]
    assert node.engine.stats()["sessions"][0]["transfers_in"] == 0


@pytest.mark.promise("P1", "P10")
def test_another_node_cannot_end_a_message(node: Node) -> None:
    other = Peer(node.engine, OTHER_SESSION, OTHER)
    node.sender.send(b"m", [], None, _native.monotonic_ns() + 10**10)
    node.peer.expect(1, EAGER)
    lie = struct.pack("<QQQBBBBI", FLOW_OUT, 1, 1, 1, 1, 0, 0, 0)  # end: delivered
    other.send(0, REPORT, 1, 0, lie)
    other.settle(0)
    assert not node.sender.flush(_native.monotonic_ns() + 200_000_000)
    assert sum(row["foreign"] for row in node.engine.stats()["sessions"]) == 1
    truth = struct.pack("<QQQBBBBI", FLOW_OUT, 1, 1, 1, 3, 5, 0, 0)  # end: failed(consumer_error)
    node.peer.send(0, REPORT, 1, 0, truth)
    assert node.sender.flush(_native.monotonic_ns() + 10**10)
    assert {key: n for key, n in node.sender.counts().items() if n} == {(3, 5): 1}
    for sock in other.socks.values():
        sock.close()


@pytest.mark.promise("P3")
def test_a_peer_that_never_answers_is_broken_within_its_limit(node: Node) -> None:
    started = _native.monotonic_ns()
    event = node.event("link_silent")
    assert event["session"] == SESSION and "does not answer" in event["reason"]
    assert _native.monotonic_ns() - started < (limits.LINK_SILENT_MS + 1000) * 1_000_000
    assert limits.LINK_SILENT_MS < limits.LEASE_MS
    node.event("link_down")


def quiet(rig: EngineRig) -> None:
    """Return when the sending engine has said what it had to say."""
    before = -1
    while before != (now := sum(row["frames_out"] for row in rig.engines[0].stats()["groups"])):
        before = now
        select.select([], [], [], 0.05)


@pytest.mark.promise("P3")
def test_a_transfer_whose_chunk_was_lost_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks carry no hop sequence of their own: only the stall deadline can find one."""
    monkeypatch.setenv("FABRIC_FAULTS", "1")
    rig = TcpRig()
    try:
        flow = rig.open_flow()
        flow.send(payload_of(0, 50_000))
        take(flow, 0, 50_000)
        assert flow.settle()
        quiet(rig)
        rig.engines[0].inject("link_lose", 2)  # the announcement passes, the chunk does not
        flow.send(payload_of(1, 50_000))
        assert flow.receive(0.2) is None
        rig.engines[0].inject("link_none", 0)
        take(flow, 1, 50_000)
        stats = rig.engines[0].stats()["sessions"][0]
        assert stats["transfers_stalled"] == 1 and stats["breaks"] == 0
    finally:
        rig.close()


@pytest.mark.promise("P3")
def test_a_message_whose_segment_is_gone_fails_instead_of_waiting(node: Node) -> None:
    while True:
        try:
            node.sender.send(b"m", [b"x" * 50_000], None, _native.monotonic_ns() + 10**10)
            break
        except _native.NeedSegment as need:
            number, fd = node.segments.create(node.local, need.args[0], 4)
            node.port.add_segment(number, fd, True, need.args[2])
    node.peer.send(0, GRANT, node.peer.expect(1, ANNOUNCE)[0])
    missing = node.event("need_segment")["segment"]
    node.engine.drop_segment(missing)  # what a daemon answers when the segment is no longer there
    assert node.sender.flush(_native.monotonic_ns() + 10**10)
    assert {key: n for key, n in node.sender.counts().items() if n} == {(3, 11): 1}
    assert node.engine.stats()["ends"] == [(3, 11, 1)]


@pytest.mark.promise("P3", "P8")
def test_room_that_could_not_be_had_is_asked_for_again(node: Node) -> None:
    node.peer.send(1, ANNOUNCE, 5, SIZE, record(FLOW_IN, 1, SIZE))
    asked: list[str] = []
    while "grow" not in asked:
        assert select.select([node.engine.event_fd()], [], [], 10)[0], "nothing was asked for"
        asked += [event["event"] for event in node.engine.events()]
    assert asked.count("grow") == 1
    node.engine.ask_again()
    node.event("grow")
    assert node.peer.expect(0, GRANT)[0] == 5
