"""What every codec here keeps: bits or a bound, sizes, purity; and that damage is said. Over drawn tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fabric_plugins.compress import Compress
from fabric_plugins.quantize import BOUNDS, ROW_FACTOR, Quantize
from fabric_plugins.tensors import BITS
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric import kernels
from fabric.abc.tensor_codec import Encoded, TensorContext
from fabric.errors import ConfigError, TypeMismatchError

SHAPES = st.lists(st.integers(0, 40), min_size=0, max_size=4).map(tuple)
FLOATS = st.sampled_from(kernels.NUMBERS)


def context(
    array: np.ndarray, dtype: str, field: str = "k", info: dict | None = None
) -> TensorContext:
    return TensorContext("kv", field, dtype, array.shape, (), info or {})


def wire(encoded: Encoded) -> list[np.ndarray]:
    """Parts as the receiver gets them."""
    return [np.frombuffer(bytes(memoryview(part)), np.uint8) for part in encoded.parts]


def size_of(encoded: Encoded) -> int:
    return sum(part.nbytes for part in wire(encoded))


def there_and_back(codec, array, dtype, field="k"):
    """Encode and decode; None where it is to travel raw. The input is untouched and encoding is pure."""
    array.flags.writeable = False
    encoded = codec.encode(array, context(array, dtype, field))
    if encoded is None:
        return None
    again = codec.encode(array, context(array, dtype, field))
    assert again is not None and [p.tobytes() for p in wire(again)] == [
        p.tobytes() for p in wire(encoded)
    ]
    assert size_of(encoded) <= array.nbytes
    back = codec.decode(wire(encoded), context(array, dtype, field, dict(encoded.info)))
    assert back.shape == array.shape and back.dtype == array.dtype
    return back


def bits_of(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype({"f32": np.float32, "f16": np.float16}[dtype])


def numbers(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


@st.composite
def tensors(draw, dtypes):
    """A tensor of a drawn dtype and shape: noise, or what compresses."""
    dtype, shape = draw(dtypes), draw(SHAPES)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    raw = random.integers(0, draw(st.sampled_from([1, 3, 256])), (*shape, BITS[dtype][1]), np.uint8)
    return dtype, raw.reshape(-1).view(BITS[dtype][0]).reshape(shape)


@pytest.mark.parametrize("method", ["planes", "zstd", "lz4"])
def test_compressed_tensors_come_back_bit_for_bit(method):
    codec, shrunk = Compress(method), []

    @settings(max_examples=80, deadline=None)
    @given(tensors(st.sampled_from(sorted(BITS))))
    def check(drawn):
        dtype, array = drawn
        back = there_and_back(codec, array, dtype)
        shrunk.append(back is not None)
        assert back is None or back.tobytes() == array.tobytes()

    check()
    assert any(shrunk) and not all(shrunk)


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_large_tensors_of_every_dtype_compress(dtype):
    """Several blocks, not a whole number of them; columns with scales of their own."""
    values = np.random.default_rng(3).normal(size=(1501, 200)) * np.exp2(np.arange(200) % 9)
    if dtype in kernels.NUMBERS:
        array = bits_of(values, dtype)
    else:
        array = values.astype(np.int8 if BITS[dtype][1] == 1 else BITS[dtype][0])
        array = array.view(BITS[dtype][0])
    encoded = Compress().encode(array, context(array, dtype))
    assert encoded is not None and size_of(encoded) < 0.95 * array.nbytes
    assert there_and_back(Compress(), array, dtype).tobytes() == array.tobytes()


def test_a_tensor_that_does_not_shrink_travels_raw():
    noise = np.random.default_rng(1).integers(0, 2**16, 100_000, np.uint16)
    assert all(
        Compress(m).encode(noise, context(noise, "bf16")) is None for m in ("planes", "zstd", "lz4")
    )


@pytest.mark.parametrize("method", ["planes", "zstd", "lz4"])
def test_damaged_parts_are_refused_or_give_a_tensor_of_that_shape(method):
    array = bits_of(np.random.default_rng(5).normal(size=(64, 192)), "bf16") & 0xFFF0
    codec = Compress(method)
    encoded = codec.encode(array, context(array, "bf16"))
    assert encoded is not None
    told = context(array, "bf16", info=dict(encoded.info))
    part, refused = wire(encoded)[0], 0

    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, len(part) - 1), st.integers(1, 255), st.booleans())
    def check(at, change, cut):
        nonlocal refused
        bad = part[:at].copy() if cut else part.copy()
        if not cut:
            bad[at] ^= change
        try:
            assert codec.decode([bad], told).shape == array.shape
        except ValueError:
            refused += 1

    check()
    assert refused > 10
    for parts, info in (
        ([], encoded.info),
        ([part, part], encoded.info),
        ([part], {}),
        ([part], {"method": "x"}),
    ):
        with pytest.raises(ValueError):
            codec.decode(parts, context(array, "bf16", info=dict(info)))
    with pytest.raises(ValueError):
        codec.decode([part], context(array[1:], "bf16", info=dict(encoded.info)))


def test_a_method_or_level_that_is_none_is_refused_by_name():
    for bad in ({"method": "gzip"}, {"method": "zstd", "level": 99}, {"method": "lz4", "level": 0}):
        with pytest.raises(ConfigError, match=r"gzip|level"):
            Compress(**bad)


@pytest.mark.parametrize("code", sorted(BOUNDS))
@pytest.mark.parametrize("scales", ["kv", "channel", "token", "group"])
def test_a_quantised_tensor_keeps_its_bound(code, scales):
    codec = Quantize(code, scales, group=16)

    @settings(max_examples=40, deadline=None)
    @given(tensors(FLOATS), st.sampled_from(["k", "v", "pages[3]"]))
    def check(drawn, field):
        dtype, array = drawn
        with np.errstate(all="ignore"):
            x = numbers(array, dtype)
        back = there_and_back(codec, array, dtype, field)
        if back is None:
            return
        assert np.isfinite(x).all()
        error = np.linalg.norm(x - numbers(back, dtype))
        rounding = 2.0**-8 if dtype == "bf16" else 2.0**-10
        assert error <= (BOUNDS[code] + rounding) * np.linalg.norm(x) * 1.001

    check()


@pytest.mark.parametrize("dtype", kernels.NUMBERS)
@pytest.mark.parametrize(("code", "limit"), [("i8", 0.012), ("f8_e4m3", 0.03), ("f8_e5m2", 0.06)])
def test_normal_values_lose_what_the_code_loses(dtype, code, limit):
    x = bits_of(np.random.default_rng(2).normal(size=(300, 4, 64)), dtype)
    for field in ("k", "v"):
        back = there_and_back(Quantize(code), x, dtype, field)
        error = np.linalg.norm(numbers(x, dtype) - numbers(back, dtype))
        assert 0 < error < limit * np.linalg.norm(numbers(x, dtype))


def outliers() -> np.ndarray:
    values = np.random.default_rng(8).normal(size=(256, 576))
    values[0] *= 25_000
    return bits_of(values, "bf16")


@pytest.mark.parametrize(("code", "limit"), [("i8", 0.008), ("f8_e4m3", 0.026)])
def test_a_row_of_outliers_leaves_the_others_their_accuracy(code, limit):
    x = outliers()
    back = there_and_back(Quantize(code, "group"), x, "bf16", "hidden")
    error = (numbers(x, "bf16") - numbers(back, "bf16"))[1:]
    norms = np.linalg.norm(numbers(x, "bf16")[1:], axis=1)
    assert np.linalg.norm(error) <= limit * np.linalg.norm(norms)
    assert (np.linalg.norm(error, axis=1) <= ROW_FACTOR * BOUNDS[code] * norms).all()


def test_scales_of_channels_that_would_drown_rows_give_way_to_groups():
    x = outliers()
    encoded = Quantize("i8", "channel").encode(x, context(x, "bf16"))
    assert encoded is not None and encoded.info["group"] == 64


def test_values_that_are_not_finite_travel_raw():
    for bad in (math.nan, math.inf):
        x = np.ones((8, 64), np.float32)
        x[3, 5] = bad
        assert all(
            Quantize(scales=s).encode(x, context(x, "f32")) is None for s in ("channel", "group")
        )


def test_scales_and_codes_of_other_sizes_are_refused():
    x = np.ones((8, 64), np.float32)
    encoded = Quantize().encode(x, context(x, "f32"))
    assert encoded is not None
    codes, scales = wire(encoded)
    for parts, info in (
        ([codes], {}),
        ([codes[1:], scales], {}),
        ([codes, scales[4:]], {}),
        ([codes, scales], {"group": 7}),
        ([codes, scales], {"group": -1}),
        ([codes, scales], {"code": "i4"}),
    ):
        with pytest.raises(ValueError):
            Quantize().decode(parts, context(x, "f32", info={**encoded.info, **info}))


def test_parameters_that_cannot_be_are_refused():
    for bad in (
        {"code": "i4"},
        {"scales": "row"},
        {"group": 0},
        {"bound": -1.0},
        {"bound": 0.5},
    ):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Quantize(**bad)


def test_kernels_refuse_what_they_do_not_know():
    x = np.zeros((4, 4), np.float32)
    for call in (
        lambda: kernels.compress_floats(x, "f64"),
        lambda: kernels.compress_floats(x, "bf16"),
        lambda: kernels.quantize(x, "i32", "i8"),
        lambda: kernels.quantize(x.ravel(), "f32", "i8"),
    ):
        with pytest.raises(TypeMismatchError):
            call()
    with pytest.raises(ValueError, match="nothing that the float codec wrote"):
        kernels.decompressed_bytes(b"x" * 100)


def test_crc32c_is_that_of_the_standard():
    assert kernels.crc32c(b"123456789") == 0xE3069283
    assert kernels.crc32c(b"6789", kernels.crc32c(b"12345")) == 0xE3069283
