"""Two ports over one lane: order, credit, deadlines, closing, waiting, freezing, fork."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from fabric import _native, errors
from tests.unit.native.pair import (
    DELIVERED,
    DROPPED,
    FAILED,
    Pair,
    pair,
    send_each,
    soon,
)


@pytest.fixture
def joined() -> Iterator[Pair]:
    with pair() as both:
        yield both


def test_messages_arrive_in_order_with_meta_key_and_tensor(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    value = np.arange(16, dtype=np.float32)
    for i in range(100):
        assert out.send(b"meta%d" % i, [value + i], b"k", soon()) == i + 1
    for i in range(100):
        message = inn.receive(soon())
        assert (message.meta, message.key, message.sequence) == (b"meta%d" % i, b"k", i + 1)
        assert np.array_equal(message.tensor(0, "float32", (16,)), value + i)
        assert (message.producer, message.type, message.redelivered) == (100, 99, False)
    assert inn.receive(0) is None
    assert out.flush(soon())
    assert out.counts() == {(DELIVERED, 0): 100}


def test_many_rounds_wrap_the_ring_and_stay_in_order(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow(messages=64)
    blob = os.urandom(3000)
    for round_ in range(60):
        metas = [blob[: (round_ * 37 + i * 211) % 3000] for i in range(40)]
        assert out.send_many(metas, [[]] * 40, [None] * 40, soon()) == 40
        assert [m.meta for m in inn.receive_many(40, soon())] == metas
    assert out.flush(soon()) and out.counts() == {(DELIVERED, 0): 2400}


def test_sender_waits_when_credit_is_zero(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    flow = joined.flow(messages=4)
    send_each(out, [b"x"] * 4)
    with pytest.raises(errors.WouldBlock):
        out.send(b"x", [], None, 0)
    with pytest.raises(
        errors.DeadlineExceeded, match=f"channel 7: credit of flow {flow}: 4 messages out"
    ):
        out.send(b"x", [], None, soon(0.05))
    sent = threading.Event()

    def fifth() -> None:
        out.send(b"fifth", [], None, soon())
        sent.set()

    thread = threading.Thread(target=fifth)
    thread.start()
    assert not sent.wait(0.05)
    inn.receive(soon())
    inn.receive(soon())
    assert sent.wait(5)
    thread.join()


def test_sender_without_consumer_says_so_at_the_deadline(joined: Pair) -> None:
    out = joined.sender()
    with pytest.raises(errors.DeadlineExceeded, match="channel 7: no consumer"):
        out.send(b"x", [], None, soon(0.02))


def test_byte_credit_holds_back_but_lets_one_oversized_message_through(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow(bytes_=1000)
    out.send(b"x" * 3000, [], None, 0)
    with pytest.raises(errors.WouldBlock):
        out.send(b"y", [], None, 0)
    assert len(inn.receive(soon()).meta) == 3000
    assert out.send(b"y", [], None, soon()) == 2


def test_full_lane_is_named(joined: Pair) -> None:
    out = joined.sender()
    joined.a.port.add_flow_out(11, 77, 1, 21, 10_000, 1 << 40, 1, False)
    with pytest.raises(errors.DeadlineExceeded, match="channel 7: lane full"):
        for _ in range(100):
            out.send(b"x" * 4000, [], None, soon(0.05))


def test_large_tensors_travel_in_a_slot_that_is_returned(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    value = np.random.default_rng(1).integers(0, 255, 60_000, dtype=np.uint8)
    with pytest.raises(_native.NeedSegment) as needed:
        out.send(b"m", [value], None, soon())
    assert needed.value.args == (60_000, 0, 0)
    segment = joined.segment()
    for _ in range(40):
        out.send(b"m", [value, value[:5]], None, soon())
        message = inn.receive(soon())
        array = message.tensor(0, "uint8", (60_000,))
        assert np.array_equal(array, value) and not array.flags.writeable
        assert np.array_equal(message.tensor(1, "uint8", (5,)), value[:5])
        message.release()
    assert out.flush(soon())
    assert joined.a.port.idle_segments() == [segment]


def test_reader_without_the_segment_is_told_which_one(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    segment = joined.segment()
    joined.b.port.drop_segment(segment)
    out.send(b"m", [bytes(50_000)], None, soon())
    message = inn.receive(soon())
    with pytest.raises(_native.NeedSegment) as needed:
        message.tensor(0, "uint8", (50_000,))
    assert needed.value.args == (0, segment, 0)
    joined.b.port.add_segment(segment, joined.a.fds[-1], False)
    assert message.tensor(0, "uint8", (50_000,)).sum() == 0


def test_sealed_segment_refuses_a_second_writer(joined: Pair) -> None:
    segment = joined.segment()
    with pytest.raises(errors.InternalError, match="mmap"):
        joined.b.port.add_segment(segment, joined.a.fds[-1], True)


def test_meta_larger_than_the_ring_allows_goes_through_a_slot(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    joined.segment()
    meta, value = os.urandom(30_000), np.arange(9, dtype=np.int64)
    out.send(meta, [value], None, soon())
    message = inn.receive(soon())
    assert message.meta == meta
    assert np.array_equal(message.tensor(0, "int64", (9,)), value)
    del message
    assert out.flush(soon()) and joined.a.port.idle_segments() == [1]


def test_loan_is_written_in_place_and_sent(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    joined.segment()
    loan = out.loan([16, 64])
    np.frombuffer(loan.tensor(0), np.float32)[:] = 7
    np.frombuffer(loan.tensor(1), np.uint8)[:] = 9
    out.send_loan(loan, b"meta", None, soon())
    with pytest.raises(errors.StaleHandleError):
        loan.tensor(0)
    message = inn.receive(soon())
    assert message.tensor(0, "float32", (2, 2)).tolist() == [[7, 7], [7, 7]]
    assert message.tensor(1, "uint8", (64,)).tolist() == [9] * 64
    unsent = out.loan([100])
    unsent.discard()
    unsent.discard()
    message.release()
    assert out.flush(soon()) and joined.a.port.idle_segments() == [1]


def test_failed_send_keeps_the_loan(joined: Pair) -> None:
    out = joined.sender()
    joined.segment()
    loan = out.loan([8])
    with pytest.raises(errors.WouldBlock):
        out.send_loan(loan, b"", None, 0)
    assert len(loan.tensor(0)) == 8


def test_receive_into_copies_and_refuses_a_small_target(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    value = np.arange(100, dtype=np.int32)
    out.send(b"", [value], None, soon())
    message = inn.receive(soon())
    target = np.zeros(100, dtype=np.int32)
    assert message.copy_into(0, target) == 400
    assert np.array_equal(target, value)
    with pytest.raises(ValueError, match="400 bytes, the target 4"):
        message.copy_into(0, np.zeros(1, dtype=np.int32))
    with pytest.raises(errors.PeerProtocolError, match="400 bytes, dtype and shape need 404"):
        message.tensor(0, "int32", (101,))


def test_released_message_never_yields_data(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    joined.segment()
    out.send(b"", [bytes(9000)], None, soon())
    message = inn.receive(soon())
    message.tensor(0, "uint8", (9000,))
    message.release()
    message.release()
    with pytest.raises(errors.StaleHandleError):
        message.tensor(0, "uint8", (9000,))


def test_array_keeps_its_slot_after_the_message_is_forgotten(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    joined.segment(slots=1)
    out.send(b"", [bytes([5]) * 40_000], None, soon())
    array = inn.receive(soon()).tensor(0, "uint8", (40_000,))
    with pytest.raises(_native.NeedSegment):
        out.send(b"", [bytes(40_000)], None, soon())
    assert array.min() == 5
    del array
    out.send(b"", [bytes(40_000)], None, soon())


def test_expired_message_is_dropped_when_taken_from_the_queue(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    out.send(b"late", [], None, soon(), expires_ns=soon(0.01))
    out.send(b"fresh", [], None, soon(), expires_ns=soon(60))
    time.sleep(0.02)  # the deadline itself is what is tested
    assert inn.receive(soon()).meta == b"fresh"
    assert out.flush(soon()) and out.counts() == {(DROPPED, 1): 1, (DELIVERED, 0): 1}


def test_closing_the_receiver_ends_what_is_queued_and_wakes_waiters(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            inn.receive(soon())
        except errors.ClosedError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.02)
    inn.close()
    thread.join()
    assert len(caught) == 1
    out.send(b"x", [], None, soon())
    joined.b.port.progress()
    assert out.flush(soon()) and out.counts() == {(FAILED, 10): 1}


def test_port_close_wakes_every_waiter_at_once(joined: Pair) -> None:
    receivers = [joined.b.port.open_receiver(30 + i, i, 99, 0, 0) for i in range(4)]
    outcomes: list[str] = []

    def wait(receiver: object) -> None:
        try:
            receiver.receive(soon(30))  # type: ignore[attr-defined]
        except errors.ClosedError:
            outcomes.append("closed")

    threads = [threading.Thread(target=wait, args=(r,)) for r in receivers]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    started = time.monotonic()
    joined.b.port.close()
    for thread in threads:
        thread.join()
    assert outcomes == ["closed"] * 4 and time.monotonic() - started < 10, "not after its 30 s"


def test_each_of_several_waiting_threads_gets_its_message(joined: Pair) -> None:
    joined.a.port.open_sender(40, 1, 99, 0, 0, 1)
    got: dict[int, bytes] = {}
    senders, threads = [], []
    for i in range(6):
        receiver = joined.b.port.open_receiver(50 + i, i, 99, 0, 0)
        senders.append(joined.a.port.open_sender(60 + i, i, 99, 0, 0, 1))
        joined.flow(sender=60 + i, receiver=50 + i)

        def wait(i: int = i, receiver: object = receiver) -> None:
            got[i] = receiver.receive(soon()).meta  # type: ignore[attr-defined]

        threads.append(threading.Thread(target=wait))
        threads[-1].start()
    for i in reversed(range(6)):
        senders[i].send(b"%d" % i, [], None, soon())
    for thread in threads:
        thread.join()
    assert got == {i: b"%d" % i for i in range(6)}


def test_views_stay_readable_after_close_but_new_ones_are_refused(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    joined.segment()
    out.send(b"m", [bytes([3]) * 9000], None, soon())
    message = inn.receive(soon())
    array = message.tensor(0, "uint8", (9000,))
    joined.b.port.close()
    assert array.max() == 3 and message.meta == b"m"
    with pytest.raises(errors.ClosedError):
        message.tensor(0, "uint8", (9000,))
    with pytest.raises(errors.ClosedError):
        inn.receive(0)
    message.release()


def test_armed_eventfd_fires_for_an_arrival_and_never_misses_one(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    port = joined.b.port
    while not port.arm():
        pass
    assert select.select([port.event_fd()], [], [], 0)[0] == []
    out.send(b"x", [], None, soon())
    assert select.select([port.event_fd()], [], [], 1)[0]
    port.disarm()
    assert inn.receive(0).meta == b"x"
    out.send(b"y", [], None, soon())
    port.progress()
    assert not port.arm()
    assert inn.receive(0).meta == b"y"


def test_frozen_port_parks_operations_until_thawed(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    assert _native.freeze(joined.a.state, soon())
    thread = threading.Thread(target=lambda: out.send(b"x", [], None, soon()))
    thread.start()
    time.sleep(0.03)
    assert inn.receive(0) is None
    _native.thaw(joined.a.state)
    thread.join()
    assert inn.receive(soon()).meta == b"x"


def test_forked_child_finds_its_port_dead(joined: Pair) -> None:
    out = joined.sender()
    joined.flow()
    child = os.fork()
    if child == 0:
        try:
            out.send(b"x", [], None, soon())
        except errors.ClosedError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert out.send(b"x", [], None, soon()) == 1


def test_faults_are_refused_without_the_environment(joined: Pair) -> None:
    with pytest.raises(ValueError, match="FABRIC_FAULTS"):
        joined.a.port.inject("lose_drained", 1)


def test_service_thread_drains_and_beats_without_user_calls() -> None:
    with pair(service_thread=True) as joined:
        out, inn = joined.sender(), joined.receiver()
        joined.flow()
        out.send(b"x", [], None, soon())
        deadline = time.monotonic() + 20
        while joined.b.port.stats()["records_in"] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert joined.b.port.stats()["records_in"] == 1
        assert inn.receive(0).meta == b"x"


@pytest.mark.parametrize("act", ["receive", "send"])
def test_signal_handler_ends_a_wait(joined: Pair, act: str) -> None:
    out, inn = joined.sender(), joined.receiver()

    def handle(*_: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGUSR1, handle)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            inn.receive(soon(20)) if act == "receive" else out.send(b"", [], None, soon(20))
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, former)
    joined.flow()
    out.send(b"after", [], None, soon())
    assert inn.receive(soon()).meta == b"after"


def test_lying_return_entry_breaks_only_its_lane(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    flow = joined.flow()
    out.send(b"x", [], None, soon())
    inn.receive(soon())
    returns = 3 * 4096 + 2 * 256 * 1024 - 4096  # behind head, cursors and both record rings
    assert os.pread(joined.lane_fd, 8, returns) == flow.to_bytes(8, "little")
    os.pwrite(joined.lane_fd, (99).to_bytes(8, "little"), returns + 16)
    with pytest.raises(errors.PeerProtocolError, match="a return entry cannot be true"):
        for _ in range(2):
            out.flush(soon(0.01))
            out.send(b"y", [], None, soon())


def test_crc32c_matches_the_published_vectors() -> None:
    assert _native.crc32c(b"123456789") == 0xE3069283
    assert _native.crc32c(bytes(32)) == 0x8A9136AA
    assert _native.crc32c(b"6789", seed=_native.crc32c(b"12345")) == 0xE3069283
