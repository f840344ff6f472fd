"""A broadcast over engines: all copies share the sender's slot, and it is kept until the last flow gave it back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fabric import _native
from fabric.testing import fault_rigs, ucx_rigs
from fabric.testing.link_conformance import payload_of
from fabric.testing.rigs import (
    AT_MOST_ONCE,
    KLASS_BULK,
    RECEIVER_NODE,
    SENDER_NODE,
    WINDOW_BYTES,
    Rig,
    rig,
)

BROADCAST = 2
SIZE = 150_000
WINDOW = 16


def soon() -> int:
    return _native.monotonic_ns() + 20_000_000_000


class Fan:
    """One sender, two receivers on the other node."""

    def __init__(self, joined: Rig) -> None:
        self.rig = joined
        source = SENDER_NODE << 32 | 90
        self.sender = joined.sender_port.open_sender(
            source, 9, 7, BROADCAST, AT_MOST_ONCE, KLASS_BULK
        )
        self.receivers = []
        for n in (91, 92):
            target, flow = RECEIVER_NODE << 32 | n, SENDER_NODE << 48 | n
            lane_out, lane_in = joined.route_flow(flow)
            self.receivers.append(
                joined.receiver_port.open_receiver(target, 9, 7, BROADCAST, AT_MOST_ONCE)
            )
            joined.receiver_port.add_flow_in(
                target, flow, lane_in, joined.sender_place.port, WINDOW, WINDOW_BYTES
            )
            joined.sender_port.add_flow_out(
                source, flow, lane_out, target, WINDOW, WINDOW_BYTES, 1, False
            )

    def send(self, n: int) -> None:
        while True:
            try:
                self.sender.send(b"m", [payload_of(n, SIZE)], None, soon())
                return
            except _native.NeedSegment as need:
                self.rig.grow_sender(need.args[0], need.args[2])

    def take(self, which: int, n: int) -> None:
        message = self.receivers[which].receive(soon())
        assert message is not None, f"message {n} did not come to receiver {which}"
        while True:
            try:
                assert bytes(message.tensor(0, "uint8", [SIZE]).data) == payload_of(n, SIZE)
                break
            except _native.NeedSegment as need:
                self.rig.show_receiver(need.args[1])
        message.release()


UCX = [
    pytest.param(each.name, marks=pytest.mark.needs_ucx)
    for each in (ucx_rigs.UcxShmRig, ucx_rigs.FaultUcxTcpRig)
]


@pytest.fixture(params=["shm", "inproc", "tcp", fault_rigs.FaultTcpRig.name, *UCX])
def fan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fan]:
    monkeypatch.setenv("FABRIC_FAULTS", "1")
    with rig(request.param) as joined:
        yield Fan(joined)


@pytest.mark.promise("P1", "P2")
def test_each_receiver_gets_the_bytes_although_the_other_is_far_ahead(fan: Fan) -> None:
    for round_ in range(4):
        first = round_ * WINDOW
        for n in range(first, first + WINDOW):
            fan.send(n)
            fan.take(0, n)
        for n in range(first, first + WINDOW):  # sent long ago; the slots were not used again
            fan.take(1, n)
    assert fan.sender.flush(soon())
    assert {key: n for key, n in fan.sender.counts().items() if n} == {(1, 0): 8 * WINDOW}
