"""Acknowledgements between nodes travel with what goes there anyway, and alone when nothing does."""

from __future__ import annotations

import statistics
import struct
import time

from fabric.testing.link_conformance import DELIVERED, ends, payload_of
from fabric.testing.rigs import rig
from tests.conformance.raw_peer import CHANNEL, EAGER, FLOW_IN, PEER, TYPE, Node

HOP_ACK = 8
PROMPT_S = 1.0  # engine/session.hpp kAcksPromptNs
SOON_S = 0.1  # kAcksWaitNs is 1 ms; without it the engine looks about once a second


def small_record(flow_seq: int) -> bytes:
    """A record whose whole payload is inline (docs/WIRE.md §2)."""
    inline = struct.pack("<II", 1, 0) + b"m"
    extension = struct.pack("<HHQQ", 1, 16, PEER << 32 | 2, 1) + bytes(4)
    total = 64 + len(extension) + len(inline)
    head = struct.pack(
        "<BBHIQQQQIIIBBHQ", 1, 11, 0, total, FLOW_IN, flow_seq, flow_seq, 0, CHANNEL, TYPE, 1, 3, 0, 0, len(inline)
    )  # fmt: skip
    return head + extension + inline


def test_an_acknowledgement_that_finds_no_company_goes_alone_and_soon() -> None:
    with Node() as node:
        time.sleep(PROMPT_S)  # on a new connection none waits
        node.peer.settle(0)
        node.peer.settle(1)
        waited = []
        for flow_seq in range(1, 8):
            started = time.monotonic()
            node.peer.send(1, EAGER, body=small_record(flow_seq))
            acknowledged = 0
            while acknowledged < flow_seq:
                body = node.peer.expect(0, HOP_ACK)[2]
                if body:
                    flow, acknowledged = struct.unpack("<QQ", body)
                    assert flow == FLOW_IN
            waited.append(time.monotonic() - started)
        assert statistics.median(waited) < SOON_S, f"waited {waited} s"


def test_the_end_of_a_message_that_nobody_answers_is_told_soon() -> None:
    count = 20  # the engine keeps an end back only while it waits awake, which it does now and then
    with rig("tcp") as opened:
        flow = opened.open_flow()
        time.sleep(PROMPT_S)
        for number in range(count):
            flow.send(payload_of(number, 64))
        messages = [flow.receive() for _ in range(count)]
        time.sleep(SOON_S)
        for number, message in enumerate(messages, 1):
            assert message is not None
            message.ack()
            deadline = time.monotonic() + 2 * SOON_S
            while ends(flow).get((DELIVERED, 0), 0) < number:
                assert time.monotonic() < deadline, f"end {number} was not told"
                time.sleep(0.001)
            time.sleep(0.002)
