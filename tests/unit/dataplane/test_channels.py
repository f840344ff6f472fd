"""Messages through attached ports: values, ends, waits and refusals."""

import time

import numpy as np
import pytest

import fabric
from fabric import errors, limits
from fabric.messages import Tensor, message


def test_messages_arrive_in_order_with_their_values(notes, types):
    sender, receiver = notes
    for number in range(100):
        sender.send(types.note("n", number), deadline=5)
    received = [receiver.receive(5) for _ in range(100)]
    assert [m.number for m in received] == list(range(100))
    assert received[3].header.sequence == 4
    sender.flush(5)
    assert sender.stats()["delivered"] == 100


def test_tensors_of_any_size_arrive_equal(blocks, types):
    sender, receiver = blocks
    for rows in (0, 1, 30, 500, 40_000):
        sent = types.make_block(rows, rows)
        sender.send(sent, deadline=5)
        with receiver.receive(5) as got:
            np.testing.assert_array_equal(got.data, sent.data)
            assert not got.data.flags.writeable and got.extra is None
            got.ack()
    sender.flush(5)


def test_loan_is_written_in_place_and_sent_at_the_end_of_the_block(blocks):
    sender, receiver = blocks
    with sender.loan(data=(100, 50), extra=(100,), deadline=5) as draft:
        draft.step = 7
        draft.data[...] = 3.0
        draft.extra[...] = np.arange(100)
    got = receiver.receive(5)
    assert got.step == 7 and got.data.sum() == 15000 and got.extra[99] == 99
    got.ack()
    sender.flush(5)


def test_loan_left_by_an_exception_sends_nothing(blocks):
    sender, receiver = blocks
    with pytest.raises(KeyError), sender.loan(data=(100, 50), deadline=5):
        raise KeyError
    with (
        pytest.raises(errors.TypeMismatchError, match="'step'"),
        sender.loan(data=(100, 50), deadline=5),
    ):
        pass
    with (
        pytest.raises(errors.TypeMismatchError, match="'data'"),
        sender.loan(data=(100, 50), deadline=5) as draft,
    ):
        draft.step, draft.data = 1, np.zeros((100, 50), np.float32)
    assert receiver.receive(0.05) is None
    assert sender.stats()["delivered_bytes"] == 0


def test_many_scalars_travel_in_a_slot(ports):
    @message("big")
    class Big:
        parts: list[str]

    left, right = ports
    left.declare("big", Big)
    sender, receiver = left.sender("big", Big), right.receiver("big", Big)
    sender.send(Big(["x" * 1000] * 50), deadline=5)
    assert len(receiver.receive(5).parts) == 50


def test_receive_into_copies_once_and_gives_the_slot_back(blocks, types):
    sender, receiver = blocks
    sent = types.make_block(1, 300)
    sender.send(sent, deadline=5)
    target = np.empty((300, 8), np.float32)
    got = receiver.receive_into(5, data=target)
    np.testing.assert_array_equal(target, sent.data)
    got.ack()
    sender.flush(5)


def test_send_many_and_receive_many_carry_a_batch(notes, types):
    sender, receiver = notes
    assert sender.send_many([types.note("a", n) for n in range(50)], deadline=5) == 50
    seen = []
    while len(seen) < 50:
        batch = receiver.receive_many(50, 5)
        assert batch
        seen += [m.number for m in batch]
    assert seen == list(range(50))


def test_send_many_with_payloads_in_slots_arrives_whole(blocks, types):
    sender, receiver = blocks
    batch = [types.make_block(n, 300) for n in range(8)]
    assert sender.send_many(batch, deadline=5) == 8
    for sent in batch:
        with receiver.receive(5) as got:
            np.testing.assert_array_equal(got.data, sent.data)
            got.ack()


