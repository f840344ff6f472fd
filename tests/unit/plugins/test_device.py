"""Quantisation in torch gives what the native kernel gives, on the host and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from fabric import kernels
from fabric.errors import TypeMismatchError

torch = pytest.importorskip("torch", reason="needs fabricd[models]")
from fabric_plugins import device  # noqa: E402

PLACES = ["cpu", pytest.param("cuda", marks=pytest.mark.needs_gpu)]


@pytest.fixture(params=PLACES)
def place(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU that this build of torch can use")
    return request.param


@pytest.mark.parametrize("code", kernels.CODES)
@pytest.mark.parametrize("group", [0, 16, 192])
def test_codes_and_scales_are_those_of_the_native_kernel(place, code, group):
    values = np.random.default_rng(1).normal(size=(64, 192)).astype(np.float32)
    values[:, 5] = 0
    native = kernels.quantize(values, "f32", code, group)
    codes, scales = device.quantize(torch.from_numpy(values).to(place), code, group)
    np.testing.assert_allclose(
        scales.cpu().numpy().reshape(-1), native.scales.reshape(-1), rtol=1e-6
    )
    found = codes.view(torch.uint8).cpu().numpy()
    assert (found != native.codes).mean() < 1e-3  # ties, where the last bit of a division differs
    back = device.dequantize(codes, scales, (64, 3, 64), torch.float32).cpu().numpy()
    assert back.shape == (64, 3, 64)
    error = np.linalg.norm(back.reshape(64, 192) - values) / np.linalg.norm(values)
    assert error == pytest.approx(native.error, rel=0.01)


def test_tensors_that_cannot_be_quantised_are_refused():
    for bad in (
        lambda: device.quantize(torch.ones(4, 4), "i4"),
        lambda: device.quantize(torch.ones(4, 4, dtype=torch.int32)),
        lambda: device.quantize(torch.ones(4, 6), "i8", 4),
        lambda: device.quantize(torch.ones(0, 6)),
    ):
        with pytest.raises(TypeMismatchError):
            bad()
