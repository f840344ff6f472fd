"""What a full receiver means under each overflow policy, and how one message reaches every receiver of a broadcast."""

import numpy as np
import pytest

import fabric
from fabric import errors
from fabric.messages import message
from tests.unit.dataplane.waiting import until


@message("overflow.tick")
class Tick:
    n: int


CREDIT = 8


@pytest.fixture
def narrow(ports, node):
    """Open a channel whose receiver grants CREDIT messages: (sender, receiver)."""
    left, right = ports

    def make(overflow, pattern="queue"):
        left.declare(overflow, Tick, pattern=pattern, overflow=overflow)
        sender = left.sender(overflow, Tick)
        receiver = right.receiver(overflow, Tick, messages=CREDIT)
        until(lambda: sender.stats()["flows"])
        return sender, receiver

    return make


def ends(sender):
    return {k: v for k, v in sender.stats().items() if k not in ("flows", "delivered_bytes")}


def drain(receiver):
    found = []
    while (tick := receiver.receive(0.1)) is not None:
        found.append(tick.n)
    return found


def test_reject_raises_at_once_and_is_counted(narrow):
    sender, receiver = narrow("reject")
    for n in range(CREDIT):
        sender.send(Tick(n), deadline=5)
    with pytest.raises(errors.RejectedError, match="channel 'reject'"):
        sender.send(Tick(99), deadline=5)
    with pytest.raises(errors.RejectedError):
        sender.send_many([Tick(98), Tick(97)], deadline=5)
    assert drain(receiver) == list(range(CREDIT))
    sender.flush(5)
    assert ends(sender) == {"delivered": CREDIT, "failed(rejected)": 2}
    assert sender.send_many([Tick(n) for n in range(20)], deadline=5) == CREDIT


def test_drop_newest_keeps_the_first_ones(narrow):
    sender, receiver = narrow("drop_newest")
    for n in range(3 * CREDIT):
        sender.send(Tick(n), deadline=5)
    assert drain(receiver) == list(range(CREDIT))
    sender.flush(5)
    assert ends(sender) == {"delivered": CREDIT, "dropped(overflow_newest)": 2 * CREDIT}


def test_drop_oldest_keeps_the_last_ones_though_nobody_reads(narrow):
    sender, receiver = narrow("drop_oldest")
    for n in range(20 * CREDIT):
        sender.send(Tick(n), deadline=5)
    kept = drain(receiver)
    # What is still in the lane when the reading begins may push out another one: in order, the last one there.
    assert kept == sorted(set(kept)) and kept[-1] == 20 * CREDIT - 1
    assert 1 <= len(kept) <= CREDIT and kept[0] >= 18 * CREDIT
    sender.flush(5)
    found = ends(sender)
    assert found["delivered"] == len(kept)
    assert found["dropped(overflow_oldest)"] == 20 * CREDIT - len(kept)


def test_block_waits_until_the_deadline(narrow):
    sender, _ = narrow("block")
    for n in range(CREDIT):
        sender.send(Tick(n), deadline=5)
    with pytest.raises(errors.DeadlineExceeded, match=r"channel 'block'.*credit"):
        sender.send(Tick(9), deadline=0.05)
    with pytest.raises(errors.WouldBlock, match="channel 'block'"):
        sender.send(Tick(9), deadline=0)


async def test_asyncio_sees_the_same_policies(node):
    async with (
        fabric.aio.attach("a", node.path) as left,
        fabric.aio.attach("b", node.path) as right,
    ):
        for overflow in ("reject", "drop_newest"):
            await left.declare(overflow, Tick, pattern="queue", overflow=overflow)
            sender = await left.sender(overflow, Tick)
            receiver = await right.receiver(overflow, Tick, messages=CREDIT)
            await sender.send(Tick(0), deadline=5)
            sent = await sender.send_many([Tick(n) for n in range(1, 3 * CREDIT)], deadline=5)
            assert sent == (CREDIT - 1 if overflow == "reject" else 3 * CREDIT - 1)
            if overflow == "reject":
                with pytest.raises(errors.RejectedError, match="channel 'reject'"):
                    await sender.send(Tick(99))
            seen = [(await receiver.receive(1)).n for _ in range(CREDIT)]
            assert seen == list(range(CREDIT))


