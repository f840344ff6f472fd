"""Tensor fields: how values become buffers, and buffers arrays.

Numpy is imported at first use; torch never is: its tensors are recognised by module name. bf16 and the fp8 types have
no numpy dtype, so they travel and arrive as bit patterns (uint16, uint8); an fp8 array carries its type in its dtype's
metadata, so that it can be sent on. `as_torch` gives the real thing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from fabric.errors import TypeMismatchError
from fabric.messages.tensor_spec import DTYPE_CODES, DTYPES, FP8, Tensor, TensorSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "DTYPES",
    "DTYPE_CODES",
    "FP8",
    "Tensor",
    "TensorSpec",
    "as_fp8",
    "as_torch",
    "device_of",
    "fp8_name",
    "numpy_codes",
    "to_array",
]
_FP8_CODES: Final = {name: DTYPE_CODES[short] for short, name in FP8.items()}
_TAG: Final = "fabric"  # key of the dtype metadata that says which fp8 type uint8 stands for
_CODE_OF_NUMPY: Final = {
    "float32": 1,
    "float16": 2,
    "bfloat16": 3,
    "uint16": 3,
    "int8": 4,
    "uint8": 5,
    "int32": 6,
    "int64": 7,
    "bool": 8,
}
_codes: dict[Any, int] = {}  # np.dtype → code, filled at first use


def device_of(value: Any) -> str:
    """Return where a tensor lies: ``cpu``, or the word of its library such as ``cuda``."""
    device = getattr(value, "device", "cpu")
    kind = getattr(device, "type", device)
    if type(value).__module__.partition(".")[0] == "cupy":
        return "cuda"
    return kind if isinstance(kind, str) else "cpu"


def numpy_codes() -> dict[Any, int]:
    """Return np.dtype → wire code; imports numpy."""
    if not _codes:
        import numpy

        for name, code in _CODE_OF_NUMPY.items():
            if name != "bfloat16":
                _codes[numpy.dtype(name)] = code
    return _codes


def as_fp8(array: Any, dtype: str) -> Any:
    """Return a uint8 array of bit patterns as one that says which fp8 type it holds; no copy.

    Needed only where a field takes several types of one byte; elsewhere plain uint8 is taken.

    Parameters
    ----------
    array : numpy.ndarray
        Of dtype uint8.
    dtype : {"f8_e4m3", "f8_e5m2"}
        e4m3 is the variant without infinities (OCP, ``float8_e4m3fn``).

    Raises
    ------
    TypeMismatchError
        Another dtype.
    """
    import numpy

    if dtype not in FP8 or getattr(array, "dtype", None) != numpy.uint8:
        raise TypeMismatchError(
            f"as_fp8 takes a uint8 array and one of {', '.join(FP8)}, not {dtype!r}", dtype=dtype
        )
    return array.view(numpy.dtype("uint8", metadata={_TAG: dtype}))


def fp8_name(array: Any) -> str | None:
    """Return which fp8 type an array says it holds, None for any other array."""
    metadata = getattr(array.dtype, "metadata", None)
    name = metadata.get(_TAG) if metadata else None
    return name if name in FP8 else None


def to_array(value: Any) -> tuple[int, Any]:
    """Return (wire code, numpy array) of an array-like; zero-copy where the memory is on the host.

    Raises
    ------
    TypeMismatchError
        It is no tensor, or of a dtype that does not travel.
    """
    import numpy

    if not isinstance(value, (numpy.ndarray, numpy.generic)):
        value = _foreign_array(value)
    array = numpy.asarray(value)
    dtype = array.dtype
    fp8 = fp8_name(array)
    if fp8 is not None:
        return DTYPE_CODES[fp8], array
    if dtype.name == "bfloat16":  # ml_dtypes
        array = array.view(numpy.uint16)
    elif dtype.name in _FP8_CODES:
        return _FP8_CODES[dtype.name], array.view(numpy.uint8)
    elif dtype.byteorder not in ("=", "|") and not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    code = numpy_codes().get(array.dtype)
    if code is None:
        raise TypeMismatchError(f"dtype {dtype.name} does not travel; use {', '.join(DTYPE_CODES)}")
    return code, array


def _foreign_array(value: Any) -> Any:
    import numpy

    if type(value).__module__.partition(".")[0] == "torch":
        return _torch_array(value)
    if hasattr(value, "__cuda_array_interface__"):
        from fabric.messages.device import to_host

        return to_host(value)
    if hasattr(value, "__dlpack__"):
        try:
            return numpy.from_dlpack(value)
        except (BufferError, TypeError, RuntimeError) as error:
            raise TypeMismatchError(
                f"{type(value).__name__} cannot be read as a host array: {error}"
            ) from error
    if isinstance(value, (memoryview, bytearray)):
        return (
            numpy.frombuffer(value, numpy.uint8)
            if not isinstance(value, memoryview)
            else numpy.asarray(value)
        )
    raise TypeMismatchError(
        f"{type(value).__name__} is no tensor; give a numpy array or a torch tensor"
    )


def _torch_array(value: Any) -> Any:
    """Numpy view of a torch tensor; a device tensor is copied to the host, bf16 and fp8 become bit patterns."""
    import numpy

    torch = sys.modules["torch"]
    if not isinstance(value, torch.Tensor):
        raise TypeMismatchError(f"torch.{type(value).__name__} is no tensor")
    host = value.detach().cpu().resolve_conj().resolve_neg()
    if host.dtype is torch.bfloat16:
        return host.contiguous().view(torch.int16).numpy().view(numpy.uint16)
    for short, name in FP8.items():
        if host.dtype is getattr(torch, name, None):
            return as_fp8(host.contiguous().view(torch.uint8).numpy(), short)
    try:
        return host.numpy()
    except (TypeError, RuntimeError) as error:
        raise TypeMismatchError(f"torch dtype {host.dtype} does not travel: {error}") from error


class _Writable:
    """Presents read-only memory as writable, for libraries that cannot express read-only."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.owner = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def as_torch(array: Any) -> Any:
    """Return a torch tensor over the same memory as `array` (uint16 becomes bfloat16, tagged uint8 its fp8 type).

    Notes
    -----
    Torch knows no read-only memory: never write to the tensor of a received message, `clone()` it first.
    The memory lives as long as the tensor, unless the message is released explicitly.
    """
    import numpy

    torch = sys.modules.get("torch")
    if torch is None:
        raise TypeMismatchError(
            "torch is not imported in this process; import it, or use the numpy array"
        )
    array = numpy.asarray(array)
    fp8 = fp8_name(array)
    is_bf16 = array.dtype == numpy.uint16
    if is_bf16:
        array = array.view(numpy.int16)
    if array.size == 0:
        tensor = torch.empty(array.shape, dtype=getattr(torch, array.dtype.name))
    else:
        tensor = torch.from_numpy(
            array if array.flags.writeable else numpy.asarray(_Writable(array))
        )
    if fp8 is not None:
        return tensor.view(getattr(torch, FP8[fp8]))
    return tensor.view(torch.bfloat16) if is_bf16 else tensor