def test_keys_reach_the_receiver(notes, types):
    sender, receiver = notes
    sender.send(types.note("x"), key="request-1", deadline=5)
    assert receiver.receive(5).header.key == b"request-1"
    with pytest.raises(errors.CapacityError, match="KEY_BYTES_MAX"):
        sender.send(types.note("x"), key=b"k" * (limits.KEY_BYTES_MAX + 1))


def test_sender_waits_when_credit_is_zero_and_names_what_was_full(node, ports, types):
    left, right = ports
    left.declare("few", types.note, pattern="queue")
    sender, receiver = left.sender("few", types.note), right.receiver("few", types.note, messages=4)
    deadline = time.monotonic() + 5
    while not node.flows and time.monotonic() < deadline:
        time.sleep(0.005)
    with pytest.raises(errors.DeadlineExceeded) as info:
        for _ in range(1000):
            sender.send(types.note("x"), deadline=0.1)
    assert str(info.value)
    with pytest.raises(errors.WouldBlock):
        sender.send(types.note("x"), deadline=0)
    while receiver.receive(0) is not None:
        pass
    sender.send(types.note("again"), deadline=5)


def test_sender_without_receiver_waits_until_its_deadline(ports, types):
    left, _ = ports
    left.declare("lonely", types.note, pattern="queue")
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        left.sender("lonely", types.note).send(types.note("x"), deadline=0.1)
    assert time.monotonic() - started < 10, "not the default of 30 s"


def test_receive_returns_none_at_its_timeout(notes):
    started = time.monotonic()
    assert notes[1].receive(0.05) is None
    assert notes[1].receive(0) is None
    assert 0.04 < time.monotonic() - started < 10


@pytest.mark.parametrize("bad", [-1, float("nan"), limits.DEADLINE_S_MAX + 1, "soon"])
def test_no_wait_is_infinite_or_negative(notes, bad):
    with pytest.raises(errors.ConfigError):
        notes[1].receive(bad)


def test_flush_names_what_has_not_ended(blocks, types):
    sender, receiver = blocks
    sender.send(types.make_block(), deadline=5)
    message = receiver.receive(5)
    with pytest.raises(errors.DeadlineExceeded, match="1 messages"):
        sender.flush(0.05)
    message.ack()
    sender.flush(5)


def test_refused_message_ends_as_failed(blocks, types):
    sender, receiver = blocks
    sender.send(types.make_block())
    receiver.receive(5).nack()
    sender.flush(5)
    assert sender.stats()["failed(consumer_error)"] == 1


def test_type_mismatch_is_refused_at_open_naming_the_field(ports, types):
    @message("test.note")
    class Other:
        text: str
        number: float = 0

    left, right = ports
    left.declare("notes", types.note)
    with pytest.raises(errors.TypeMismatchError, match="'number'"):
        right.receiver("notes", Other)
    with pytest.raises(errors.TypeMismatchError, match="no message type"):
        right.receiver("notes", dict)


def test_undeclared_channel_and_wrong_pattern_are_refused(ports, types):
    left, _ = ports
    with pytest.raises(errors.ConfigError, match="nowhere"):
        left.sender("nowhere", types.note)
    left.declare("notes", types.note)
    left.declare("notes", types.note)
    with pytest.raises(errors.ConfigError, match="pattern"):
        left.declare("notes", types.note, pattern="queue")
    with pytest.raises(errors.ConfigError):
        left.requester("notes", types.note, types.note)


def test_receiver_without_a_type_takes_the_channels(ports, types):
    left, right = ports
    left.declare("blocks", types.block)
    sender, receiver = left.sender("blocks", types.block), right.receiver("blocks")
    sender.send(types.make_block(3), deadline=5)
    got = receiver.receive(5)
    assert got.step == 3 and got.data.shape == (4, 8)


def test_wrong_field_is_refused_at_send_and_nothing_is_sent(notes, types):
    sender, receiver = notes
    with pytest.raises(errors.TypeMismatchError, match="'number'"):
        sender.send(types.note("x", "one"))
    assert receiver.receive(0.02) is None


