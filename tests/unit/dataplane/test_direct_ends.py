"""What native ends send is what the type's encoder would: values of every plain kind, and what they leave to it."""

import numpy as np
import pytest

import fabric
from fabric import errors
from fabric.dataplane.deadlines import absolute_ns
from fabric.messages import message, message_type


@message("test.plain")
class Plain:
    integer: int
    number: float
    truth: bool
    text: str
    data: bytes
    grid: fabric.Tensor["rows columns", "f32 | i64 | bf16"]
    line: fabric.Tensor["n", "i32"]


def made(**changed):
    fields = {
        "integer": 1,
        "number": 0.5,
        "truth": True,
        "text": "text",
        "data": b"data",
        "grid": np.arange(6, dtype=np.float32).reshape(2, 3),
        "line": np.arange(4, dtype=np.int32),
    }
    return Plain(**{**fields, **changed})


EDGES = [0, 1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
EDGES += [-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63)]
VALUES = [{"integer": edge} for edge in EDGES]
VALUES += [{"number": each} for each in (0.0, -0.0, 1e-320, 1.7e308, -1.5, 3)]
VALUES += [{"truth": False}]
VALUES += [
    {"text": each} for each in ("", "é" * 15, "x" * 31, "x" * 32, "x" * 255, "x" * 256, "y" * 2000)
]
VALUES += [{"data": each} for each in (b"", b"x" * 255, b"x" * 256, b"y" * 2000)]
VALUES += [
    {"grid": np.arange(6, dtype=np.int64).reshape(3, 2)},
    {"grid": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))},
    {"grid": np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]},
    {"grid": np.zeros((0, 3), np.float32)},
    {"grid": np.ones((100, 100), np.float32), "line": np.arange(9000, dtype=np.int32)},
    {"line": np.arange(4, dtype=">i4")},
    {"integer": np.int64(7)},
]


@pytest.fixture
def ends(ports):
    left, right = ports
    left.declare("plain", Plain)
    return left.sender("plain", Plain), right.receiver("plain", Plain)


@pytest.mark.parametrize("changed", VALUES, ids=lambda changed: repr(changed)[:40])
def test_every_value_arrives_as_it_was(ends, changed):
    sender, receiver = ends
    sent = made(**changed)
    for _ in range(2):  # the second time the shapes are known
        sender.send(sent, key="k", deadline=5)
        got = receiver.receive(5)
        for name in ("integer", "number", "truth", "text", "data"):
            value = getattr(sent, name)
            assert getattr(got, name) == value
            assert type(getattr(got, name)) is type(value) or name in ("integer", "number")
        assert np.array_equal(got.grid, sent.grid) and np.array_equal(got.line, sent.line)
        assert got.grid.dtype == sent.grid.dtype.newbyteorder("=")
        assert got.header.key == b"k"
        with got:
            sender.send(got)
        with receiver.receive(5) as again:
            assert again.text == sent.text and np.array_equal(again.grid, sent.grid)


@pytest.mark.parametrize(
    "changed",
    [
        {"integer": 2**64},
        {"integer": True},
        {"integer": "1"},
        {"number": float("nan")},
        {"number": float("inf")},
        {"truth": 1},
        {"text": b"bytes"},
        {"text": "\ud800"},
        {"data": "text"},
        {"grid": np.zeros((2, 3), np.float64)},
        {"grid": np.zeros(6, np.float32)},
        {"line": None},
    ],
    ids=lambda changed: repr(changed)[:40],
)
def test_every_wrong_value_is_refused_by_field(ends, changed):
    sender, receiver = ends
    sender.send(made())
    assert receiver.receive(5).integer == 1
    (field,) = changed
    with pytest.raises(errors.TypeMismatchError, match=repr(field)):
        sender.send(made(**changed))
    assert receiver.receive(0) is None


def test_a_missing_field_is_refused(ends):
    sent = made()
    del sent.text
    with pytest.raises(errors.TypeMismatchError, match="text"):
        ends[0].send(sent)


def test_another_type_is_refused(ends, types):
    sender, receiver = ends
    for wrong in (types.note("x"), None, b"x", Plain):
        with pytest.raises(errors.TypeMismatchError):
            sender.send(wrong)
    assert receiver.receive(0) is None


def test_shapes_that_must_agree_are_compared(ports):
    @message("test.shared")
    class Shared:
        a: fabric.Tensor["n", "f32"]
        b: fabric.Tensor["n", "f32"]

    left, right = ports
    left.declare("shared", Shared)
    sender, receiver = left.sender("shared", Shared), right.receiver("shared", Shared)
    three, four = np.zeros(3, np.float32), np.zeros(4, np.float32)
    for pair in ((three, three), (four, four)):
        sender.send(Shared(*pair))
        assert len(receiver.receive(5).a) == len(pair[0])
    with pytest.raises(errors.TypeMismatchError, match="dimension 'n'"):
        sender.send(Shared(three, four))


def test_a_received_tensor_is_made_once_and_read_only(ends):
    sender, receiver = ends
    sender.send(made())
    got = receiver.receive(5)
    assert got.grid is got.grid and not got.grid.flags.writeable
    grid = got.grid
    del got
    assert grid.sum() == 15


def test_a_message_that_is_not_of_the_type_ends_as_corrupted(ends):
    sender, receiver = ends
    for meta in (b"", b"\xc1", b"\x91\x01", b"\x97" + b"\xc0" * 7):
        sender.native.send(meta, [], None, absolute_ns(5))
        with pytest.raises(errors.PeerProtocolError, match=message_type(Plain).schema.label):
            receiver.receive(5)
    sender.send_many([made(), made()])
    assert [
        each.integer for each in (*receiver.receive_many(1, 5), *receiver.receive_many(9, 5))
    ] == [1, 1]