# ---- broadcast


@message("overflow.block")
class Block:
    n: int
    data: fabric.Tensor["n", "f32"]


@pytest.fixture
def fan(node):
    """Open a broadcast of blocks with `count` receivers: (sender, receivers)."""
    made = []

    def make(count, overflow="block", messages=CREDIT):
        port = fabric.attach("source", node.path)
        made.append(port)
        port.declare("fan", Block, pattern="broadcast", overflow=overflow)
        sender = port.sender("fan", Block)
        receivers = []
        for i in range(count):
            made.append(fabric.attach(f"sink-{i}", node.path))
            receivers.append(made[-1].receiver("fan", Block, messages=messages))
        until(lambda: len(sender.stats()["flows"]) == count)
        return sender, receivers

    yield make
    for port in reversed(made):
        port.close()


def block(n, size=3000):
    return Block(n, np.full(size, n, np.float32))


def test_every_receiver_gets_every_message_in_order(fan):
    sender, receivers = fan(3)
    for n in range(5):
        assert sender.send(block(n), deadline=5)
    with sender.loan(data=(5000,), deadline=5) as draft:
        draft.n = 5
        draft.data[...] = 5
    assert sender.send_many([block(6), block(7, 3)], deadline=5) == 2
    sequences = []
    for receiver in receivers:
        got = [receiver.receive(5) for _ in range(8)]
        assert [m.n for m in got] == list(range(8))
        assert all((m.data == m.n).all() for m in got)
        sequences.append([m.header.sequence for m in got])
        for m in got:
            m.release()
    assert sequences[0] == sequences[1] == sequences[2]
    sender.flush(5)
    assert ends(sender) == {"delivered": 24}


def test_broadcast_without_receivers_is_dropped_for_no_target(fan):
    sender, _ = fan(0)
    sender.send(block(1), deadline=1)
    assert ends(sender) == {"dropped(no_target)": 1}


def test_one_full_receiver_stops_all_where_the_policy_is_block_or_reject(fan):
    sender, (fast, slow) = fan(2, "reject")
    for n in range(CREDIT):
        sender.send(block(n), deadline=5)
    for _ in range(CREDIT):
        fast.receive(5).release()
    with pytest.raises(errors.RejectedError):
        sender.send(block(99), deadline=5)
    assert fast.receive(0.05) is None and slow.pending() == CREDIT


def test_one_full_receiver_loses_its_own_copy_where_the_newest_is_dropped(fan):
    sender, (fast, slow) = fan(2, "drop_newest")
    for n in range(2 * CREDIT):
        sender.send(block(n), deadline=5)
        fast.receive(5).release()
    assert [slow.receive(5).n for _ in range(CREDIT)] == list(range(CREDIT))
    sender.flush(5)
    assert ends(sender) == {"delivered": 3 * CREDIT, "dropped(overflow_newest)": CREDIT}


async def test_asyncio_broadcast_waits_for_the_slowest(node):
    async with (
        fabric.aio.attach("a", node.path) as left,
        fabric.aio.attach("b", node.path) as right,
    ):
        await left.declare("fan", Tick, pattern="broadcast")
        sender = await left.sender("fan", Tick)
        receivers = [await right.receiver("fan", Tick, messages=CREDIT) for _ in range(2)]
        until(lambda: len(sender.stats()["flows"]) == 2)
        for n in range(CREDIT):
            await sender.send(Tick(n), deadline=5)
        with pytest.raises(errors.DeadlineExceeded, match="channel 'fan'"):
            await sender.send(Tick(99), deadline=0.05)
        for receiver in receivers:
            assert [(await receiver.receive(1)).n for _ in range(CREDIT)] == list(range(CREDIT))
        await sender.send(Tick(1), deadline=5)


# ---- leaving


