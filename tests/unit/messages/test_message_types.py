"""Declared types encode what they say, refuse the rest naming the field, and come back as lazy views."""

import subprocess
import sys
from typing import Annotated, Optional

import msgspec
import numpy as np
import pytest

from fabric import limits
from fabric.errors import CapacityError, PeerProtocolError, TypeMismatchError
from fabric.messages import (
    Schema,
    Tensor,
    as_torch,
    class_from_schema,
    explain_difference,
    message,
    message_type,
)


class Held:
    """Stands for the native message: meta and buffers as the sender gave them."""

    def __init__(self, meta, buffers):
        self.meta, self.buffers = meta, buffers
        self.ends = []

    def tensor(self, index, dtype, shape):
        return np.frombuffer(bytes(np.asarray(self.buffers[index]).tobytes()), dtype).reshape(shape)

    def ack(self):
        self.ends.append("ack")

    def release(self):
        self.ends.append("release")


def round_trip(value):
    type_ = message_type(value)
    return type_.decode(Held(*type_.encode(value)), None)


@message("kv.layer", version=1)
class KVLayer:
    request: str
    layer: int
    k: Tensor["tokens heads dim", "bf16 | f32"]
    v: Tensor["tokens heads dim", "bf16 | f32"]

    def tokens(self):
        return self.k.shape[0]


@message("every.scalar")
class Scalars:
    s: str
    i: int
    f: float
    b: bool
    y: bytes
    o: float | None = None
    many: list[int] = [1]
    names: dict[str, list[float]] = {}


@message("any.rank")
class AnyRank:
    x: Tensor["batch ... 4"]


@message("maybe")
class Maybe:
    a: Tensor["n", "f32"]
    b: Tensor["n", "i64"] | None = None


def layer(tokens=3, dtype=np.float32, **changes):
    fields = {
        "request": "r",
        "layer": 1,
        "k": np.ones((tokens, 2, 4), dtype),
        "v": np.zeros((tokens, 2, 4), dtype),
    }
    return KVLayer(**{**fields, **changes})


def test_message_comes_back_equal_with_methods_and_class():
    sent = layer(k=np.arange(24, dtype=np.float32).reshape(3, 2, 4))
    view = round_trip(sent)
    assert isinstance(view, KVLayer) and view.tokens() == 3
    assert (view.request, view.layer) == ("r", 1)
    np.testing.assert_array_equal(view.k, sent.k)
    assert view.k is view.k, "made once"
    assert "k=f32[3, 2, 4]" in repr(view)


def test_scalars_keep_their_values_and_defaults_are_not_shared():
    view = round_trip(Scalars("é", -5, 2.5, True, b"\0\xff", None, [1, 2], {"a": [0.5]}))
    assert (view.s, view.i, view.f, view.b, view.y, view.o) == ("é", -5, 2.5, True, b"\0\xff", None)
    assert view.many == [1, 2] and view.names == {"a": [0.5]}
    one, two = Scalars("", 0, 0, False, b""), Scalars("", 0, 0, False, b"")
    one.many.append(9)
    assert two.many == [1]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"request": 5}, "request"),
        ({"layer": "one"}, "layer"),
        ({"layer": True}, "layer"),
        ({"layer": 1 << 80}, "layer"),
        ({"k": np.ones((3, 2, 4))}, "k"),
        ({"k": np.ones((3, 2, 4), np.int8)}, "k"),
        ({"k": np.ones((3, 8), np.float32)}, "k"),
        ({"v": np.ones((4, 2, 4), np.float32)}, "v"),
        ({"v": [[[1.0]]]}, "v"),
        ({"v": None}, "v"),
        ({"request": "x" * (limits.STRING_BYTES_MAX + 1)}, "request"),
        ({"request": "\ud800"}, "request"),
    ],
)
def test_wrong_value_is_refused_at_send_naming_the_field(changes, field):
    with pytest.raises(TypeMismatchError, match=f"'{field}'"):
        message_type(KVLayer).encode(layer(**changes))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_scalars_are_refused_also_inside_containers(value):
    with pytest.raises(TypeMismatchError, match="'f'"):
        message_type(Scalars).encode(Scalars("", 0, value, False, b""))
    with pytest.raises(TypeMismatchError, match="'names'"):
        message_type(Scalars).encode(Scalars("", 0, 0.0, False, b"", names={"a": [value]}))


