"""Large transfers of one flow: in its order and few at a time; the peer's memory is for what is under way."""

from __future__ import annotations

import struct

import pytest

from fabric import _native
from tests.conformance.raw_peer import ANNOUNCE, CHUNK, FLOW_OUT, GRANT, Node

HOP_ACK = 8
CHUNK_ACK = 5
LARGE = 16 << 20  # two of them are kTransferBytesOfFlow (engine/session.hpp)
MANY_CHUNKS = 2 << 20
WAIT_NS = 10**10


def send(node: Node, size: int) -> None:
    """Send one message, with memory as it is asked for."""
    while True:
        try:
            node.sender.send(b"m", [bytes(size)], None, _native.monotonic_ns() + WAIT_NS)
            return
        except _native.NeedSegment as need:
            number, fd = node.segments.create(node.local, need.args[0], 2)
            node.port.add_segment(number, fd, True, need.args[2])


def test_a_third_large_transfer_waits_for_the_acknowledgement_of_the_first() -> None:
    with Node() as node:
        for _ in range(3):
            send(node, LARGE)
        transfers = {node.peer.expect(1, ANNOUNCE)[0] for _ in range(2)}
        node.peer.socks[1].settimeout(0.3)
        with pytest.raises(TimeoutError):
            node.peer.expect(1, ANNOUNCE)
        node.peer.socks[1].settimeout(10)
        node.peer.send(0, HOP_ACK, 0, 0, struct.pack("<QQ", FLOW_OUT, 1))
        assert node.peer.expect(1, ANNOUNCE)[0] not in transfers


def chunks(node: Node, size: int) -> list[int]:
    """Acknowledge chunks until `size` bytes have come; return the transfer of each."""
    order, got = [], 0
    while got < size:
        transfer, offset, body = node.peer.expect(1, CHUNK)
        node.peer.send(0, CHUNK_ACK, 0, 0, struct.pack("<QQII", transfer, offset, len(body), 0))
        order.append(transfer)
        got += len(body)
    return order


def test_transfers_of_a_flow_go_one_after_the_other() -> None:
    with Node() as node:
        for _ in range(2):
            send(node, MANY_CHUNKS)
        first, second = (node.peer.expect(1, ANNOUNCE)[0] for _ in range(2))
        for transfer in (second, first):
            node.peer.send(0, GRANT, transfer)
        node.peer.settle(0)  # both are granted before the bytes of either can be read
        number = node.event("need_segment")["segment"]
        node.engine.add_segment(number, node.segments.fd(number), False)
        order = chunks(node, 2 * MANY_CHUNKS)
        assert order == sorted(order) and set(order) == {first, second}
