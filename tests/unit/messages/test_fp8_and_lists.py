"""fp8 keeps its type on every way, lists of tensors are checked item by item, schemas tell them apart."""

from typing import Annotated

import numpy as np
import pytest

from fabric import limits
from fabric.errors import CapacityError, PeerProtocolError, TypeMismatchError
from fabric.messages import (
    Schema,
    Tensor,
    as_fp8,
    as_torch,
    class_from_schema,
    explain_difference,
    message,
    message_type,
)


class Held:
    """Stands for the native message."""

    def __init__(self, meta, buffers):
        self.meta, self.buffers, self.asked = meta, buffers, []

    def tensor(self, index, dtype, shape):
        self.asked.append(index)
        raw = np.asarray(self.buffers[index]).tobytes()
        return np.frombuffer(raw, dtype).reshape(shape)


def round_trip(value):
    type_ = message_type(value)
    return type_.decode(Held(*type_.encode(value)), None)


@message("fp8.one")
class One:
    w: Tensor["n", "f8_e4m3"]


@message("fp8.both")
class Both:
    w: Tensor["n", "f8_e4m3 | f8_e5m2"]


@message("fp8.bytes")
class Bytes:
    w: Tensor["n", "u8 | f8_e5m2"]


@message("list.mixed")
class Mixed:
    a: Tensor["n", "f32"]
    parts: list[Tensor["rows 2", "f32 | bf16"]]
    b: Tensor["n", "i64"] | None
    more: Annotated[list[np.ndarray], Tensor["...", "u8"]]
    c: Tensor["n", "f16"]


RAW = np.arange(256, dtype=np.uint8)


def test_plain_bytes_are_the_one_fp8_type_that_a_field_allows():
    got = round_trip(One(RAW))
    np.testing.assert_array_equal(got.w, RAW)
    assert got.w.dtype == np.uint8 and got.w.dtype.metadata == {"fabric": "f8_e4m3"}
    assert "f8_e4m3[256]" in repr(round_trip(One(RAW)))


def test_bytes_that_may_be_two_types_must_say_which():
    with pytest.raises(TypeMismatchError, match=r"'w'.*as_fp8"):
        round_trip(Both(RAW))
    for name in ("f8_e4m3", "f8_e5m2"):
        for _ in range(2):  # a check that is remembered may not forget the type
            assert round_trip(Both(as_fp8(RAW, name))).w.dtype.metadata == {"fabric": name}
    assert round_trip(Bytes(RAW)).w.dtype.metadata is None  # u8 where that is allowed
    assert round_trip(Bytes(as_fp8(RAW, "f8_e5m2"))).w.dtype.metadata == {"fabric": "f8_e5m2"}


def test_fp8_of_the_other_kind_is_refused_also_after_a_good_one():
    round_trip(One(RAW))
    with pytest.raises(TypeMismatchError, match="'w' is f8_e5m2"):
        round_trip(One(as_fp8(RAW, "f8_e5m2")))
    with pytest.raises(TypeMismatchError, match="uint8"):
        as_fp8(np.zeros(3, np.float32), "f8_e4m3")


def test_received_fp8_is_sent_on_as_what_it_is():
    passed = round_trip(round_trip(Both(as_fp8(RAW, "f8_e5m2"))))
    assert passed.w.dtype.metadata == {"fabric": "f8_e5m2"}


def test_torch_meets_fp8_both_ways():
    torch = pytest.importorskip("torch")
    for name, dtype in (("f8_e4m3", torch.float8_e4m3fn), ("f8_e5m2", torch.float8_e5m2)):
        values = torch.tensor([0.0, 1.5, -2.0, 448.0]).to(dtype)
        got = round_trip(Both(values))
        assert got.w.dtype.metadata == {"fabric": name}
        back = got.as_torch("w")
        assert back.dtype is dtype and torch.equal(back.float(), values.float())
    assert as_torch(np.zeros(2, np.uint8)).dtype is torch.uint8


def mixed(rows, more=()):
    return Mixed(
        np.ones(3, np.float32), [np.full((n, 2), n, np.float32) for n in rows], None,
        [np.full(shape, 9, np.uint8) for shape in more], np.zeros(3, np.float16),
    )  # fmt: skip