def test_nan_in_a_tensor_travels():
    assert np.isnan(round_trip(Maybe(np.array([np.nan], np.float32))).a[0])


def test_numpy_scalars_pass_as_numbers():
    assert round_trip(Scalars("", np.int64(7), np.float32(0.5), False, b"")).i == 7


def test_string_just_inside_the_limit_passes():
    text = "x" * limits.STRING_BYTES_MAX
    assert round_trip(Scalars(text, 0, 0, False, b"")).s == text


def test_fields_above_the_meta_limit_are_refused():
    blob = b"x" * limits.STRING_BYTES_MAX

    @message("blobs")
    class Blobs:
        parts: list[bytes]

    with pytest.raises(CapacityError, match="META_BYTES_MAX"):
        message_type(Blobs).encode(Blobs([blob] * 5))


@pytest.mark.parametrize(
    "make", [lambda a: a[:, ::2], lambda a: a.T, lambda a: a[::-1], np.asfortranarray]
)
def test_non_contiguous_input_arrives_as_its_values(make):
    @message("matrix")
    class Matrix:
        x: Tensor["a b", "i32"]

    sent = make(np.arange(24, dtype=np.int32).reshape(4, 6))
    np.testing.assert_array_equal(round_trip(Matrix(sent)).x, sent)


def test_big_endian_input_arrives_as_its_values():
    assert round_trip(Maybe(np.array([1.5, 2.5], ">f4"))).a.tolist() == [1.5, 2.5]


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4), (2, 0, 4), (1, 1, 1, 1, 4)])
def test_any_rank_keeps_its_fixed_ends(shape):
    assert round_trip(AnyRank(np.zeros(shape, np.uint8))).x.shape == shape


@pytest.mark.parametrize("shape", [(4,), (2, 5), (2, 3, 4, 3)])
def test_any_rank_refuses_wrong_ends(shape):
    with pytest.raises(TypeMismatchError, match="'x'"):
        message_type(AnyRank).encode(AnyRank(np.zeros(shape, np.uint8)))


def test_scalar_tensor_of_rank_zero_keeps_its_rank():
    @message("point")
    class Point:
        x: Tensor["", "f32"]

    assert round_trip(Point(np.array(2.5, np.float32))).x.shape == ()


def test_absent_optional_tensor_stays_absent():
    view = round_trip(Maybe(np.ones(2, np.float32)))
    assert view.b is None and view.a.tolist() == [1, 1]
    assert round_trip(Maybe(np.ones(2, np.float32), np.arange(2))).b.tolist() == [0, 1]


def test_received_message_can_be_sent_on():
    first = round_trip(layer())
    assert message_type(KVLayer).encode(first)[0] == message_type(KVLayer).encode(layer())[0]


def test_ends_reach_the_native_message():
    view = round_trip(layer())
    view.ack()
    view.release()
    assert view._native.ends == ["ack", "release"]


# ---- schema


def test_equal_declarations_have_equal_fingerprints_and_others_name_the_field():
    def declare(annotation, name="t", version=1, extra=None):
        fields = {"a": int, "b": annotation, **(extra or {})}
        return message_type(
            message(name, version)(
                type("T", (), {"__annotations__": fields, "__module__": __name__})
            )
        ).schema

    base = declare(Tensor["n", "f32"])
    assert base.fingerprint == declare(Tensor["n", "f32"]).fingerprint
    assert explain_difference(base, declare(Tensor["n", "f32"])) is None
    assert explain_difference(base, declare(Tensor["m", "f32"])) is None  # a name alone
    assert explain_difference(base, declare(Tensor["n", "f32"], version=2)) is None
    for other in (
        declare(Tensor["n 2", "f32"]),
        declare(Tensor["n", "f16"]),
        declare(Tensor["n", "f32"] | None),
        declare(int),
    ):
        assert "'b'" in explain_difference(base, other)
    assert "'c'" in explain_difference(base, declare(Tensor["n", "f32"], extra={"c": str}))
    assert "'c'" in explain_difference(declare(Tensor["n", "f32"], extra={"c": str}), base)
    assert "other" in explain_difference(base, declare(Tensor["n", "f32"], name="other"))