@pytest.mark.promise("P1")
def test_closed_receiver_hands_back_what_it_was_not_asked_for(ports, node):
    left, right = ports
    left.declare("jobs", Tick, pattern="queue", delivery="at_least_once")
    sender = left.sender("jobs", Tick)
    first = right.receiver("jobs", Tick)
    until(lambda: sender.stats()["flows"])
    for n in range(10):
        sender.send(Tick(n), deadline=5)
    held = [first.receive(5) for _ in range(3)]
    held[0].ack()
    until(lambda: first.pending() == 7)
    first.close()
    held[1].ack()  # handed over before the close: may still be acknowledged
    with fabric.attach("third", node.path) as third:
        second = third.receiver("jobs", Tick)
        seen = {}
        while len(seen) < 8:
            tick = second.receive(5)
            seen[tick.n] = tick.header.redelivered
            tick.ack()
        assert sorted(seen) == [2, *range(3, 10)] and seen[2]
        sender.flush(5)
    assert ends(sender) == {"delivered": 10}


def test_closed_receiver_of_at_most_once_ends_what_is_queued(ports):
    left, right = ports
    left.declare("jobs", Tick, pattern="queue")
    sender, receiver = left.sender("jobs", Tick), right.receiver("jobs", Tick)
    for n in range(5):
        sender.send(Tick(n), deadline=5)
    assert receiver.receive(5).n == 0
    until(lambda: receiver.pending() == 4)
    receiver.close()
    sender.flush(5)
    assert ends(sender) == {"delivered": 1, "failed(closed)": 4}


def test_more_senders_than_a_port_has_rows_live_one_after_another(ports, node):
    """The daemon says when the counts of a closed sender are kept; then its row serves another."""
    left, right = ports
    left.declare("notes", Tick, pattern="queue")
    receiver = right.receiver("notes", Tick)
    for n in range(200):
        sender = left.sender("notes", Tick)
        sender.send(Tick(n), deadline=5)
        assert receiver.receive(5).n == n
        sender.flush(5)
        sender.close()
        node.push_to("left", "sender_forget", {"endpoint": sender.endpoint})


def test_suspect_receiver_gets_nothing_new_and_all_of_it_when_it_wakes(ports, node):
    left, _ = ports
    left.declare("jobs", Tick, pattern="queue")
    sender = left.sender("jobs", Tick)
    ports_ = [fabric.attach(f"worker-{i}", node.path) for i in range(2)]
    try:
        receivers = [port.receiver("jobs", Tick) for port in ports_]
        until(lambda: len(sender.stats()["flows"]) == 2)
        flow = next(f for f in node.flows.values() if f.target.port.name == "worker-0")
        node.push_to("left", "flow_suspect", {"flow": flow.flow, "suspect": True})
        for n in range(10):
            sender.send(Tick(n), deadline=5)
        until(lambda: receivers[1].pending() == 10)
        assert receivers[0].pending() == 0
        node.push_to("left", "flow_suspect", {"flow": flow.flow, "suspect": False})
        for n in range(10):
            sender.send(Tick(n), deadline=5)
        until(lambda: receivers[0].pending() > 0)
    finally:
        for port in ports_:
            port.close()


@pytest.mark.parametrize("size", [1 << 20, 5 << 20, 40 << 20])
def test_message_larger_than_its_arena_gets_a_segment_of_its_own(ports, size):
    left, right = ports
    left.declare("large", Block, klass="bulk")
    sender, receiver = left.sender("large", Block), right.receiver("large", Block)
    sent = block(3, size // 4)
    sender.send(sent, deadline=10)
    with receiver.receive(10) as got:
        np.testing.assert_array_equal(got.data, sent.data)


def test_message_beyond_the_quota_is_refused_at_once_naming_both_sizes(ports, node):
    left, right = ports
    left.declare("large", Block, klass="bulk")
    sender, receiver = left.sender("large", Block), right.receiver("large", Block)
    node.arena_bytes = 6 << 20
    with pytest.raises(errors.CapacityError, match=r"8388608.*6291456"):
        sender.send(block(1, 2 << 20), deadline=20)
    sender.send(block(2, 1 << 20), deadline=5)  # one slot fits where two do not
    assert receiver.receive(5).n == 2
