"""What a caller gets wrong is refused with a typed error that says what, why and what to do; nothing is sent."""

import os
import threading

import numpy as np
import pytest

import fabric
from fabric import errors, limits
from fabric.messages import Tensor, message


@message("bad.all")
class All:
    text: str
    number: int
    ratio: float
    data: Tensor["rows 3", "f32"]
    parts: list[Tensor["n", "i64"]]
    tags: list[str]


@message("bad.all", version=2)
class Newer:
    text: int


@message("bad.twin")
class Twin:
    text: str
    number: int
    ratio: float
    data: Tensor["rows 3", "f32"]
    parts: list[Tensor["n", "i64"]]
    tags: list[str]


GOOD = {
    "text": "t", "number": 1, "ratio": 0.5, "data": np.zeros((2, 3), np.float32), "parts": [np.zeros(4, np.int64)],
    "tags": ["a"],
}  # fmt: skip


class OnDevice:
    """Memory of another device, as DLPack presents it."""

    def __dlpack__(self, **_):
        raise BufferError("cannot export: the memory is on cuda:0")

    def __dlpack_device__(self):
        return (2, 0)


BAD_FIELDS = {
    "text is no text": ({"text": 5}, errors.TypeMismatchError, "'text'"),
    "text with half a character": ({"text": "\ud800"}, errors.TypeMismatchError, "'text'"),
    "text too long": ({"text": "x" * (limits.STRING_BYTES_MAX + 1)}, errors.TypeMismatchError, "'text'"),
    "number is a float": ({"number": 1.5}, errors.TypeMismatchError, "'number'"),
    "number too large": ({"number": 2**64}, errors.TypeMismatchError, "'number'"),
    "not a number": ({"ratio": float("nan")}, errors.TypeMismatchError, "'ratio'"),
    "infinite": ({"ratio": float("inf")}, errors.TypeMismatchError, "'ratio'"),
    "minus infinite, of numpy": ({"ratio": np.float32("-inf")}, errors.TypeMismatchError, "'ratio'"),
    "dtype": ({"data": np.zeros((2, 3))}, errors.TypeMismatchError, "'data'"),
    "rank": ({"data": np.zeros(3, np.float32)}, errors.TypeMismatchError, "'data' has rank 1"),
    "size of a dimension": ({"data": np.zeros((2, 4), np.float32)}, errors.TypeMismatchError, "4 where 3 must be"),
    "no tensor": ({"data": "abc"}, errors.TypeMismatchError, "'data'"),
    "none": ({"data": None}, errors.TypeMismatchError, "'data'"),
    "another device": ({"data": OnDevice()}, errors.TypeMismatchError, "'data'.*cuda"),
    "a list of python numbers": ({"data": [[1.0, 2.0, 3.0]]}, errors.TypeMismatchError, "'data'"),
    "objects": ({"data": np.array([[None] * 3])}, errors.TypeMismatchError, "'data'"),
    "one tensor for a list": ({"parts": np.zeros((2, 2), np.int64)}, errors.TypeMismatchError, "give a list"),
    "an item of a list": ({"parts": [np.zeros(2, np.int64), np.zeros(2)]}, errors.TypeMismatchError, r"'parts\[1\]'"),
    "an absent item": ({"parts": [None]}, errors.TypeMismatchError, r"'parts\[0\]'"),
    "too many tensors": ({"parts": [np.zeros(0, np.int64)] * 64}, errors.CapacityError, "TENSORS_PER_MESSAGE_MAX"),
    "a huge list of tensors": ({"parts": [None] * 10**6}, errors.CapacityError, "TENSORS_PER_MESSAGE_MAX"),
    "a huge list": ({"tags": ["x" * 100] * 10**5}, errors.CapacityError, "META_BYTES_MAX"),
    "a list with a wrong item": ({"tags": ["a", 2]}, errors.TypeMismatchError, r"'tags'\[1\]"),
    "a list that holds itself": ({"tags": [[]]}, errors.TypeMismatchError, "'tags'"),
}  # fmt: skip


@pytest.fixture
def alls(ports):
    left, right = ports
    left.declare("alls", All, pattern="queue", delivery="at_least_once")
    return left.sender("alls", All), right.receiver("alls", All)


def assert_clean(sender, receiver):
    """Nothing was sent, and the channel works."""
    assert receiver.receive(0.02) is None
    number = sender.send(All(**GOOD), deadline=5)
    with receiver.receive(5) as got:
        assert got.number == 1 and got.header.sequence == number
        got.ack()
    sender.flush(5)
    counts = {k: v for k, v in sender.stats().items() if k not in ("flows", "delivered_bytes")}
    assert set(counts) == {"delivered"}