def test_fingerprint_of_a_known_declaration_never_changes():
    """The text and its hash are on the wire and in the registry."""
    schema = message_type(KVLayer).schema
    assert schema.text == (
        '{"fields":[{"name":"request","type":"str"},{"name":"layer","type":"int"},'
        '{"dims":["tokens","heads","dim"],"dtypes":["bf16","f32"],"name":"k","type":"tensor"},'
        '{"dims":["tokens","heads","dim"],"dtypes":["bf16","f32"],"name":"v","type":"tensor"}],"name":"kv.layer","version":1}'
    )
    assert schema.type_id == int(schema.fingerprint, 16) & 0xFFFFFFFF


def test_class_made_from_a_schema_reads_and_writes_the_same_messages():
    text = message_type(KVLayer).schema.text
    twin = class_from_schema(Schema.parse(text))
    assert message_type(twin).schema.fingerprint == message_type(KVLayer).schema.fingerprint
    meta, buffers = message_type(KVLayer).encode(layer())
    view = message_type(twin).decode(Held(meta, buffers), None)
    assert view.request == "r" and view.k.shape == (3, 2, 4)
    scalars = class_from_schema(Schema.parse(message_type(Scalars).schema.text))
    meta, _ = message_type(Scalars).encode(Scalars("", 0, 1.0, False, b"", names={"a": [1.0]}))
    assert message_type(scalars).decode(Held(meta, []), None).names == {"a": [1.0]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"name":"a","version":1,"fields":[]}',
        '{"name":"a b","version":1,"fields":[{"name":"x","type":"int"}]}',
        '{"name":"a","version":1,"fields":[{"name":"x","type":"int"},{"name":"x","type":"int"}]}',
        '{"name":"a","version":1,"fields":[{"name":"x","type":"tensor"}]}',
        '{"name":"a","version":1,"fields":[{"name":"x","type":"tensor","dims":["n"],"dtypes":["f99"]}]}',
        '{"name":"a","version":-1,"fields":[{"name":"x","type":"int"}]}',
        "[" * 5000,
        "x" * (limits.SCHEMA_BYTES_MAX + 1),
    ],
)
def test_text_that_is_no_schema_is_refused(text):
    with pytest.raises(TypeMismatchError):
        Schema.parse(text)


@pytest.mark.parametrize(
    "type_",
    [
        "float[",
        "list[int",
        "list[]",
        "dict[float,int]",
        "int | str",
        "object",
        "list[int]]",
        "",
        "dict[str]",
    ],
)
def test_scalar_type_text_that_is_none_is_refused(type_):
    text = msgspec.json.encode(
        {"name": "a", "version": 1, "fields": [{"name": "x", "type": type_}]}
    )
    with pytest.raises(TypeMismatchError):
        Schema.parse(text)


@pytest.mark.parametrize(
    "annotation", [complex, object, list, dict[float, int], int | str, tuple[int, int], set[int]]
)
def test_annotation_that_does_not_travel_is_refused_naming_the_field(annotation):
    with pytest.raises(TypeMismatchError, match="'x'"):
        message("t")(type("T", (), {"__annotations__": {"x": annotation}, "__module__": __name__}))


@pytest.mark.parametrize("field", ["ack", "header", "_hidden"])
def test_reserved_field_names_are_refused(field):
    with pytest.raises(TypeMismatchError, match=field):
        message("t")(type("T", (), {"__annotations__": {field: int}, "__module__": __name__}))


@pytest.mark.parametrize(
    ("dims", "dtypes"),
    [("a b", "f64"), ("a-b", "f32"), ("... a ...", "f32"), ("a", ""), ("a " * 17, "f32")],
)
def test_tensor_declaration_that_makes_no_sense_is_refused(dims, dtypes):
    with pytest.raises(TypeMismatchError):
        Tensor[dims, dtypes]


def test_other_spellings_of_a_tensor_field_mean_the_same():
    @message("maybe")
    class Spelled:
        a: Annotated[np.ndarray, Tensor["n", "f32"]]
        b: Optional[Tensor["n", "i64"]] = None  # noqa: UP045

    assert message_type(Spelled).schema == message_type(Maybe).schema