def test_iteration_ends_when_the_endpoint_closes(notes, types):
    import threading

    sender, receiver = notes
    sender.send(types.note("x"), deadline=5)
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(m.text for m in receiver))
    thread.start()
    deadline = time.monotonic() + 5
    while not seen and time.monotonic() < deadline:
        time.sleep(0.005)
    receiver.close()
    thread.join(5)
    assert seen == ["x"] and not thread.is_alive()


def test_two_receivers_of_a_queue_share_the_messages(node, ports, types):
    left, right = ports
    left.declare("work", types.note, pattern="queue")
    with fabric.attach("third", node.path) as third:
        sender = left.sender("work", types.note)
        receivers = [right.receiver("work", types.note), third.receiver("work", types.note)]
        deadline = time.monotonic() + 5
        while len(sender.stats()["flows"]) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        for number in range(40):
            sender.send(types.note("w", number), deadline=5)
        got = [[m.number for m in r.receive_many(40, 1)] for r in receivers]
        assert sorted(got[0] + got[1]) == list(range(40)) and got[0] and got[1]


def test_closed_port_answers_closed(node, types):
    port = fabric.attach("brief", node.path)
    port.declare("notes", types.note)
    sender = port.sender("notes", types.note)
    port.close()
    port.close()
    with pytest.raises(errors.ClosedError):
        sender.send(types.note("x"))
    with pytest.raises(errors.ClosedError):
        port.declare("notes", types.note)


def test_attach_says_how_to_start_a_daemon_that_is_not_there(tmp_path):
    with pytest.raises(errors.BrokenError, match="fabricctl up"):
        fabric.attach("x", "/tmp/no-such-fabric.sock")
    with pytest.raises(errors.ConfigError, match="107"):
        fabric.attach("x", "/tmp/" + "x" * 200)
    with pytest.raises(errors.ConfigError, match="name"):
        fabric.attach("", "/tmp/no-such-fabric.sock")


def test_bf16_loan_and_view_meet_torch(blocks):
    torch = pytest.importorskip("torch")
    sender, receiver = blocks
    values = torch.randn(6, 5, dtype=torch.bfloat16)
    with sender.loan(data=((6, 5), "bf16"), deadline=5) as draft:
        fabric.as_torch(draft.data).copy_(values)
        draft.step = 1
    got = receiver.receive(5)
    assert torch.equal(got.as_torch("data"), values)
    got.ack()


def test_tensor_annotation_is_exported():
    assert fabric.Tensor is Tensor


def test_loan_above_the_largest_segment_is_refused(blocks, monkeypatch):
    monkeypatch.setattr(limits, "SEGMENT_BYTES_MAX", 1000)
    with (
        pytest.raises(errors.LoanLimitError, match="SEGMENT_BYTES_MAX"),
        blocks[0].loan(data=(100, 50)),
    ):
        pass


def test_iteration_ends_at_the_normal_end_of_a_channel(notes, monkeypatch):
    def end(timeout):
        raise errors.EndOfChannel

    monkeypatch.setattr(notes[1], "receive", end)
    assert list(notes[1]) == []


def test_reply_to_a_requester_that_is_gone_says_so(node, types):
    with fabric.attach("answers", node.path) as answers:
        answers.declare("embed", types.query, reply=types.answer)
        responder = answers.responder("embed", types.query, types.answer)
        with fabric.attach("asks", node.path) as asks:
            asks.requester("embed", types.query, types.answer).begin(types.query(1), None, 20)
            request = responder.receive(5)
        deadline = time.monotonic() + 5
        while answers.flows_of(responder.replies.endpoint) and time.monotonic() < deadline:
            time.sleep(0.005)
        with pytest.raises(errors.FabricError) as info:
            request.reply(types.answer(1))
        assert isinstance(info.value, (errors.PeerLostError, errors.CancelledRequestError))