@pytest.mark.parametrize(("rows", "more"), [((), ()), ((1,), ((),)), ((3, 0, 5), ((2, 2), (0, 7)))])
def test_items_differ_in_size_and_fields_around_lists_keep_their_places(rows, more):
    got = round_trip(mixed(rows, more))
    assert (
        got.c.shape == (3,) and got.a.sum() == 3 and got.b is None
    )  # before the lists are touched
    assert [p.shape for p in got.parts] == [(n, 2) for n in rows]
    assert all((p == n).all() for p, n in zip(got.parts, rows, strict=True))
    assert [m.shape for m in got.more] == list(more) and got.parts is got.parts
    assert len(got._native.asked) == 2 + len(rows) + len(more)  # every tensor once


def test_type_known_by_schema_alone_reads_lists_and_fp8():
    for value in (mixed((1, 2), ((4,),)), One(RAW)):
        type_ = message_type(value)
        twin = message_type(class_from_schema(Schema.parse(type_.schema.text)))
        view = twin.decode(Held(*type_.encode(value)), None)
        assert twin.schema == type_.schema
        assert twin.encode(view)[0] == type_.encode(value)[0]


def test_number_of_tensors_is_bounded_together():
    most = limits.TENSORS_PER_MESSAGE_MAX - 3
    assert len(round_trip(mixed([0] * most)).parts) == most
    with pytest.raises(CapacityError, match="TENSORS_PER_MESSAGE_MAX"):
        round_trip(mixed([0] * most, ((),)))
    with pytest.raises(CapacityError, match="TENSORS_PER_MESSAGE_MAX"):
        message_type(Mixed).plan_loan({"a": 3, "parts": [(0, 2)] * 60, "more": [()] * 5, "c": 3})


def test_list_that_is_absent_or_holds_absent_items_cannot_be_declared():
    for annotation in (list[Tensor["n"] | None], list[list[Tensor["n"]]], list[Tensor["n"]] | None):
        with pytest.raises(TypeMismatchError):
            message("bad")(type("Bad", (), {"__annotations__": {"x": annotation}}))


def test_difference_of_a_list_is_named():
    def schema(annotation):
        made = message("evolving")(type("Evolving", (), {"__annotations__": {"x": annotation}}))
        return message_type(made).schema

    one, many = schema(Tensor["n 2", "f32"]), schema(list[Tensor["n 2", "f32"]])
    other = schema(list[Tensor["n 3", "f32"]])
    told = explain_difference(one, many)
    assert "field 'x'" in told and 'list[Tensor["n 2", "f32"]]' in told
    assert "field 'x'" in explain_difference(many, other)


@pytest.mark.parametrize(
    "raw", [5, [5], [[1, -1]], [[99, 2, 2]], [[1, 2, 3]], [[1, 2]], "text", None, [[]], [[1, 1 << 40, 2]]]
)  # fmt: skip
def test_hostile_descriptors_of_a_list_are_refused(raw):
    import msgspec

    meta = msgspec.msgpack.encode([[1, 3], raw, None, [], [2, 3]])
    with pytest.raises(PeerProtocolError):
        message_type(Mixed).decode(Held(meta, [RAW] * 5), None).parts


def test_loan_of_a_list_is_planned_item_by_item():
    plan = message_type(Mixed).plan_loan(
        {"a": 3, "parts": [(1, 2), ((4, 2), "bf16")], "more": [()], "c": 3}
    )
    assert plan == [
        (1, (3,), 12),
        (1, (1, 2), 8),
        (3, (4, 2), 16),
        (0, (), 0),
        (5, (), 1),
        (2, (3,), 6),
    ]
    with pytest.raises(TypeMismatchError, match=r"'parts'.*list of shapes"):
        message_type(Mixed).plan_loan({"a": 3, "parts": (1, 2), "more": [], "c": 3})
    with pytest.raises(TypeMismatchError, match="3 where 2 must be"):
        message_type(Mixed).plan_loan({"a": 3, "parts": [(1, 3)], "more": [], "c": 3})