def test_future_annotations_resolve_also_inside_functions(tmp_path):
    source = tmp_path / "textual.py"
    source.write_text(
        "from __future__ import annotations\nimport fabric\nfrom fabric.messages import message_type\n"
        "def make():\n    Number = int\n"
        "    @fabric.message('t')\n    class T:\n        n: Number\n"
        "        x: fabric.Tensor['a b', 'f32'] | None = None\n"
        "    return T\nprint(message_type(make()).schema.fields[1], message_type(make()).schema.fields[0].type)\n"
    )
    out = subprocess.run(
        [sys.executable, str(source)], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    assert out.strip() == 'Tensor["a b", "f32"] | None with a default int'


# ---- hostile bytes


@pytest.mark.parametrize(
    "meta",
    [
        b"",
        b"\xc1",
        b"\x90",
        msgspec.msgpack.encode(["r"]),
        msgspec.msgpack.encode([1, 1, [1, 3, 2, 4], [1, 3, 2, 4]]),
        b"\x94" * 3000,
        msgspec.msgpack.encode({"request": "r"}),
    ],
)
def test_meta_that_is_not_the_type_is_a_protocol_error(meta):
    with pytest.raises(PeerProtocolError):
        message_type(KVLayer).decode(Held(meta, []), None)


@pytest.mark.parametrize(
    "descriptor",
    [
        [],
        [0, 1, 1, 1],
        [99, 1, 1, 1],
        [4, 1, 1, 1],
        [1, 1, 1],
        [1, -1, 1, 1],
        [1, 1 << 40, 1, 1],
        ["f32", 1, 1, 1],
        None,
        "k",
        [1, 1.0, 1, 1],
        [True, 1, 1, 1],
        [1] + [1] * 40,
        {"a": 1},
    ],
)
def test_tensor_descriptor_that_breaks_the_type_is_a_protocol_error(descriptor):
    meta = msgspec.msgpack.encode(["r", 1, descriptor, [1, 1, 1, 1]])
    held = Held(meta, [np.zeros(1, np.float32)] * 2)
    with pytest.raises(PeerProtocolError, match="'k'"):
        _ = message_type(KVLayer).decode(held, None).k


def test_extra_items_in_meta_cannot_reach_the_view_internals():
    meta = msgspec.msgpack.encode(["r", 1, [1, 1, 1, 1], [1, 1, 1, 1], "evil", "evil"])
    held = Held(meta, [np.zeros(1, np.float32)] * 2)
    view = message_type(KVLayer).decode(held, None)
    assert view._native is held and view._source is None


# ---- loans


def test_loan_plan_takes_shapes_dtypes_and_examples():
    plan = message_type(KVLayer).plan_loan(
        {"k": ((3, 2, 4), "f32"), "v": np.zeros((3, 2, 4), np.float32)}
    )
    assert plan == [(1, (3, 2, 4), 96), (1, (3, 2, 4), 96)]
    assert message_type(Maybe).plan_loan({"a": 5}) == [(1, (5,), 20), (0, (), 0)]
    for bad in (
        {"k": (3, 2, 4)},
        {"k": (3, 2, 4), "v": (4, 2, 4)},
        {"k": (3,), "v": (3, 2, 4)},
        {"x": (1,)},
        {"k": ((3, 2, 4), "i8"), "v": (3, 2, 4)},
        {"k": "no", "v": (3, 2, 4)},
    ):
        with pytest.raises(TypeMismatchError):
            message_type(KVLayer).plan_loan(bad)


# ---- torch (imported by the test, never by fabric)


def test_torch_tensors_travel_and_bf16_keeps_its_bits():
    torch = pytest.importorskip("torch")
    k = torch.randn(3, 2, 4, dtype=torch.bfloat16)
    view = round_trip(layer(k=k, v=k.transpose(0, 1).contiguous().transpose(0, 1)))
    assert view.k.dtype == np.uint16
    assert torch.equal(view.as_torch("k"), k) and torch.equal(view.as_torch("v"), k)
    with pytest.raises(TypeMismatchError, match="'k'"):
        message_type(KVLayer).encode(layer(k=torch.zeros(3, 2, 4, dtype=torch.complex64)))
    assert torch.equal(as_torch(np.zeros((0, 3), np.float32)), torch.zeros(0, 3))


def test_message_types_import_neither_torch_nor_numpy():
    code = (
        "import sys, fabric\nassert 'fabric.messages' not in sys.modules\n"
        "@fabric.message('t')\nclass T:\n    x: fabric.Tensor['a', 'f32']\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], timeout=30, check=True)
