"""Tensors in a GPU's memory: read into the host's to be sent, and put there after they came.

Whoever offers ``__cuda_array_interface__`` (CuPy, Numba, PyTorch) is understood; none of them is imported. Copies go
through pinned memory by CUDA's driver, in the order of the stream that the array names, and sleep while they wait. Any
thread.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any, Final

from fabric.errors import DeadlineExceeded, PathBrokenError, TypeMismatchError

#: Environment variable that names another library than the system's ``libcuda.so.1``.
CUDA_LIBRARY: Final = "FABRIC_CUDA_LIBRARY"
COPY_S: Final = 30.0  #: for one copy; a GPU that takes longer has failed
_TOO_LATE: Final = 1


def cuda_library() -> str:
    """Return the CUDA driver that is opened: a path, or a name for the system's search."""
    return os.environ.get(CUDA_LIBRARY, "libcuda.so.1")


class DeviceArray:
    """Memory of a GPU with the contents of a host array; freed with this object.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
        As of the host array: bf16 is uint16, fp8 uint8.
    device : int
        The GPU, as the driver numbers them.

    Notes
    -----
    ``torch.as_tensor(x, device="cuda")`` and ``cupy.asarray(x)`` take it without a copy and keep it alive.
    """

    def __init__(self, memory: Any, shape: tuple[int, ...], dtype: Any) -> None:
        self._memory = memory
        self.shape = shape
        self.dtype = dtype
        self.device = int(memory.device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the interface; `stream` is None: the contents are there."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (int(self._memory.pointer), False),
            "version": 3,
            "strides": None,
            "stream": None,
        }


def to_device(array: Any, device: int = 0) -> DeviceArray:
    """Copy a host array, such as a received one, into a GPU's memory.

    Parameters
    ----------
    array : numpy.ndarray
        Any shape; made C-contiguous where it is not.
    device : int
        The GPU, as the driver numbers them.

    Raises
    ------
    PathBrokenError
        No driver, no such GPU, or its memory is used up; it says which.
    DeadlineExceeded
        The GPU did not take it within `COPY_S`.
    """
    import numpy

    host = numpy.ascontiguousarray(array)
    memory, code, why = _module().fill_device(
        cuda_library(), device, host.ctypes.data, host.nbytes, COPY_S
    )
    _check(code, why, f"copying {host.nbytes} bytes to GPU {device}")
    return DeviceArray(memory, tuple(array.shape), host.dtype)


def to_host(value: Any) -> Any:
    """Return a numpy array with what an object with ``__cuda_array_interface__`` holds.

    Raises
    ------
    TypeMismatchError
        It is masked or not C-contiguous, or its interface is malformed.
    PathBrokenError, DeadlineExceeded
        See `to_device`.
    """
    import numpy

    name = type(value).__name__
    try:
        facts = value.__cuda_array_interface__
        dtype, shape = numpy.dtype(facts["typestr"]), tuple(map(int, facts["shape"]))
        pointer = int(facts["data"][0])
        stream = int(facts.get("stream") or 0)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TypeMismatchError(f"{name} has no sound __cuda_array_interface__: {error}") from error
    host = numpy.empty(shape, dtype)
    if facts.get("mask") is not None:
        raise TypeMismatchError(f"{name} is masked, and a mask does not travel: fill it first")
    strides = facts.get("strides")
    if strides is not None and host.size > 1 and tuple(strides) != host.strides:
        raise TypeMismatchError(
            f"{name} on a GPU has strides {tuple(strides)}: make it C-contiguous before it is sent"
        )
    if host.nbytes:
        code, why = _module().read_device(
            cuda_library(), host.ctypes.data, pointer, host.nbytes, stream, COPY_S
        )
        _check(code, why, f"reading {host.nbytes} bytes of {name} from its GPU")
    return host


def _module() -> Any:
    if importlib.util.find_spec("fabric._gpu") is None:
        raise PathBrokenError("this build cannot reach GPUs: build it again (make build)")
    return importlib.import_module("fabric._gpu")


def _check(code: int, why: str, what: str) -> None:
    if code == _TOO_LATE:
        raise DeadlineExceeded(f"{what} took more than {COPY_S:g} s; the GPU hangs")
    if code:
        raise PathBrokenError(f"{what}: {why}")
