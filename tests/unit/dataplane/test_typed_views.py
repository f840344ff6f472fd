"""Natively decoded messages are what the type's own decoder makes of the bytes, and their arrays keep their memory."""

import gc
import sys
import weakref

import msgspec
import numpy as np
import pytest

import fabric
from fabric import _native, errors
from fabric.dataplane.deadlines import absolute_ns
from fabric.messages import as_fp8, message, message_type

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


@message("test.views")
class Views:
    number: int
    weight: float
    flag: bool
    text: str
    data: bytes
    grid: fabric.Tensor["rows columns", "f32 | bf16"]
    extra: fabric.Tensor["n", "i64"] | None = None


TYPE = message_type(Views)
VALID = [7, 0.5, True, "text", b"data", [1, 2, 3], None]


@pytest.fixture
def ends(ports):
    left, right = ports
    left.declare("views", Views)
    return left.sender("views", Views), right.receiver("views", Views)


def received(ends, meta, tensors=()):
    sender, receiver = ends
    sender.native.send(meta, list(tensors), None, absolute_ns(5))
    try:
        return receiver.receive(5)
    except errors.PeerProtocolError as error:
        return error


def raw_fields(view):
    """Return the fields with their types, tensors as their descriptors."""
    values = [
        vars(Views)[name].__get__(view) for name in TYPE.names
    ]  # past the properties that make arrays
    return [(type(value), value) for value in values]


def altered():
    """Yield a valid meta, then with every byte as each tag, cut off at every length, and with more behind it."""
    valid = msgspec.msgpack.encode(VALID)
    yield valid
    tags = [0x00, 0x7F, 0x80, 0x90, 0x91, 0x97, 0x9F, 0xA0, 0xA4, 0xBF, *range(0xC0, 0xE1), 0xFF]
    for at in range(len(valid)):
        yield valid[:at]
        yield from (valid[:at] + bytes([tag]) + valid[at + 1 :] for tag in tags)
    yield valid + b"\xc0"


def test_every_meta_is_read_as_the_decoder_of_the_type_reads_it(ends):
    good = bad = 0
    for meta in altered():
        got = received(ends, meta)
        try:
            expected = TYPE.unpack(meta)
        except (msgspec.MsgspecError, UnicodeError):
            assert isinstance(got, errors.PeerProtocolError), meta.hex()
            bad += 1
            continue
        assert repr(raw_fields(got)) == repr(raw_fields(expected)), meta.hex()
        good += 1
    assert good > 100 and bad > 100


EDGES = [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63, 2**64 - 1]
EDGES += [-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63)]


@pytest.mark.parametrize(
    "changed",
    [{0: edge} for edge in EDGES]
    + [{1: 3}, {1: -0.0}, {1: 5e-324}, {3: ""}, {3: "é" * 40}, {3: "\U0001f600"}, {3: "x" * 300}]
    + [{4: b""}, {4: b"x" * 300}, {5: None}, {5: []}, {5: [1] * 17}, {5: [1] * 18}, {6: [7, 4]}]
    + [{3: "x" * 1200}, {5: [1, 1 << 40, 3]}, {5: [1, -1, 3]}],
    ids=repr,
)
def test_every_value_is_read_as_the_decoder_of_the_type_reads_it(ends, changed):
    values = [changed.get(at, value) for at, value in enumerate(VALID)]
    for _ in range(2):  # the second time its descriptors are known
        meta = msgspec.msgpack.encode(values)
        assert repr(raw_fields(received(ends, meta))) == repr(raw_fields(TYPE.unpack(meta)))


def test_plain_messages_are_decoded_natively(ends):
    """Only the native decoder gives equal descriptors as one object, by which their layout is known."""
    first, second = (received(ends, msgspec.msgpack.encode(VALID), [ROWS]) for _ in range(2))
    assert raw_fields(first)[5][1] is raw_fields(second)[5][1]
    assert TYPE.native_decode is not None and TYPE.native_decode.kinds == "ifbsytT"


def test_tensor_of_a_known_shape_with_other_bytes_is_an_error_and_no_data(ends):
    meta = msgspec.msgpack.encode(VALID)
    for _ in range(2):
        np.testing.assert_array_equal(received(ends, meta, [ROWS]).grid, ROWS)
    for wrong in (ROWS[:1], np.zeros((2, 4), np.float32), b""):
        with pytest.raises(errors.PeerProtocolError, match="dtype and shape need 24"):
            _ = received(ends, meta, [wrong]).grid
    with pytest.raises(ValueError, match="message has 0 tensors"):
        _ = received(ends, meta).grid
    np.testing.assert_array_equal(received(ends, meta, [ROWS]).grid, ROWS)


