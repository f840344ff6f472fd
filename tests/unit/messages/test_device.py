"""Tensors of a GPU: read to be sent, put there after they came; by a fake driver, and by the real one where it is."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric.errors import PathBrokenError, TypeMismatchError
from fabric.messages import device
from fabric.messages.tensor import DTYPE_CODES, to_array
from tests.fakes.gpu import DEVICE, PINNED, FakeCuda

PART = 4 << 20  # what is copied at once


def same_there_and_back(array: np.ndarray) -> None:
    there = device.to_device(array)
    code, back = to_array(there)
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert code in DTYPE_CODES.values()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.lists(st.integers(0, 9), max_size=4),
    dtype=st.sampled_from(["f4", "f2", "i1", "u1", "i4", "i8", "?"]),
)
def test_tensor_of_any_shape_and_dtype_is_the_same_there_and_back(fake_cuda, shape, dtype):
    rng = np.random.default_rng(len(shape))
    same_there_and_back(rng.integers(0, 2, shape).astype(dtype))


@pytest.mark.parametrize("size", [PART - 1, PART, PART + 1, 3 * PART + 17])
def test_tensor_of_many_parts_is_the_same_although_the_gpu_is_late(fake_cuda: FakeCuda, size: int):
    before = fake_cuda.live(DEVICE), fake_cuda.live(PINNED)
    fake_cuda.delay_us(300)
    same_there_and_back(np.random.default_rng(size).integers(0, 255, size, np.uint8))
    assert (fake_cuda.live(DEVICE), fake_cuda.live(PINNED)) == before, "what it took is freed"


def test_memory_of_the_gpu_lives_as_long_as_the_array(fake_cuda: FakeCuda):
    before = fake_cuda.live(DEVICE)
    there = device.to_device(np.arange(6, dtype=np.float32).reshape(2, 3), 1)
    facts = there.__cuda_array_interface__
    assert (there.device, facts["shape"], facts["typestr"]) == (1, (2, 3), "<f4")
    seen = (ctypes.c_float * 6).from_address(facts["data"][0])  # the fake's memory is the host's
    assert list(seen) == [0, 1, 2, 3, 4, 5]
    assert fake_cuda.live(DEVICE) == before + 1
    del there
    assert fake_cuda.live(DEVICE) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strides": (4, 8)}, "strides \\(4, 8\\): make it C-contiguous"),
        ({"mask": object()}, "masked"),
        ({"typestr": "wrong"}, "no sound __cuda_array_interface__"),
        ({"data": None}, "no sound __cuda_array_interface__"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(fake_cuda: FakeCuda, change: dict, said: str):
    there = device.to_device(np.zeros((2, 3), np.float32))
    facts = SimpleNamespace(__cuda_array_interface__={**there.__cuda_array_interface__, **change})
    with pytest.raises(TypeMismatchError, match=said):
        to_array(facts)


def test_freed_memory_is_an_error_and_not_data(fake_cuda: FakeCuda):
    there = device.to_device(np.ones(100, np.float32))
    stale = SimpleNamespace(__cuda_array_interface__=there.__cuda_array_interface__)
    del there
    with pytest.raises(PathBrokenError, match="reading 400 bytes of SimpleNamespace"):
        to_array(stale)


def test_gpu_that_fails_or_is_not_there_is_named(fake_cuda: FakeCuda, monkeypatch):
    with pytest.raises(PathBrokenError, match="there is no GPU 7: the driver shows 2"):
        device.to_device(np.ones(3), 7)
    fake_cuda.fail_copies(700)
    with pytest.raises(PathBrokenError, match="to GPU 0: the stream: CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.to_device(np.ones(3))
    monkeypatch.setenv(device.CUDA_LIBRARY, "libno-such-driver.so.1")
    with pytest.raises(PathBrokenError, match="libno-such-driver"):
        device.to_device(np.ones(3))


@pytest.mark.needs_gpu
@pytest.mark.parametrize("size", [1, PART + 1, 64 << 20])
def test_real_gpu_gives_back_what_it_was_given(size: int):
    same_there_and_back(np.random.default_rng(size).integers(0, 255, size, np.uint8))
