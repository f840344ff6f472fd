"""What every path must do, written once and run over each (promise P6): inherit `LinkConformance`, set `rig_name`.

A test here talks to two attached ports only; it does not know what lies between them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import ClassVar

import pytest

from fabric import _native
from fabric.errors import DeadlineExceeded, StaleHandleError, WouldBlock
from fabric.testing.rigs import AT_MOST_ONCE, EngineRig, Flow, Rig, rig

DELIVERED, DROPPED, FAILED = 1, 2, 3
EXPIRED, PEER_LOST, OUTCOME_UNKNOWN = 1, 6, 7
SIZES = (0, 1, 63, 64, 65, 4095, 4096, 4097, 8192, 65_537, 1 << 20, (4 << 20) + 1, 64 << 20)


def payload_of(n: int, size: int) -> bytes:
    """`size` bytes that name message `n` everywhere."""
    unit = n.to_bytes(8, "little") + bytes(range(1, 56))
    return (unit * (size // len(unit) + 1))[:size]


def take(flow: Flow, n: int, size: int) -> None:
    """Receive one message, compare every byte, acknowledge and release it."""
    message = flow.receive()
    assert message is not None, f"message {n} did not come"
    assert message.payload_bytes >= size
    assert flow.payload(message, size) == payload_of(n, size)
    message.ack()
    message.release()


def ends(flow: Flow) -> dict[tuple[int, int], int]:
    """Non-zero counters by (end, reason)."""
    return {key: count for key, count in flow.sender.counts().items() if count}


class LinkConformance:
    """Inherit as `TestX` with `rig_name`; pytest collects what is here."""

    rig_name: ClassVar[str]

    @pytest.fixture
    def joined(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
        """A fresh rig, faults allowed; afterwards nothing may lie in a lane."""
        monkeypatch.setenv("FABRIC_FAULTS", "1")
        with rig(self.rig_name) as opened:
            yield opened

    # ---- order and bytes
    def test_messages_arrive_in_order(self, joined: Rig) -> None:
        flow = joined.open_flow()
        for n in range(500):
            flow.send(payload_of(n, 64))
            if n % 50 == 49:
                for m in range(n - 49, n + 1):
                    take(flow, m, 64)
        assert flow.settle()
        assert ends(flow) == {(DELIVERED, 0): 500}

    def test_small_and_large_messages_keep_their_order(self, joined: Rig) -> None:
        flow = joined.open_flow()
        sizes = [100, 300_000, 10, 5_000_000, 0, 70_000, 1]
        for n, size in enumerate(sizes):
            flow.send(payload_of(n, size))
        for n, size in enumerate(sizes):
            take(flow, n, size)
        assert flow.settle()

    @pytest.mark.parametrize("size", SIZES)
    def test_every_size_is_byte_exact(self, joined: Rig, size: int) -> None:
        flow = joined.open_flow()
        flow.send(payload_of(size, size))
        take(flow, size, size)
        assert flow.settle()

    def test_meta_travels_with_the_tensor(self, joined: Rig) -> None:
        flow = joined.open_flow()
        flow.send(b"t" * 100_000, meta=b"x" * 3000)
        message = flow.receive()
        assert message is not None and bytes(message.meta) == b"x" * 3000

    # ---- credit
    def test_sender_waits_when_credit_is_zero(self, joined: Rig) -> None:
        flow = joined.open_flow(messages=4)
        for n in range(4):
            flow.send(payload_of(n, 16))
        with pytest.raises(WouldBlock):
            flow.sender.send(b"m", [b"x"], None, 0)
        with pytest.raises(DeadlineExceeded):
            flow.send(b"x", wait_s=0.05)
        for n in range(4):
            take(flow, n, 16)
        flow.send(payload_of(4, 16))
        take(flow, 4, 16)
        assert flow.settle()
        assert ends(flow) == {(DELIVERED, 0): 5}

    def test_byte_credit_holds_large_messages_back(self, joined: Rig) -> None:
        flow = joined.open_flow(byte_window=1 << 20)
        flow.send(payload_of(0, 900_000))
        with pytest.raises(DeadlineExceeded):
            flow.send(b"y" * 900_000, wait_s=0.05)
        take(flow, 0, 900_000)
        flow.send(payload_of(1, 900_000))
        take(flow, 1, 900_000)

    def test_one_unread_flow_holds_no_other_back(self, joined: Rig) -> None:
        unread = joined.open_flow(messages=32)
        flows = [joined.open_flow() for _ in range(8)]
        for n in range(32):
            unread.send(payload_of(n, 2000))
        for n in range(200):
            for flow in flows:
                flow.send(payload_of(n, 1000 if n % 20 else 100_000))
            for flow in flows:
                take(flow, n, 1000 if n % 20 else 100_000)
        for n in range(32):
            take(unread, n, 2000)
        assert all(flow.settle() for flow in (unread, *flows))

    # ---- deadlines
    def test_an_expired_message_is_dropped_and_the_next_one_comes(self, joined: Rig) -> None:
        flow = joined.open_flow()
        flow.send(payload_of(0, 64), expires_ns=_native.monotonic_ns() + 1)
        flow.send(payload_of(1, 64))
        take(flow, 1, 64)
        assert flow.settle()
        assert ends(flow) == {(DROPPED, EXPIRED): 1, (DELIVERED, 0): 1}

    def test_receive_returns_none_at_its_deadline(self, joined: Rig) -> None:
        flow = joined.open_flow()
        assert flow.receive(0.02) is None

    # ---- ends
    def test_at_most_once_ends_when_handed_over(self, joined: Rig) -> None:
        flow = joined.open_flow(delivery=AT_MOST_ONCE)
        flow.send(payload_of(0, 64))
        message = flow.receive()
        assert message is not None
        assert flow.settle()
        assert ends(flow) == {(DELIVERED, 0): 1}

    def test_at_least_once_waits_for_the_acknowledgement(self, joined: Rig) -> None:
        flow = joined.open_flow()
        flow.send(payload_of(0, 64))
        message = flow.receive()
        assert message is not None
        assert not flow.settle(0.05)
        message.ack()
        assert flow.settle()

    def test_a_refused_message_ends_as_failed(self, joined: Rig) -> None:
        flow = joined.open_flow()
        flow.send(payload_of(0, 64))
        message = flow.receive()
        assert message is not None
        message.nack(5)
        assert flow.settle()
        assert ends(flow) == {(FAILED, 5): 1}

    def test_a_dead_consumer_settles_what_was_out(self, joined: Rig) -> None:
        flow = joined.open_flow(delivery=AT_MOST_ONCE)
        for n in range(6):
            flow.send(payload_of(n, 64))
        for _ in range(2):
            assert flow.receive() is not None
        joined.receiver_port.close()
        # What a daemon does after a death: the last handed message is read from the dead port's state.
        joined.sender_port.lose_flow_out(flow.number, 2, PEER_LOST)
        assert flow.settle()
        counts = ends(flow)
        assert counts.pop((DELIVERED, 0)) == 2
        assert sum(counts.values()) == 4 and all(end == FAILED for end, _ in counts)

    # ---- memory
    def test_slots_come_back_after_release(self, joined: Rig) -> None:
        flow = joined.open_flow(messages=4)
        for n in range(64):  # many times what the arenas hold at once
            flow.send(payload_of(n, 1 << 20))
            take(flow, n, 1 << 20)
        assert flow.settle()

    def test_a_view_keeps_its_bytes_while_others_pass(self, joined: Rig) -> None:
        flow = joined.open_flow()
        flow.send(payload_of(0, 200_000))
        kept = flow.receive()
        assert kept is not None
        kept.ack()
        for n in range(1, 30):
            flow.send(payload_of(n, 200_000))
            take(flow, n, 200_000)
        assert flow.payload(kept, 200_000) == payload_of(0, 200_000)
        kept.release()
        with pytest.raises((StaleHandleError, ValueError)):
            flow.payload(kept, 200_000)

    # ---- loss of a connection
    def test_a_cut_link_loses_and_repeats_nothing(self, joined: Rig) -> None:
        if not joined.can_cut:
            assert joined.name == "shm"  # nothing to cut: the lane is memory
            return
        flow = joined.open_flow(messages=16)
        sizes = [200_000 if n % 3 == 0 else 50 for n in range(90)]
        done = 0
        for n, size in enumerate(sizes):
            flow.send(payload_of(n, size))
            if n % 15 == 14:
                joined.cut()
            if n - done >= 12:
                take(flow, done, sizes[done])
                done += 1
        for n in range(done, len(sizes)):
            take(flow, n, sizes[n])
        assert flow.receive(0.05) is None
        assert flow.settle()
        assert ends(flow) == {(DELIVERED, 0): len(sizes)}

    @pytest.mark.parametrize("side", [0, 1])
    def test_a_restarted_engine_loses_and_repeats_nothing(self, joined: Rig, side: int) -> None:
        if not isinstance(joined, EngineRig):
            assert joined.name == "shm"  # no engine on a direct lane
            return
        flow = joined.open_flow(messages=16)
        sizes = [300_000 if n % 3 == 0 else 50 for n in range(60)]
        done = 0
        for n, size in enumerate(sizes):
            flow.send(payload_of(n, size))
            if n % 15 == 14:
                joined.restart(side)
            if n - done >= 6:
                take(flow, done, sizes[done])
                done += 1
        for n in range(done, len(sizes)):
            take(flow, n, sizes[n])
        assert flow.receive(0.05) is None
        assert flow.settle()
        assert ends(flow) == {(DELIVERED, 0): len(sizes)}

    # ---- conservation
    def test_every_accepted_message_ends_exactly_once(self, joined: Rig) -> None:
        flows = [joined.open_flow(messages=8) for _ in range(4)]
        for n in range(80):
            for flow in flows:
                flow.send(payload_of(n, 30_000 if n % 5 == 0 else 20))
                message = flow.receive()
                assert message is not None
                if n % 7 == 0:
                    message.nack(5)
                else:
                    message.ack()
                message.release()
        for flow in flows:
            assert flow.settle()
            assert ends(flow) == {(DELIVERED, 0): 68, (FAILED, 5): 12}
        deadline = _native.monotonic_ns() + 5_000_000_000
        while not joined.lanes_at_rest():
            assert _native.monotonic_ns() < deadline, "records or returns stay in a lane"
            joined.sender_port.progress()
            joined.receiver_port.progress()
            os.sched_yield()
