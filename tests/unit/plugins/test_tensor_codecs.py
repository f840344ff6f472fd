"""Checksum, encrypt, delta and cast: what comes back, and that damage is refused. Over drawn tensors."""

from __future__ import annotations

import os
import secrets

import numpy as np
import pytest
from fabric_plugins import encrypt as encryption
from fabric_plugins.cast import ERROR_BOUND, Cast
from fabric_plugins.checksum import Checksum, ChecksumError
from fabric_plugins.delta import Delta
from fabric_plugins.encrypt import Encrypt, TamperedError
from fabric_plugins.tensors import BITS
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.abc.tensor_codec import Encoded, TensorContext
from fabric.errors import ConfigError


def context(
    array: np.ndarray, dtype: str, field: str = "k", info: dict | None = None
) -> TensorContext:
    return TensorContext("kv", field, dtype, array.shape, (), info or {})


def wire(encoded: Encoded) -> list[np.ndarray]:
    return [np.frombuffer(bytes(memoryview(part)), np.uint8) for part in encoded.parts]


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(sorted(BITS)))
    shape = tuple(draw(st.lists(st.integers(0, 20), max_size=4)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    raw = random.integers(0, 256, (*shape, BITS[dtype][1]), np.uint8)
    array = raw.reshape(-1).view(BITS[dtype][0]).reshape(shape)
    array.flags.writeable = False
    return dtype, array


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "key"
    path.write_text(secrets.token_hex(32) + "\n")
    path.chmod(0o600)
    return str(path)


@pytest.fixture(params=["crc32c", "blake2b", "encrypt"])
def guard(request, key_file):
    """A maker of codecs that notice every change, and what they raise."""
    if request.param == "encrypt":
        pytest.importorskip("cryptography", reason="encrypt needs fabricd[codecs]")
        return (lambda: Encrypt(key_file)), TamperedError
    return (lambda: Checksum(request.param)), ChecksumError


def test_a_guarded_tensor_comes_back_at_the_other_end(guard):
    sender, receiver = guard[0](), guard[0]()

    @settings(max_examples=60, deadline=None)
    @given(tensors())
    def check(drawn):
        dtype, array = drawn
        encoded = sender.encode(array, context(array, dtype))
        assert sum(part.nbytes for part in wire(encoded)) <= array.nbytes + 16
        back = receiver.decode(wire(encoded), context(array, dtype, info=dict(encoded.info)))
        assert back.shape == array.shape and back.dtype == array.dtype
        assert back.tobytes() == array.tobytes()

    check()


def test_every_changed_bit_and_place_is_noticed(guard):
    make, error = guard
    array = np.random.default_rng(1).integers(0, 2**16, (16, 32), np.uint16)
    encoded = make().encode(array, context(array, "bf16"))
    part, told = wire(encoded)[0], dict(encoded.info)
    receiver = make()

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, len(part) - 1), st.integers(0, 7))
    def check(at, bit):
        bad = part.copy()
        bad[at] ^= 1 << bit
        with pytest.raises(error, match="'k'"):
            receiver.decode([bad], context(array, "bf16", info=told))

    check()
    for elsewhere in (
        context(array, "bf16", "v", told),
        context(array, "f16", "k", told),
        context(array.reshape(32, 16), "bf16", "k", told),
    ):
        with pytest.raises(error):
            receiver.decode([part], elsewhere)
    for info in (
        {},
        {**told, "digest": b"1", "salt": b"1"},
        {**told, "algorithm": 3, "number": -1},
    ):
        with pytest.raises(ValueError):
            receiver.decode([part], context(array, "bf16", info=info))


def test_encrypted_bytes_and_nonces_are_never_the_same(key_file, monkeypatch):
    pytest.importorskip("cryptography", reason="encrypt needs fabricd[codecs]")
    array = np.zeros(1000, np.float32)
    seen: set[tuple[bytes, int]] = set()
    texts: set[bytes] = set()
    monkeypatch.setattr(encryption, "MESSAGES_PER_KEY", 5)
    for codec in (Encrypt(key_file), Encrypt(key_file)):
        for _ in range(12):
            encoded = codec.encode(array, context(array, "f32"))
            seen.add((encoded.info["salt"], encoded.info["number"]))
            texts.add(wire(encoded)[0].tobytes())
    assert len(seen) == len(texts) == 24
    assert len({salt for salt, _ in seen}) == 6 and max(number for _, number in seen) == 4


def test_a_forked_process_draws_a_key_of_its_own(key_file, monkeypatch):
    pytest.importorskip("cryptography", reason="encrypt needs fabricd[codecs]")
    codec, array = Encrypt(key_file), np.zeros(4, np.float32)
    before = codec.encode(array, context(array, "f32")).info["salt"]
    pid = os.getpid()
    monkeypatch.setattr(encryption.os, "getpid", lambda: pid + 1)
    assert codec.encode(array, context(array, "f32")).info["salt"] != before