def test_descriptor_that_breaks_the_type_is_an_error_each_time(ends):
    for descriptor in ([7, 2, 3], [1, 6], [1, -2, 3], [1, 2, 3, 1], [99, 2, 3]):
        meta = msgspec.msgpack.encode([*VALID[:5], descriptor, None])
        for _ in range(3):
            with pytest.raises(errors.PeerProtocolError, match="'grid'"):
                _ = received(ends, meta, [ROWS]).grid


def test_shapes_that_alternate_arrive_as_they_were(ends):
    sender, receiver = ends
    shapes = [(1, 6), (6, 1), (2, 3), (3, 2), (0, 4), (5, 5), (7, 1)]
    for number in range(40):
        sent = np.full(shapes[number * 3 % 7], number, np.float32)
        extra = np.arange(number % 3) if number % 2 else None
        sender.send(Views(number, 0.0, False, "", b"", sent, extra))
        got = receiver.receive(5)
        np.testing.assert_array_equal(got.grid, sent)
        assert got.grid.dtype == sent.dtype and got.grid.shape == sent.shape
        assert got.extra is None if extra is None else np.array_equal(got.extra, extra)


def test_tensor_is_made_once_read_only_and_not_assigned(ends):
    sender, receiver = ends
    for _ in range(2):
        sender.send(Views(1, 0.0, True, "", b"", ROWS))
        got = receiver.receive(5)
        assert got.grid is got.grid and not got.grid.flags.writeable and got.grid.flags.c_contiguous
        with pytest.raises(AttributeError):
            got.grid = ROWS
        with pytest.raises(ValueError, match="read-only"):
            got.grid[0] = 1
    assert isinstance(vars(TYPE.view)["grid"], _native.TensorField)
    assert "rows columns" in vars(TYPE.view)["grid"].__doc__


def test_array_outlives_its_view_its_end_and_its_port(ends, ports):
    sender, receiver = ends
    arrays = []
    for number in range(8):
        sender.send(Views(number, 0.0, True, "", b"", ROWS + number))
        arrays.append(receiver.receive(5).grid)
    ports[1].close()
    del receiver, sender
    gc.collect()
    for number, array in enumerate(arrays):
        np.testing.assert_array_equal(array, ROWS + number)


def test_released_slot_is_not_read_although_the_shape_is_known(ends):
    sender, receiver = ends
    large = np.ones((100, 100), np.float32)
    for _ in range(3):
        sender.send(Views(1, 0.0, True, "", b"", large))
        got = receiver.receive(5)
        assert got.grid.sum() == 10_000
        del got
    sender.send(Views(1, 0.0, True, "", b"", large))
    got = receiver.receive(5)
    got.release()
    with pytest.raises(errors.StaleHandleError):
        _ = got.grid
    sender.send(Views(1, 0.0, True, "", b"", large))
    got = receiver.receive(5)
    receiver._port.close()
    with pytest.raises(errors.ClosedError):
        _ = got.grid


def test_fp8_says_its_type_on_every_message(ports):
    @message("test.views.fp8")
    class Fp8:
        w: fabric.Tensor["n", "f8_e4m3 | f8_e5m2"]

    left, right = ports
    left.declare("fp8", Fp8)
    sender, receiver = left.sender("fp8", Fp8), right.receiver("fp8", Fp8)
    raw = np.arange(16, dtype=np.uint8)
    for name in ("f8_e4m3", "f8_e5m2") * 3:
        sender.send(Fp8(as_fp8(raw, name)))
        got = receiver.receive(5).w
        assert got.dtype.metadata == {"fabric": name} and np.array_equal(got, raw)


def test_neither_end_keeps_or_loses_references(ends):
    sender, receiver = ends
    dtype, text = ROWS.dtype, "a text of its own"

    def rounds(count):
        for _ in range(count):
            sender.send(Views(1 << 40, 0.5, True, text, b"bytes", ROWS, np.arange(3)))
            got = receiver.receive(5)
            assert got.grid.shape == (2, 3) and got.extra.shape == (3,)
        del got
        gc.collect()
        watched = (ROWS, dtype, text, None, TYPE.view, receiver, receiver.native)
        return [sys.getrefcount(each) for each in watched]

    rounds(10)
    before, after = rounds(100), rounds(1000)
    assert before == pytest.approx(after, abs=20)


def test_type_that_nobody_uses_any_more_is_collected(node):
    def use():
        @message("test.views.gone")
        class Gone:
            x: fabric.Tensor["n", "f32"]

        with fabric.attach("a", node.path) as a, fabric.attach("b", node.path) as b:
            a.declare("gone", Gone)
            receiver = b.receiver("gone", Gone)
            a.sender("gone", Gone).send(Gone(np.ones(3, np.float32)))
            assert receiver.receive(5).x.sum() == 3
        return weakref.ref(message_type(Gone))

    gone = use()
    gc.collect()
    assert gone() is None