@pytest.mark.parametrize("bad", BAD_FIELDS)
def test_bad_field_is_named_and_nothing_is_sent(alls, bad):
    sender, receiver = alls
    change, error, match = BAD_FIELDS[bad]
    wrong = All(**{**GOOD, **change})
    with pytest.raises(error, match=match):
        sender.send(wrong, deadline=5)
    with pytest.raises(error, match=match):
        sender.send_many([All(**GOOD), wrong, All(**GOOD)], deadline=5)
    assert_clean(sender, receiver)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(Newer("t"), "bad.all@2"), (Twin(**GOOD), "bad.twin@1"), ("text", "str"), (None, "NoneType"), (All, "All")],
    ids=["version", "twin", "text", "none", "class"],
)  # fmt: skip
def test_message_of_another_type_or_channel_is_refused_naming_both(alls, value, shown):
    sender, receiver = alls
    with pytest.raises(errors.TypeMismatchError, match=f"{shown}|must be set"):
        sender.send(value, deadline=5)
    assert_clean(sender, receiver)


BAD_KEYS = {
    "number": (5, errors.TypeMismatchError),
    "list": ([1], errors.TypeMismatchError),
    "half a character": ("\ud800", errors.TypeMismatchError),
    "a million characters": ("k" * 10**6, errors.CapacityError),
    "one byte too long": (b"k" * (limits.KEY_BYTES_MAX + 1), errors.CapacityError),
    "too long in bytes": ("ü" * (limits.KEY_BYTES_MAX // 2 + 1), errors.CapacityError),
}


@pytest.mark.parametrize("bad", BAD_KEYS)
def test_bad_key_is_refused(alls, bad):
    sender, receiver = alls
    key, error = BAD_KEYS[bad]
    for call in (
        lambda: sender.send(All(**GOOD), key=key, deadline=5),
        lambda: sender.send_many([All(**GOOD)] * 2, keys=["fine", key], deadline=5),
        lambda: sender.loan(key=key, data=(2, 3), parts=[]).__enter__(),
    ):
        with pytest.raises(error):
            call()
    assert_clean(sender, receiver)


def test_longest_key_and_text_pass(alls):
    sender, receiver = alls
    long = All(**{**GOOD, "text": "x" * 10**6})
    sender.send(long, key="k" * limits.KEY_BYTES_MAX, deadline=5)
    with receiver.receive(5) as got:
        assert len(got.text) == 10**6 and len(got.header.key) == limits.KEY_BYTES_MAX
        got.ack()


@pytest.mark.parametrize(
    "deadline",
    [-1, -0.001, float("nan"), float("inf"), True, "1", [], limits.DEADLINE_S_MAX * 2],
    ids=repr,
)
def test_bad_deadline_is_refused_by_every_call(alls, embed, types, deadline):
    sender, receiver = alls
    requester, responder = embed
    for call in (
        lambda: sender.send(All(**GOOD), deadline=deadline),
        lambda: sender.send_many([All(**GOOD)], deadline=deadline),
        lambda: sender.loan(deadline=deadline, data=(2, 3), parts=[]).__enter__(),
        lambda: sender.flush(deadline),
        lambda: receiver.receive(deadline),
        lambda: receiver.receive_many(2, deadline),
        lambda: requester.call(types.query(1), deadline=deadline),
        lambda: responder.receive(deadline),
    ):
        with pytest.raises(errors.ConfigError, match="deadline"):
            call()
    assert requester.in_flight() == []
    assert_clean(sender, receiver)


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", True, 10**9, None])
def test_bad_count_of_messages_is_refused(alls, count):
    sender, receiver = alls
    with pytest.raises(errors.ConfigError, match="receive_many"):
        receiver.receive_many(count, 0)
    assert_clean(sender, receiver)


def test_unknown_channel_names_the_nearest(ports, alls):
    left, _ = ports
    with pytest.raises(errors.ConfigError, match="'allls' is not declared; did you mean 'alls'"):
        left.sender("allls", All)


def test_other_type_at_open_names_the_field(ports, alls):
    left, _ = ports
    with pytest.raises(
        errors.TypeMismatchError, match=r"bad\.all@2 does not read bad\.all@1: field 'text'"
    ):
        left.sender("alls", Newer)
    with pytest.raises(errors.TypeMismatchError, match="no message type"):
        left.sender("alls", dict)


@pytest.mark.parametrize("name", ["", "x" * 200, 5, None])
def test_bad_port_name_is_refused(node, name):
    with pytest.raises(errors.ConfigError, match="port name"):
        fabric.attach(name, node.path)


def test_released_twice_acknowledged_late_and_refused_after_are_harmless(alls):
    sender, receiver = alls
    sender.send(All(**{**GOOD, "parts": [np.zeros(5000, np.int64)]}), deadline=5)
    got = receiver.receive(5)
    assert got.data.shape == (2, 3)
    got.release()
    got.release()
    with pytest.raises(errors.StaleHandleError):
        got.parts  # not read before: its slot is gone
    assert got.text == "t"
    got.ack()
    got.ack()
    got.nack()
    sender.flush(5)
    assert sender.stats()["delivered"] == 1
    with pytest.raises(errors.ConfigError, match="reasons are"):
        got.nack(99)


def test_received_view_may_be_sent_on_and_a_released_one_is_refused(ports, alls, types):
    sender, receiver = alls
    left, right = ports
    left.declare("next", All, pattern="queue")
    forward, last = right.sender("next", All), left.receiver("next", All)
    sent = {**GOOD, "data": np.arange(6000, dtype=np.float32).reshape(2000, 3)}
    sender.send(All(**sent), deadline=5)
    with receiver.receive(5) as got:
        forward.send(got, deadline=5)
        got.ack()
    sender.send(All(**sent), deadline=5)
    again = receiver.receive(5)
    again.release()
    with pytest.raises(errors.StaleHandleError):
        forward.send(again, deadline=5)
    with last.receive(5) as passed:
        np.testing.assert_array_equal(passed.data, sent["data"])
        np.testing.assert_array_equal(passed.parts[0], sent["parts"][0])
    assert last.receive(0.02) is None


def test_closed_ends_say_so_by_name(alls):
    sender, receiver = alls
    sender.close()
    receiver.close()
    for call in (
        lambda: sender.send(All(**GOOD), deadline=1),
        lambda: sender.send_many([All(**GOOD)], deadline=1),
        lambda: sender.loan(data=(1, 3), parts=[]).__enter__(),
        lambda: receiver.receive(1),
        lambda: receiver.receive_many(1, 1),
    ):
        with pytest.raises(errors.ClosedError, match="'alls'"):
            call()
    sender.close()
    receiver.close()


def test_closed_port_refuses_everything(node):
    port = fabric.attach("short", node.path)
    port.close()
    for call in (
        lambda: port.declare("x", All),
        lambda: port.sender("x", All),
        lambda: port.expose(np.zeros(3, np.float32)),
        lambda: port.ready(),
    ):
        with pytest.raises(errors.ClosedError, match="was closed"):
            call()


def test_concurrent_close_ends_waiting_calls(ports, alls):
    left, right = ports
    sender, receiver = alls
    ends = []

    def wait():
        try:
            receiver.receive(10)
        except errors.ClosedError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    closing = [
        threading.Thread(target=each.close) for each in (receiver, right, right, sender, left)
    ]
    for thread in closing:
        thread.start()
    for thread in threads + closing:
        thread.join(10)
    assert len(ends) == 3 and not any(thread.is_alive() for thread in threads + closing)


def test_forked_child_gets_a_closed_error_from_every_call(ports, alls):
    left, _ = ports
    sender, receiver = alls
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        told = []
        for call in (
            lambda: sender.send(All(**GOOD), deadline=1),
            lambda: receiver.receive(1),
            lambda: left.declare("y", All),
            lambda: left.expose(np.zeros(1, np.float32)),
        ):
            try:
                call()
                told.append("nothing")
            except errors.FabricError as error:
                told.append(type(error).__name__)
        os.write(write, " ".join(told).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert os.read(read, 1000).decode() == " ".join(["ClosedError"] * 4)
    os.close(read)
    assert_clean(sender, receiver)


def test_full_channel_is_named_and_no_flow_number_shown(ports, types):
    left, right = ports
    left.declare("narrow", types.note)
    sender = left.sender("narrow", types.note)
    with pytest.raises(errors.DeadlineExceeded, match="channel 'narrow'"):
        sender.send(types.note("n"), deadline=0.05)
    right.receiver("narrow", types.note, messages=4)
    with pytest.raises(errors.DeadlineExceeded) as full:
        for _ in range(10):
            sender.send(types.note("n"), deadline=0.3)
    text = str(full.value)
    assert "channel 'narrow'" in text and "credit" in text
    assert not any(
        str(flow["flow"]) in text or hex(flow["flow"]) in text for flow in sender.stats()["flows"]
    )
