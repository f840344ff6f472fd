"""Any message of any type comes back equal; any bytes decode to the type or to a protocol error."""

import keyword

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.errors import PeerProtocolError, TypeMismatchError
from fabric.messages import Schema, Tensor, class_from_schema, message, message_type

FINITE = st.floats(allow_nan=False, allow_infinity=False)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
SCALARS = {
    str: TEXT,
    int: INTEGERS,
    float: FINITE,
    bool: st.booleans(),
    bytes: st.binary(max_size=30),
}
DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "uint16",
    "i8": "int8",
    "u8": "uint8",
    "i32": "int32",
    "i64": "int64",
    "bool": "bool",
}
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda n: (
        not keyword.iskeyword(n)
        and n not in ("ack", "nack", "release", "header", "as_torch", "copy_into", "fds")
    )
)


class Held:
    def __init__(self, meta, buffers=()):
        self.meta, self.buffers = meta, buffers

    def tensor(self, index, dtype, shape):
        return np.frombuffer(np.asarray(self.buffers[index]).tobytes(), dtype).reshape(shape)


@st.composite
def annotations(draw, depth=2):
    kind = draw(
        st.sampled_from(["plain", "plain", "list", "dict", "optional"] if depth else ["plain"])
    )
    if kind == "plain":
        scalar = draw(st.sampled_from(list(SCALARS)))
        return scalar, SCALARS[scalar]
    inner, values = draw(annotations(depth - 1))
    if kind == "list":
        return list[inner], st.lists(values, max_size=4)
    if kind == "dict":
        key = draw(st.sampled_from([str, int]))
        return dict[key, inner], st.dictionaries(SCALARS[key], values, max_size=4)
    return inner | None if inner is not type(None) else inner, st.none() | values


@st.composite
def messages(draw):
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    fields, values = {}, {}
    for name in names:
        if draw(st.booleans()):
            annotation, strategy = draw(annotations())
            fields[name], values[name] = annotation, draw(strategy)
        else:
            dtype = draw(st.sampled_from(list(DTYPES)))
            shape = draw(st.lists(st.integers(0, 4), max_size=4))
            fields[name] = Tensor["...", dtype]
            size = int(np.prod(shape, dtype=int)) * np.dtype(DTYPES[dtype]).itemsize
            raw = draw(st.binary(min_size=size, max_size=size))
            array = (
                np.frombuffer(raw, DTYPES[dtype])
                if dtype != "bool"
                else np.frombuffer(raw, "uint8") > 127
            )
            values[name] = array.reshape(shape)
    cls = message("generated", 1)(
        type("Generated", (), {"__annotations__": fields, "__module__": __name__})
    )
    return cls, cls(**values), values


def assert_equal(found, sent):
    if isinstance(sent, np.ndarray):
        assert found.shape == sent.shape and found.dtype == sent.dtype
        assert found.tobytes() == sent.tobytes()
    else:
        assert found == sent


@settings(max_examples=150, deadline=None)
@given(messages())
def test_any_message_comes_back_equal_also_to_who_knows_only_the_schema(made):
    cls, value, sent = made
    type_ = message_type(cls)
    meta, buffers = type_.encode(value)
    twin = message_type(class_from_schema(Schema.parse(type_.schema.text)))
    assert twin.schema.fingerprint == type_.schema.fingerprint
    for reader in (type_, twin):
        view = reader.decode(Held(meta, buffers), None)
        for name, item in sent.items():
            assert_equal(getattr(view, name), item)
        assert reader.encode(view)[0] == meta


@message("fixed")
class Fixed:
    a: str
    b: list[int]
    c: dict[str, float] | None
    t: Tensor["n 2", "f32"]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_decode_to_the_type_or_to_a_protocol_error(raw):
    try:
        view = message_type(Fixed).decode(Held(raw), None)
    except PeerProtocolError:
        return
    assert isinstance(view.a, str) and all(isinstance(n, int) for n in view.b)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_change_of_one_byte_never_escapes_as_another_error(data):
    value = Fixed("text", [1, 2, 3], {"k": 1.5}, np.ones((3, 2), np.float32))
    meta, buffers = message_type(Fixed).encode(value)
    position = data.draw(st.integers(0, len(meta) - 1))
    changed = bytearray(meta)
    changed[position] = data.draw(st.integers(0, 255))
    try:
        view = message_type(Fixed).decode(Held(bytes(changed), buffers), None)
        shape = view.t.shape
    except PeerProtocolError:
        return
    except ValueError:  # the fake's reshape: here the native port compares sizes
        return
    assert len(shape) == 2 and shape[1] == 2


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_schema_or_refused(text):
    try:
        Schema.parse(text)
    except TypeMismatchError:
        return
    pytest.fail(f"{text!r} is no schema")
