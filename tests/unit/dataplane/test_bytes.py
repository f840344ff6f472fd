"""A channel of plain bytes: any buffer in, views or bytes out, ends and errors as on every other channel."""

import asyncio
import os
import threading
import time

import numpy as np
import pytest

import fabric
import fabric.aio
from fabric import errors
from fabric.cli.message_json import from_line, to_line
from fabric.dataplane.bytes_ends import BytesReceiver
from fabric.messages import class_from_schema, message_type
from fabric.messages.raw import PLAIN_BYTES_MAX

PAYLOADS = {
    "short": b"hi",
    "empty": b"",
    "longest in a record": b"x" * PLAIN_BYTES_MAX,
    "shortest in a slot": b"y" * (PLAIN_BYTES_MAX + 1),
    "long": bytes(range(256)) * 4096,
    "array": np.arange(10),
    "matrix": np.arange(4096.0).reshape(64, 64),
    "empty array": np.zeros((0, 3)),
    "bytearray": bytearray(b"abc"),
    "memoryview": memoryview(b"abcdef")[1:4],
}


@pytest.fixture(params=["at_most_once", "at_least_once"])
def ends(ports, request):
    left, right = ports
    left.declare("raw", bytes, delivery=request.param)
    return left.sender("raw", bytes), right.receiver("raw")


@pytest.fixture(params=PAYLOADS)
def payload(request):
    return PAYLOADS[request.param]


def test_a_message_is_a_view_of_what_was_sent(ends, payload):
    sender, receiver = ends
    number = sender.send(payload, key="k", deadline=5)
    with receiver.receive(5) as got:
        assert bytes(got) == bytes(payload) == got.tobytes() and len(got) == len(bytes(payload))
        assert got == bytes(payload) and got != b"something else" and got != "text"
        assert memoryview(got).readonly
        assert (
            got.header.sequence == number and got.header.key == b"k" and not got.header.redelivered
        )
        got.ack()
        got.ack()
        got.nack()
    sender.flush(5)
    assert sender.stats()["delivered"] == 1


def test_plain_bytes_come_acknowledged(ends, payload):
    sender, receiver = ends
    sender.send(payload)
    got = receiver.receive_bytes(5)
    assert type(got) is bytes and got == bytes(payload)
    sender.flush(5)
    assert sender.stats()["delivered"] == 1


def test_batches_keep_their_order(ends, payload):
    sender, receiver = ends
    batch = [payload, b"second", bytearray(b"third")]
    assert sender.send_many(batch) == 3 == sender.send_many(batch, deadline=5)
    plain, views = [], []
    while len(plain) < 3:
        plain += receiver.receive_many_bytes(3 - len(plain), 5)
    while len(views) < 3:
        views += receiver.receive_many(10, 5)
    for view in views:
        view.ack()
    assert plain == [bytes(each) for each in batch] == [bytes(view) for view in views]
    sender.flush(5)
    assert sender.stats()["delivered"] == 6


def test_a_received_message_is_sent_on_as_it_is(ends, payload):
    sender, receiver = ends
    sender.send(payload)
    with receiver.receive(5) as got:
        sender.send(got)
        got.ack()
    assert receiver.receive_bytes(5) == bytes(payload)


def test_a_view_outlives_its_endpoint_and_not_its_release(ports):
    left, right = ports
    left.declare("raw", bytes)
    with left.sender("raw", bytes) as sender, right.receiver("raw") as receiver:
        sender.send(b"z" * 100_000)
        sender.send(b"short")
        long, short = receiver.receive(5), receiver.receive(5)
        view = memoryview(short)
        del short
    assert bytes(view) == b"short" and bytes(long) == b"z" * 100_000
    long.release()
    with pytest.raises(errors.StaleHandleError):
        memoryview(long)


def test_bytes_are_written_in_place_through_a_loan(ends):
    sender, receiver = ends
    with sender.loan(100_000, key="k", deadline=5) as data:
        data[:] = b"L" * 100_000
    with pytest.raises(RuntimeError), sender.loan(10) as data:
        raise RuntimeError("the writer failed")
    with pytest.raises(errors.TypeMismatchError):
        sender.loan(0).__enter__()
    with receiver.receive(5) as got:
        assert bytes(got) == b"L" * 100_000 and got.header.key == b"k"
        got.ack()
    assert receiver.receive(0) is None


