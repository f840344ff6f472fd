"""Tensor fields: `Tensor["tokens heads dim", "bf16 | f32"]`, and how values become buffers and arrays.

Numpy is imported at first use; torch never is: its tensors are recognised by module name. bf16 and the fp8 types have
no numpy dtype, so they travel and arrive as bit patterns (uint16, uint8); an fp8 array carries its type in its dtype's
metadata, so that it can be sent on. `as_torch` gives the real thing.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, Final

from fabric import limits
from fabric.errors import TypeMismatchError

if TYPE_CHECKING:
    import numpy as np

#: dtype name → wire code. Codes are on the wire: never reuse one.
DTYPE_CODES: Final = {
    "f32": 1,
    "f16": 2,
    "bf16": 3,
    "i8": 4,
    "u8": 5,
    "i32": 6,
    "i64": 7,
    "bool": 8,
    "f8_e4m3": 9,
    "f8_e5m2": 10,
}
#: wire code → (dtype name, numpy name, bytes per element)
DTYPES: Final = {
    1: ("f32", "float32", 4),
    2: ("f16", "float16", 2),
    3: ("bf16", "uint16", 2),
    4: ("i8", "int8", 1),
    5: ("u8", "uint8", 1),
    6: ("i32", "int32", 4),
    7: ("i64", "int64", 8),
    8: ("bool", "bool", 1),
    9: ("f8_e4m3", "uint8", 1),
    10: ("f8_e5m2", "uint8", 1),
}
#: fp8 dtype name → names of the same in ml_dtypes and torch
FP8: Final = {"f8_e4m3": "float8_e4m3fn", "f8_e5m2": "float8_e5m2"}
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
_DIM: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_codes: dict[Any, int] = {}  # np.dtype → code, filled at first use


class TensorSpec:
    """Declared shape and dtypes of one tensor field; made by `Tensor[...]`, immutable.

    `is_list`: the field holds a list of such tensors, each checked by itself.
    """

    __slots__ = ("dims", "dtypes", "is_list", "optional")

    def __init__(
        self,
        dims: tuple[str | int, ...],
        dtypes: tuple[str, ...],
        optional: bool = False,
        is_list: bool = False,
    ) -> None:
        self.dims = dims
        self.dtypes = dtypes
        self.optional = optional
        self.is_list = is_list

    def as_list(self) -> TensorSpec:
        """Return the declaration of a list of these; a list has no absent items."""
        if self.optional or self.is_list:
            raise TypeMismatchError(
                f"list[{self!r}]: the items of a list of tensors cannot be absent or lists"
            )
        return TensorSpec(self.dims, self.dtypes, is_list=True)

    def __or__(self, other: Any) -> TensorSpec:
        if other is None or other is type(None):
            return TensorSpec(self.dims, self.dtypes, optional=True)
        return NotImplemented

    __ror__ = __or__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorSpec) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        dims = " ".join(str(dim) for dim in self.dims)
        text = f'Tensor["{dims}", "{" | ".join(self.dtypes)}"]'
        return f"list[{text}]" if self.is_list else text + (" | None" if self.optional else "")

    def __call__(self) -> None:  # typing accepts only callables in Optional[...] and Annotated[...]
        raise TypeError("a tensor field's declaration is not callable")

    def check_shape(self, field: str, shape: tuple[int, ...]) -> None:
        """Raise `TypeMismatchError` naming `field` unless rank and fixed sizes hold."""
        dims = self.dims
        if "..." not in dims:
            if len(shape) != len(dims):
                raise TypeMismatchError(
                    f"field {field!r} has rank {len(shape)} (shape {list(shape)}), declared {self!r}",
                    field=field,
                    shape=list(shape),
                )
            pairs = zip(dims, shape, strict=True)
        else:
            at = dims.index("...")
            after = len(dims) - at - 1
            if not len(dims) - 1 <= len(shape) <= limits.TENSOR_RANK_MAX:
                raise TypeMismatchError(
                    f"field {field!r} has rank {len(shape)} (shape {list(shape)}), declared {self!r}",
                    field=field,
                    shape=list(shape),
                )
            tail = shape[len(shape) - after :]
            pairs = zip(dims[:at] + dims[at + 1 :], shape[:at] + tail, strict=True)
        for dim, size in pairs:
            if type(dim) is int and dim != size:
                raise TypeMismatchError(
                    f"field {field!r} has shape {list(shape)}, declared {self!r}: {size} where {dim} must be",
                    field=field,
                    shape=list(shape),
                )

    def named_axes(self) -> list[tuple[str, int]]:
        """Return (name, axis) of every named dimension; axes after `...` count from the end.

        None for a list: its tensors may differ, also where a dimension has a name.
        """
        if self.is_list:
            return []
        at = self.dims.index("...") if "..." in self.dims else len(self.dims)
        return [
            (dim, axis if axis < at else axis - len(self.dims))
            for axis, dim in enumerate(self.dims)
            if isinstance(dim, str) and dim not in ("...", "_")
        ]


class Tensor:
    """Annotation of a tensor field of a message type.

    ``Tensor["tokens heads dim", "bf16 | f32"]``: dimensions by name (equal within one message where the name is
    the same; ``_`` is never compared), by size, or ``...`` for any rank; then the dtypes allowed, default all:
    f32, f16, bf16, i8, u8, i32, i64, bool, f8_e4m3, f8_e5m2. ``| None`` makes the field optional;
    ``list[Tensor[...]]`` is a list of tensors, together at most `limits.TENSORS_PER_MESSAGE_MAX` a message.
    """

    def __class_getitem__(cls, item: Any) -> TensorSpec:
        dims, dtypes = (
            item if isinstance(item, tuple) and len(item) == 2 else (item, " | ".join(DTYPE_CODES))
        )
        if not isinstance(dims, str) or not isinstance(dtypes, str):
            raise TypeMismatchError(
                f'write Tensor["tokens dim", "f32 | bf16"], not Tensor[{item!r}]'
            )
        return TensorSpec(_parse_dims(dims), _parse_dtypes(dtypes))


def _parse_dims(text: str) -> tuple[str | int, ...]:
    dims = tuple(int(word) if word.isdecimal() else word for word in text.split())
    for dim in dims:
        if isinstance(dim, str) and dim != "..." and not _DIM.match(dim):
            raise TypeMismatchError(
                f"dimension {dim!r} in {text!r} is neither a name, a size nor ..."
            )
    if dims.count("...") > 1:
        raise TypeMismatchError(f"more than one ... in the dimensions {text!r}")
    if len(dims) > limits.TENSOR_RANK_MAX:
        raise TypeMismatchError(
            f"{len(dims)} dimensions, TENSOR_RANK_MAX is {limits.TENSOR_RANK_MAX}"
        )
    return dims


def _parse_dtypes(text: str) -> tuple[str, ...]:
    names = tuple(word.strip() for word in text.split("|"))
    for name in names:
        if name not in DTYPE_CODES:
            raise TypeMismatchError(f"dtype {name!r} is unknown; use {', '.join(DTYPE_CODES)}")
    return tuple(sorted(set(names), key=names.index))


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