def test_another_key_opens_nothing(key_file, tmp_path):
    pytest.importorskip("cryptography", reason="encrypt needs fabricd[codecs]")
    other = tmp_path / "other"
    other.write_bytes(secrets.token_bytes(32))
    other.chmod(0o600)
    array = np.zeros(4, np.float32)
    encoded = Encrypt(key_file).encode(array, context(array, "f32"))
    with pytest.raises(TamperedError, match="different keys"):
        Encrypt(str(other)).decode(wire(encoded), context(array, "f32", info=dict(encoded.info)))


def test_key_files_that_will_not_do_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("cryptography", reason="encrypt needs fabricd[codecs]")
    monkeypatch.delenv(encryption.KEY_VARIABLE, raising=False)
    short, shared = tmp_path / "short", tmp_path / "shared"
    short.write_text("abcd")
    shared.write_bytes(secrets.token_bytes(32))
    short.chmod(0o600)
    shared.chmod(0o644)
    for path, said in (
        ("", "has no key"),
        (str(tmp_path / "none"), "No such file"),
        (str(short), "hexadecimal"),
        (str(shared), "can be read by others"),
    ):
        with pytest.raises(ConfigError, match=said):
            Encrypt(path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("delta") / "base.npy"
    np.save(path, np.random.default_rng(4).normal(size=(400, 64)).astype(np.float32))
    return path


@pytest.mark.parametrize("mode", ["blocks", "xor"])
def test_a_delta_comes_back_bit_for_bit(mode, reference):
    base = np.load(reference).reshape(-1)
    sender, receiver = Delta(str(reference), mode, 256), Delta(str(reference), mode, 256)
    sent = []

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 90), st.integers(0, 3000), st.integers(0, 40), st.integers(0, 2**32))
    def check(begin, length, changes, seed):
        array = base[64 * begin : 64 * begin + length].copy()
        random = np.random.default_rng(seed)
        if length:
            array[random.integers(0, length, changes)] += 1
        array.flags.writeable = False
        encoded = sender.encode(array, context(array, "f32"))
        if encoded is None:
            return
        sent.append(sum(part.nbytes for part in wire(encoded)) / array.nbytes)
        back = receiver.decode(wire(encoded), context(array, "f32", info=dict(encoded.info)))
        assert back.tobytes() == array.tobytes()

    check()
    assert min(sent) < 0.2


def test_a_delta_without_its_reference_or_with_parts_that_do_not_fit_is_refused(reference):
    array = np.load(reference)[:64]
    codec = Delta(str(reference), "blocks", 256)
    encoded = codec.encode(array, context(array, "f32"))
    named, literal = wire(encoded)
    told = dict(encoded.info)
    with pytest.raises(ValueError, match="different references"):
        Delta().decode([named, literal], context(array, "f32", info=told))
    far = np.full(len(named) // 4, 10**6, np.int32).view(np.uint8)
    for parts, info in (
        ([named], told),
        ([named[4:], literal], told),
        ([far, literal], told),
        ([named, np.zeros(9, np.uint8)], told),
        ([named, literal], {**told, "mode": "x"}),
        ([named, literal], {**told, "block": 0}),
        ([named], {**told, "mode": "xor"}),
    ):
        with pytest.raises(ValueError):
            codec.decode(parts, context(array, "f32", info=info))


def test_what_a_reference_does_not_have_travels_raw(reference):
    other = np.random.default_rng(9).integers(0, 2**32, 4000, np.uint32).view(np.float32)
    for codec in (Delta(), Delta(str(reference)), Delta(str(reference), "xor")):
        assert codec.encode(other, context(other, "f32")) is None


@pytest.mark.parametrize("to", ["bf16", "f16"])
def test_a_cast_keeps_its_bound(to):
    codec = Cast(to)

    @settings(max_examples=80, deadline=None)
    @given(st.integers(0, 300), st.integers(-140, 128), st.integers(0, 2**32))
    def check(size, exponent, seed):
        with np.errstate(all="ignore"):
            array = (np.random.default_rng(seed).normal(size=size) * 2.0**exponent).astype(
                np.float32
            )
        encoded = codec.encode(array, context(array, "f32"))
        if encoded is None:
            assert abs(exponent) > 4
            return
        back = codec.decode(wire(encoded), context(array, "f32", info=dict(encoded.info)))
        error = np.linalg.norm((array - back).astype(np.float64))
        assert error <= 1.001 * ERROR_BOUND * np.linalg.norm(array.astype(np.float64))

    check()
    for bad in (np.nan, np.inf):
        array = np.array([1.0, bad], np.float32)
        assert codec.encode(array, context(array, "f32")) is None


def test_parameters_that_cannot_be_are_refused():
    for make in (
        lambda: Cast("f8"),
        lambda: Checksum("md5"),
        lambda: Delta(mode="zip"),
        lambda: Delta(block=100),
        lambda: Delta("/does/not/exist.npy"),
    ):
        with pytest.raises(ConfigError):
            make()
