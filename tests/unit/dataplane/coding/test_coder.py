"""What a coder makes of messages, and that a restorer gives back what went in, for every codec that behaves or not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric.dataplane.coding.encode import Surroundings
from fabric.dataplane.coding.restore import Restorer
from fabric.errors import PeerProtocolError, TransformError
from fabric.messages import message_type
from fabric.messages.envelope import CodedTensor, is_envelope, pack, unpack

MB = 1 << 20


class Received:
    """A received message, as far as a restorer asks."""

    type_id = 0

    def __init__(self, meta: bytes, buffers: list[Any]) -> None:
        self.meta = meta
        self._buffers = [
            np.asarray(np.frombuffer(b, np.uint8) if isinstance(b, bytes) else b)
            .reshape(-1)
            .view(np.uint8)
            for b in buffers
        ]

    def tensor(self, index: int, dtype: str, shape: tuple[int, ...]) -> Any:
        return self._buffers[index].view(dtype).reshape(shape)


class End:
    need_segment = LookupError

    def __init__(self, cls: Any) -> None:
        self.type = message_type(cls)


def even(*shape: int) -> Any:
    return np.arange(math.prod(shape), dtype=np.uint16).reshape(shape) & 0xFF


def restored(cls: Any, codec: Any, coded: tuple[bytes, list[Any]]) -> Any:
    return Restorer("kv", lambda name: codec).restore(Received(*coded), End(cls))


def test_what_was_encoded_is_restored_as_the_declared_message(bench):
    kv = bench.KV(7, even(8, 4), np.arange(3), [np.ones(2, np.float32)])
    coder = bench.coder()
    meta, buffers = message_type(bench.KV).encode(kv)
    coded = coder.code(meta, buffers, math.inf)
    assert is_envelope(coded[0]) and not is_envelope(meta)
    got = restored(bench.KV, coder._codec, coded)
    assert got.number == 7 and isinstance(got, bench.KV)
    assert got.k.dtype == np.uint16 and np.array_equal(got.k, kv.k)
    assert np.array_equal(got.extra, kv.extra) and np.array_equal(got.parts[0], kv.parts[0])
    assert not got.k.flags.writeable


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(0, 5), columns=st.integers(0, 5), high=st.booleans(), extra=st.booleans(),
    parts=st.lists(st.integers(0, 4), max_size=3),
)  # fmt: skip
def test_every_message_comes_back_bit_for_bit(bench, rows, columns, high, extra, parts):
    k = np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns) | (0x100 if high else 0)
    kv = bench.KV(1, k, np.arange(3) if extra else None, [np.full(n, n, np.float32) for n in parts])
    meta, buffers = message_type(bench.KV).encode(kv)
    coded = bench.coder().code(meta, buffers, math.inf)
    if coded is None:
        return
    got = restored(bench.KV, bench.First(), coded)
    assert np.array_equal(got.k, k) and got.k.shape == k.shape
    assert (got.extra is None) == (not extra)
    assert [list(p) for p in got.parts] == [[n] * n for n in parts]


def test_a_codec_that_does_not_want_a_tensor_lets_it_travel_raw(bench):
    coder = bench.coder()
    noise = np.full((4, 4), 0xFFFF, np.uint16)
    assert coder.code(*message_type(bench.KV).encode(bench.KV(1, noise)), math.inf) is None


def test_a_codec_that_fails_is_passed_by_or_refuses_the_send(bench):
    encoded = message_type(bench.KV).encode(bench.KV(1, even(8, 4)))
    passed = bench.coder(bench.First(fails=True))
    assert passed.code(*encoded, math.inf) is None and passed.counts["errors"] == 1
    refusing = bench.coder(bench.First(fails=True), bench.export_of(on_error="fail"))
    with pytest.raises(TransformError, match=r"'first' on 'kv', field 'k'.*it fails.*nothing was"):
        refusing.code(*encoded, math.inf)


def test_a_codec_that_grows_past_its_bound_has_failed(bench):
    coder = bench.coder(
        bench.First(grows=True), bench.export_of(on_error="fail", max_expansion=1.2)
    )
    encoded = message_type(bench.KV).encode(bench.KV(1, even(512, 4)))
    with pytest.raises(TransformError, match=r"max_expansion=1.2 allows"):
        coder.code(*encoded, math.inf)


def test_only_declared_dtypes_are_encoded(bench):
    codec = bench.First()
    coder = bench.coder(codec, bench.export_of(dtypes=["i64"]))
    coder.code(*message_type(bench.KV).encode(bench.KV(1, even(8, 4), np.arange(3))), math.inf)
    assert codec.seen == [("extra", "i64", (3,))]


def test_within_a_node_nothing_is_encoded_unless_said(bench):
    bench.around = Surroundings(False, 0, 0.0)
    encoded = message_type(bench.KV).encode(bench.KV(1, even(8, 4)))
    assert bench.coder().code(*encoded, math.inf) is None
    assert bench.coder(where="always").code(*encoded, math.inf) is not None
    assert bench.coder(when="never").code(*encoded, math.inf) is None


def test_paying_is_measured_by_probes_first_and_explained(bench):
    bench.around = Surroundings(True, 4, 1e6)
    coder = bench.coder(when="pays")
    encoded = message_type(bench.KV).encode(bench.KV(1, even(1024, 64)))
    assert coder.code(*encoded, math.inf) is None, "nothing is known of the codec"
    assert coder.counts["probes"] == 1
    assert coder.code(*encoded, math.inf) is not None, "1 MB/s is slower than 128 KiB in 1 ms"
    bench.around = Surroundings(True, 4, 1e12)
    assert coder.code(*encoded, math.inf) is None
    told = coder.explain()
    assert [d["chosen"] for d in told["decisions"]] == ["raw", "first", "raw"]
    assert [d["reason"] for d in told["decisions"]] == [
        "the codec is not measured yet", "it pays", "the path is faster than the codec",
    ]  # fmt: skip
    assert told["counts"]["wire_bytes"] < told["counts"]["raw_bytes"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda e: e.replace(b"first", b"other"), "other"),
        (lambda e: e[:-3], "does not decode"),
        (lambda e: pack(1, unpack(e, "x").meta, unpack(e, "x").tensors), "of another type"),
        (lambda e: pack(unpack(e, "x").type_id, unpack(e, "x").meta, ()), "encoded tensors for"),
    ],
)
def test_an_envelope_that_cannot_be_is_refused(bench, spoil, said):
    coder = bench.coder()
    meta, parts = coder.code(*message_type(bench.KV).encode(bench.KV(1, even(8, 4))), math.inf)

    def find(name: str) -> Any:
        if name != "first":
            raise PeerProtocolError(f"no codec {name}")
        return coder._codec

    with pytest.raises(PeerProtocolError, match=said):
        Restorer("kv", find).restore(Received(spoil(meta), parts), End(bench.KV))


def test_parts_that_decode_to_other_sizes_are_refused_naming_the_field(bench):
    coder = bench.coder()
    meta, parts = coder.code(*message_type(bench.KV).encode(bench.KV(1, even(8, 4))), math.inf)
    envelope = unpack(meta, "x")
    first = envelope.tensors[0]
    wrong = CodedTensor(first.codec, first.sizes, {"n": 2 * first.sizes[0] + 2})
    spoilt = pack(envelope.type_id, envelope.meta, (wrong, *envelope.tensors[1:]))
    with pytest.raises(PeerProtocolError, match="field 'k'"):
        Restorer("kv", lambda _: coder._codec).restore(Received(spoilt, parts), End(bench.KV))


@given(st.binary(max_size=60))
def test_hostile_bytes_are_refused_typed(data):
    with pytest.raises(PeerProtocolError):
        unpack(b"\xc1" + data, "test@1")


def test_an_encoded_message_of_an_older_version_is_read_as_ones_own(bench):
    import fabric
    from fabric.dataplane.versions import Versions

    @fabric.message("coding.kv", version=2)
    class Newer:
        number: int
        k: fabric.Tensor["tokens dim", "bf16 | f32"]
        extra: fabric.Tensor["n", "i64"] | None = None
        parts: list[fabric.Tensor["...", "f32 | f8_e4m3"]] = []
        note: str = "none"

    old = message_type(bench.KV)
    coder = bench.coder()
    coded = coder.code(*old.encode(bench.KV(7, even(8, 4), np.arange(3))), math.inf)
    end = End(Newer)
    versions = Versions(None, "kv", end.type, [old.schema.text])
    end.decode = lambda native: versions.decode(native, end)
    got = Restorer("kv", lambda _: coder._codec, versions.schema_of).restore(Received(*coded), end)
    assert isinstance(got, Newer) and (got.number, got.note) == (7, "none")
    assert np.array_equal(got.k, even(8, 4)) and list(got.extra) == [0, 1, 2]


def test_a_codec_that_guards_acts_on_every_message_whatever_it_costs(bench):
    """One that encrypts saves nothing: left to what pays, it would send everything as it is."""
    meta, buffers = message_type(bench.KV).encode(bench.KV(1, even(1, 2)))
    for guards, when, acts in (
        (False, "pays", False),
        (True, "pays", True),
        (True, "never", False),
    ):
        coder = bench.coder(export=bench.export_of(guards=guards), when=when)
        assert (coder.code(meta, buffers, math.inf) is not None) == acts