@pytest.mark.parametrize("wrong", ["text", 5, None, np.arange(10)[::2]])
def test_what_is_no_contiguous_buffer_is_refused(ends, wrong):
    sender, receiver = ends
    with pytest.raises(errors.TypeMismatchError, match="carries bytes"):
        sender.send(wrong)
    with pytest.raises(errors.TypeMismatchError, match="carries bytes"):
        sender.send_many([b"good", wrong])
    assert receiver.receive(0) is None


@pytest.mark.parametrize("wrong", [-1, True, float("nan"), 1e9, "x"])
def test_a_time_that_is_none_is_refused_before_anything_happens(ends, wrong):
    sender, receiver = ends
    sender.send(b"stays")
    calls = [
        lambda: receiver.receive(wrong),
        lambda: receiver.receive_bytes(timeout=wrong),
        lambda: receiver.receive_many(1, wrong),
        lambda: receiver.receive_many_bytes(1, timeout=wrong),
        lambda: sender.send(b"x", deadline=wrong),
        lambda: sender.send_many([b"x"], deadline=wrong),
    ]
    for call in calls:
        with pytest.raises(errors.ConfigError):
            call()
    assert receiver.pending() == 1


def test_arguments_that_do_not_exist_are_refused(ends):
    sender, receiver = ends
    for call in (
        lambda: sender.send(),
        lambda: sender.send(b"x", kay="k"),
        lambda: sender.send(b"x", "k", 1, 2),
        lambda: receiver.receive(1, 2),
        lambda: receiver.receive_bytes(deadline=1),
        lambda: receiver.receive_many(),
    ):
        with pytest.raises(TypeError):
            call()
    for count in (0, -1, 1 << 20, "3", True):
        with pytest.raises(errors.ConfigError):
            receiver.receive_many(count)
        with pytest.raises(errors.ConfigError):
            receiver.receive_many_bytes(count)


def test_nothing_comes_from_a_channel_without_messages(ends):
    _, receiver = ends
    assert receiver.receive(0) is None and receiver.receive(0.01) is None
    assert receiver.receive_bytes(0) is None and receiver.receive_bytes(0.01) is None
    assert receiver.receive_many(5, 0) == [] == receiver.receive_many_bytes(5, 0.01)


def test_errors_name_the_channel(ports):
    left, right = ports
    left.declare("raw", bytes)
    sender = left.sender("raw", bytes)
    with pytest.raises(errors.WouldBlock, match="'raw'"):
        sender.send(b"x", deadline=0)
    with pytest.raises(errors.DeadlineExceeded, match="'raw'"):
        sender.send(b"x", deadline=0.02)
    with pytest.raises(errors.WouldBlock, match="'raw'"):
        sender.send_many([b"x"], deadline=0)
    receiver = right.receiver("raw")
    sender.close()
    receiver.close()
    with pytest.raises(errors.ClosedError, match="'raw'"):
        sender.send(b"x")
    with pytest.raises(errors.ClosedError, match="'raw'"):
        receiver.receive(1)


def test_a_full_window_is_waited_for(ports):
    left, right = ports
    left.declare("raw", bytes)
    sender, receiver = left.sender("raw", bytes), right.receiver("raw", messages=4)
    wanted = [b"%d" % i for i in range(40)]
    sent = []
    thread = threading.Thread(target=lambda: sent.append(sender.send_many(wanted, deadline=10)))
    thread.start()
    assert [receiver.receive_bytes(5) for _ in wanted] == wanted
    thread.join()
    assert sent == [40]
    assert sender.send_many(wanted, deadline=0) == 4
    assert len(receiver.receive_many_bytes(10, 5)) == 4


def test_an_expired_message_is_not_handed_over(ports):
    left, right = ports
    left.declare("raw", bytes)
    sender, receiver = left.sender("raw", bytes), right.receiver("raw")
    sender.send(b"first")
    sender.send(b"short-lived", deadline=0.05)
    sender.send(b"last")
    time.sleep(0.06)
    assert receiver.receive_many_bytes(3, 5) == [b"first", b"last"]
    sender.flush(5)
    assert sender.stats()["dropped(expired)"] == 1


def test_unacknowledged_views_stay_out(ports):
    left, right = ports
    left.declare("raw", bytes, delivery="at_least_once")
    sender, receiver = left.sender("raw", bytes), right.receiver("raw")
    sender.send_many([b"kept", b"refused"])
    kept, refused = receiver.receive_many(2, 5)
    refused.nack()
    for wrong in (0, 16, "x", True):
        with pytest.raises(errors.ConfigError):
            kept.nack(wrong)
    with pytest.raises(errors.DeadlineExceeded):
        sender.flush(0.05)
    kept.ack()
    sender.flush(5)
    stats = sender.stats()
    assert stats["delivered"] == 1 and stats["failed(consumer_error)"] == 1


