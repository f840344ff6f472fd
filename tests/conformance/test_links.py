"""The link conformance suite over a direct lane, in-process queues, loopback TCP, and two rails of it."""

from __future__ import annotations

import time

import pytest

from fabric import _native
from fabric.testing.link_conformance import (
    DELIVERED,
    DROPPED,
    EXPIRED,
    LinkConformance,
    ends,
    payload_of,
    take,
)
from fabric.testing.rigs import EngineRig, Rig, rig

SENDERS = 1  # direction of the lane between a sender and its gateway

pytestmark = pytest.mark.promise("P2", "P6")


class TestShm(LinkConformance):
    rig_name = "shm"


class TestInproc(LinkConformance):
    rig_name = "inproc"


class TestTcp(LinkConformance):
    rig_name = "tcp"


class TestRails(LinkConformance):
    rig_name = "rails"


@pytest.fixture
def tcp(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FABRIC_FAULTS", "1")
    with rig("tcp") as opened:
        yield opened


def group_stats(joined: Rig, side: int) -> list[dict[str, int]]:
    assert isinstance(joined, EngineRig)
    return joined.engines[side].stats()["groups"]


def session_stats(joined: Rig, side: int) -> dict[str, int]:
    assert isinstance(joined, EngineRig)
    return joined.engines[side].stats()["sessions"][0]


def test_a_chunk_corrupted_on_the_way_is_sent_again(tcp: EngineRig):
    flow = tcp.open_flow()
    tcp.engines[1].inject("corrupt_chunk", 2)
    flow.send(payload_of(1, 3_000_000))
    take(flow, 1, 3_000_000)
    assert session_stats(tcp, 1)["crc_errors"] == 1
    assert session_stats(tcp, 0)["retransmits"] >= 1


def test_a_byte_flipped_after_the_checksum_reaches_the_reader(tcp: EngineRig):
    flow = tcp.open_flow()
    tcp.engines[1].inject("flip_after_checksum", 1)
    flow.send(payload_of(1, 50_000))
    message = flow.receive()
    assert message is not None
    got = flow.payload(message, 50_000)
    assert sum(a != b for a, b in zip(got, payload_of(1, 50_000), strict=True)) == 1


def test_a_payload_zeroed_after_the_checksum_reaches_the_reader(tcp: EngineRig):
    flow = tcp.open_flow()
    tcp.engines[1].inject("zero_after_checksum", 2)
    for n in range(2):
        flow.send(payload_of(n, 50_000))
    take(flow, 0, 50_000)
    message = flow.receive()
    assert message is not None
    assert flow.payload(message, 50_000) == bytes(50_000)


def test_a_stalled_engine_delays_and_loses_nothing(tcp: EngineRig):
    flow = tcp.open_flow()
    tcp.engines[1].inject("stall", 150)
    started = _native.monotonic_ns()
    flow.send(payload_of(1, 100))
    take(flow, 1, 100)
    assert _native.monotonic_ns() - started > 100_000_000


def test_faults_are_refused_without_permission(tcp: EngineRig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FABRIC_FAULTS")
    with pytest.raises(Exception, match="FABRIC_FAULTS"):
        tcp.engines[0].inject("stall", 1)


def test_bulk_travels_on_its_own_connection(tcp: EngineRig):
    flow = tcp.open_flow()
    flow.send(payload_of(1, 8 << 20))
    take(flow, 1, 8 << 20)
    control, bulk = group_stats(tcp, 0)
    assert bulk["bytes_out"] > 8 << 20
    assert control["bytes_out"] < 64 << 10


def disconnect(joined: EngineRig) -> None:
    """Break every connection; `restart` or `connect` makes new ones."""
    for group in (0, 1):
        joined.engines[0].inject("drop_connection", group)


def test_message_that_expired_behind_a_cut_link_is_no_message_in_its_lane_any_more(tcp: EngineRig):
    """Its sender knows the end at once; the record stays until the other node has taken its place."""
    flow = tcp.open_flow()
    flow.send(payload_of(0, 64))
    take(flow, 0, 64)
    assert flow.settle()
    disconnect(tcp)
    flow.send(payload_of(1, 64), expires_ns=_native.monotonic_ns() + 20_000_000)
    flow.send(payload_of(2, 50_000), expires_ns=_native.monotonic_ns() + 20_000_000)
    assert flow.settle()
    assert ends(flow) == {(DELIVERED, 0): 1, (DROPPED, EXPIRED): 2}
    lane = _native.inspect_lane(tcp.pairs[0], SENDERS)
    assert lane["head"] > lane["tail"]
    assert lane["records"] == [], "no audit may take them for messages that no sender knows"


def test_restarted_engine_ends_no_message_again(tcp: EngineRig):
    flow = tcp.open_flow()
    disconnect(tcp)
    flow.send(payload_of(0, 50_000), expires_ns=_native.monotonic_ns() + 20_000_000)
    assert flow.settle()
    tcp.restart(0)
    flow.send(payload_of(1, 64))
    take(flow, 1, 64)
    assert flow.settle()
    assert ends(flow) == {(DROPPED, EXPIRED): 1, (DELIVERED, 0): 1}
    assert tcp.engines[0].stats()["ends"] == []


def test_many_acknowledged_at_once_after_a_loss_let_the_rest_follow(tcp: EngineRig):
    """After a loss few are sent at a time: what was acknowledged meanwhile lifts that, and nothing else rings."""
    tcp.engines[1].inject("link_delay_us", 100_000)  # its acknowledgements come after the break
    tcp.engines[0].inject("link_lose", 30)
    flow = tcp.open_flow()
    for n in range(45):
        flow.send(payload_of(n, 64))
    deadline = time.monotonic() + 5.0
    while not (lost := [e for _, e in tcp.events if e["event"] == "link_down"]):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    tcp.engines[0].inject("link_lose", 0)
    tcp.connect_group(lost[0]["group"])
    for n in range(45):
        message = flow.receive(1.0)
        assert message is not None, f"message {n} did not come"
        assert flow.payload(message, 64) == payload_of(n, 64)
        message.ack()
        message.release()


def test_arena_of_an_engine_is_idle_when_its_messages_are_released_and_grows_again(tcp: EngineRig):
    flow = tcp.open_flow()
    flow.send(payload_of(0, 50_000))
    message = flow.receive()
    assert message is not None
    assert flow.payload(message, 50_000) == payload_of(0, 50_000)
    assert tcp.engines[1].idle_segments() == []
    message.ack()
    message.release()
    deadline = time.monotonic() + 5.0
    while not (idle := tcp.engines[1].idle_segments()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    for number in idle:
        tcp.engines[1].drop_segment(number)
    flow.send(payload_of(1, 50_000))
    take(flow, 1, 50_000)
    assert flow.settle()
