"""What is encoded natively, one by one and in batches: values that may be absent, named axes, messages sent on."""

import random
import sys
import threading

import numpy as np
import pytest

import fabric
from fabric import errors, limits
from fabric.messages import message, message_type


@message("test.batch")
class Batch:
    number: int
    name: str | None = None
    weight: float | None = None
    keys: fabric.Tensor["tokens heads 4", "f32"] | None = None
    values: fabric.Tensor["tokens heads 4", "f32"] | None = None
    image: fabric.Tensor["... 3", "u8"] | None = None


@message("test.batch.tensor")
class OneTensor:
    rows: fabric.Tensor["n", "i32"]


TYPE = message_type(Batch)


@pytest.fixture
def ends(ports):
    left, right = ports
    left.declare("batch", Batch)
    return left.sender("batch", Batch), right.receiver("batch", Batch)


@pytest.fixture
def tensors(ports):
    left, right = ports
    left.declare("tensors", OneTensor)
    return left.sender("tensors", OneTensor), right.receiver("tensors", OneTensor)


def make(number, tokens=2):
    """Leave out what the bits of `number` say."""
    layer = np.full((tokens, 1 + number % 2, 4), number, np.float32)
    fields = {
        "name": f"message {number}",
        "weight": number / 2,
        "keys": layer,
        "values": -layer,
        "image": np.full((2, 3), number, np.uint8),
    }
    kept = {name: value for bit, (name, value) in enumerate(fields.items()) if number >> bit & 1}
    return Batch(number, **kept)


def check(got, sent):
    assert (got.number, got.name, got.weight) == (sent.number, sent.name, sent.weight)
    for name in ("keys", "values", "image"):
        ours, theirs = getattr(got, name), getattr(sent, name)
        assert (ours is None) == (theirs is None)
        assert theirs is None or (np.array_equal(ours, theirs) and ours.dtype == theirs.dtype)


def test_fields_that_may_be_absent_arrive_as_they_were(ends):
    sender, receiver = ends
    assert TYPE.native_plan is not None
    assert [field.kind for field in TYPE.native_plan.fields] == list("iSFTTT")
    for number in (*range(32), *range(32)):
        sender.send(make(number))
        check(receiver.receive(5), make(number))


def test_batches_arrive_whole_and_in_order(ends):
    sender, receiver = ends
    for _ in range(2):
        sent = [make(number % 32, 1 + number % 3) for number in range(100)]
        assert sender.send_many(sent) == 100
        got = []
        while len(got) < 100:
            got += receiver.receive_many(64, 5)
        for ours, theirs in zip(got, sent, strict=True):
            check(ours, theirs)


def test_batch_with_a_wrong_message_sends_nothing(ends):
    sender, receiver = ends
    for wrong in (
        Batch("1"),
        Batch(1, keys=np.zeros((2, 2, 5), np.float32)),
        Batch(1, keys=np.zeros((2, 2, 4), np.float32), values=np.zeros((3, 2, 4), np.float32)),
        None,
    ):
        with pytest.raises(errors.TypeMismatchError):
            sender.send_many([make(31), wrong])
    assert receiver.receive(0) is None


def test_axes_of_one_name_are_compared_when_their_shapes_are_known(ends):
    sender, receiver = ends
    two, three = np.zeros((2, 2, 4), np.float32), np.zeros((3, 2, 4), np.float32)
    for layer in (two, three, two, three):
        sender.send(Batch(1, keys=layer, values=layer))
        assert receiver.receive(5).values.shape == layer.shape
    for keys, values in ((two, three), (three, two)):
        with pytest.raises(errors.TypeMismatchError, match="dimension 'tokens'"):
            sender.send(Batch(1, keys=keys, values=values))
    assert receiver.receive(0) is None


def test_received_messages_are_sent_on_in_a_batch(ends):
    sender, receiver = ends
    sent = [make(number) for number in range(20)]
    sender.send_many(sent)
    got = receiver.receive_many(20, 5)
    assert sender.send_many(got) == 20
    for ours, theirs in zip(receiver.receive_many(20, 5), sent, strict=True):
        check(ours, theirs)


def test_batch_of_tensors_gets_the_memory_that_it_needs(tensors):
    sender, receiver = tensors
    sent = [np.arange(size, dtype=np.int32) for size in (1, 20_000, 3, 100_000, 0, 5_000)]
    for _ in range(3):
        assert sender.send_many([OneTensor(rows) for rows in sent], deadline=5) == 6
        for rows in sent:
            with receiver.receive(5) as got:
                np.testing.assert_array_equal(got.rows, rows)


def test_batch_without_room_says_how_many_went(tensors):
    sender, receiver = tensors
    batch = [OneTensor(np.arange(200, dtype=np.int32))] * 500
    sender.send(batch[0])  # waits for the consumer
    assert len(receiver.receive(5).rows) == 200
    done = 0
    while (sent := sender.send_many(batch, deadline=0)) == 500:
        done += sent
        assert done < 100_000
    done += sent
    with pytest.raises(errors.WouldBlock):
        sender.send_many(batch, deadline=0)
    got = 0
    while found := receiver.receive_many(200, 0):
        assert all(each.rows[199] == 199 for each in found)
        got += len(found)
    assert got == done


def test_array_may_be_written_once_send_returned(tensors):
    sender, receiver = tensors
    rows = np.zeros(100, np.int32)
    for number in range(5):
        rows[:] = number
        sender.send(OneTensor(rows))
    rows[:] = -1
    assert [each.rows[0] for each in receiver.receive_many(5, 5)] == [0, 1, 2, 3, 4]


def test_tensors_too_large_together_are_refused_each_time(ends):
    sender, receiver = ends
    half = np.zeros(
        (limits.MESSAGE_BYTES_MAX // 32 + 1, 1, 4), np.float32
    )  # never written: no memory
    for _ in range(2):  # the second time both shapes are known
        with pytest.raises(errors.CapacityError, match="MESSAGE_BYTES_MAX"):
            sender.send(Batch(1, keys=half, values=half))
        with pytest.raises(errors.CapacityError, match="MESSAGE_BYTES_MAX"):
            sender.send_many([make(31), Batch(1, keys=half, values=half)])
    assert receiver.receive(0) is None


def test_threads_that_send_other_shapes_through_one_end_disturb_nobody(ends):
    """What an end remembers of the last array of a field is not taken for another thread's."""
    sender, receiver = ends
    before, failed = sys.getswitchinterval(), []

    def send(seed):
        choose = random.Random(seed)
        for _ in range(400):
            shape = (choose.randint(1, 9), choose.randint(1, 3), 4)
            keys = np.full(shape, shape[0] * 10 + shape[1], np.float32)
            sender.send(Batch(shape[0], keys=keys, values=-keys))
            try:
                sender.send(Batch(0, keys=keys, values=np.zeros((shape[0] + 1, shape[1], 4), "f4")))
                failed.append(shape)
            except errors.TypeMismatchError:
                pass

    threads = [threading.Thread(target=send, args=(seed,)) for seed in range(3)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for _ in range(1200):
            got = receiver.receive(10)
            assert got.keys.shape[0] == got.number and got.keys.shape == got.values.shape
            assert (got.keys == got.number * 10 + got.keys.shape[1]).all()
            assert (got.values == -got.keys).all()
    finally:
        sys.setswitchinterval(before)
        for thread in threads:
            thread.join()
    assert not failed and receiver.receive(0) is None