def test_iteration_ends_with_the_receiver(ends):
    sender, receiver = ends
    sender.send_many([b"a", b"b"])
    seen = []
    for message in receiver:
        seen.append(bytes(message))
        message.ack()
        if len(seen) == 2:
            receiver.close()
    assert seen == [b"a", b"b"]


def test_a_broadcast_reaches_every_receiver(node, ports):
    left, right = ports
    left.declare("raw", bytes, pattern="broadcast")
    with fabric.attach("third", node.path) as third:
        sender = left.sender("raw", bytes)
        receivers = [right.receiver("raw"), third.receiver("raw")]
        while len(sender.native.flows()) < 2:
            pass
        for data in (b"one", b"2" * 9000):
            sender.send(data)
            assert [each.receive_bytes(5) for each in receivers] == [data, data]


@pytest.mark.parametrize("size", [0, 3, 9000])
def test_requests_and_replies_of_bytes(ports, size):
    left, right = ports
    left.declare("twice", bytes, reply=bytes)
    requester, responder = (
        left.requester("twice", bytes, bytes),
        right.responder("twice", bytes, bytes),
    )

    def serve():
        responder.receive(5).reply(b"r" * size)
        responder.receive(5).stream([b"", b"s" * size, b"end"])

    thread = threading.Thread(target=serve)
    thread.start()
    assert bytes(requester.call(b"q" * size, deadline=5)) == b"r" * size
    replies = [bytes(reply) for reply in requester.stream(b"", deadline=5)]
    thread.join()
    assert replies == [b"", b"s" * size, b"end"]


def test_the_asyncio_face_carries_bytes(node):
    async def talk():
        async with (
            fabric.aio.attach("left", node.path) as left,
            fabric.aio.attach("right", node.path) as right,
        ):
            await left.declare("raw", bytes, pattern="queue")
            sender, receiver = await left.sender("raw", bytes), await right.receiver("raw", bytes)
            await sender.send(b"one", key="k")
            await sender.send_many([b"two", b"3" * 9000, b""])
            got = []
            while len(got) < 4:
                got += await receiver.receive_many(4, 5)
            assert [bytes(each)[:3] for each in got] == [b"one", b"two", b"333", b""]
            assert got[0].header.key == b"k"

    asyncio.run(talk())


def test_another_type_is_refused_by_name(ports, types):
    left, right = ports
    left.declare("raw", bytes)
    with pytest.raises(errors.TypeMismatchError, match=r"bytes@1"):
        right.receiver("raw", types.note)
    left.declare("notes", types.note)
    with pytest.raises(errors.TypeMismatchError, match=r"bytes@1"):
        left.sender("notes", bytes)


def test_a_view_whose_record_is_of_another_type_is_corrupted(ports, types):
    left, right = ports
    left.declare("notes", types.block)
    sender, receiver = left.sender("notes", types.block), right.receiver("notes")
    answer = {"endpoint": receiver.endpoint, "delivery": "at_most_once"}
    as_bytes = BytesReceiver(right, "notes", message_type(bytes), receiver.native, answer)
    sender.send(types.make_block())
    with pytest.raises(errors.PeerProtocolError):
        as_bytes.receive(5)
    sender.send(types.make_block())
    with pytest.raises(errors.PeerProtocolError):
        as_bytes.receive_bytes(5)


def test_the_type_is_known_by_its_schema():
    type_ = message_type(bytes)
    assert class_from_schema(type_.schema) is bytes and message_type(b"x") is type_
    assert type_.schema.label == "bytes@1"


def test_lines_of_json_hold_bytes():
    assert from_line(bytes, '{"text": "hé"}', "line 1") == "hé".encode()
    assert from_line(bytes, to_line(b"\x00\xff"), "line 1") == b"\x00\xff"
    for wrong in ('{"data": "%"}', '{"data": 3}', '{"text": "a", "data": ""}', "[]", "{}"):
        with pytest.raises(errors.TypeMismatchError, match="line 1"):
            from_line(bytes, wrong, "line 1")


def test_a_fork_finds_its_ends_closed(ends):
    sender, receiver = ends
    child = os.fork()
    if child == 0:
        try:
            sender.send(b"x")
        except errors.ClosedError:
            try:
                receiver.receive(1)
            except errors.ClosedError:
                os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    sender.send(b"still")
    assert receiver.receive_bytes(5) == b"still"
