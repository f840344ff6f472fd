"""What a tensor field declares: `Tensor["tokens heads dim=64", "bf16 | f32"]`, and the dtypes that travel. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from fabric import limits
from fabric.errors import TypeMismatchError

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
_DIM: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(=[0-9]{1,18})?\Z")
DEVICES: Final = ("cpu", "cuda")
CONTIGUOUS: Final = "contiguous"


class TensorSpec:
    """Declared shape, dtypes and place of one tensor field; made by `Tensor[...]`, immutable.

    Attributes
    ----------
    dims : tuple of str or int
        Names, sizes, ``...``.
    dtypes : tuple of str
    optional, is_list : bool
        May be absent; is a list of such tensors, each checked by itself.
    sizes : dict
        What dimensions with a name must have.
    devices : tuple of str
        Where a tensor that is sent may lie; empty: anywhere.
    layout : str
        ``contiguous``: it is sent as it lies, never made contiguous by a copy. Empty: it may be.
    """

    __slots__ = ("devices", "dims", "dtypes", "is_list", "layout", "optional", "sizes")

    def __init__(
        self,
        dims: Sequence[str | int],
        dtypes: tuple[str, ...],
        optional: bool = False,
        is_list: bool = False,
        devices: tuple[str, ...] = (),
        layout: str = "",
    ) -> None:
        words = [str(dim).partition("=") if type(dim) is str else (dim, "", "") for dim in dims]
        self.dims: tuple[str | int, ...] = tuple(word for word, _, _ in words)
        self.sizes: dict[str, int] = {str(w): int(size) for w, _, size in words if size}
        self.dtypes = dtypes
        self.optional = optional
        self.is_list = is_list
        self.devices = devices
        self.layout = layout

    def words(self) -> list[str | int]:
        """Return the dimensions as declared, sizes of named ones included."""
        return [f"{d}={self.sizes[d]}" if d in self.sizes else d for d in self.dims]

    def changed(self, optional: bool = False, is_list: bool = False) -> TensorSpec:
        """Return the same declaration as an optional field or a list."""
        return TensorSpec(self.words(), self.dtypes, optional, is_list, self.devices, self.layout)

    def as_list(self) -> TensorSpec:
        """Return the declaration of a list of these; a list has no absent items."""
        if self.optional or self.is_list:
            raise TypeMismatchError(
                f"list[{self!r}]: the items of a list of tensors cannot be absent or lists"
            )
        return self.changed(is_list=True)

    def __or__(self, other: Any) -> TensorSpec:
        if other is None or other is type(None):
            return self.changed(optional=True)
        return NotImplemented

    __ror__ = __or__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorSpec) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        dims = " ".join(str(dim) for dim in self.words())
        place = " ".join(filter(None, (" | ".join(self.devices), self.layout)))
        place = f', "{place}"' if place else ""
        text = f'Tensor["{dims}", "{" | ".join(self.dtypes)}"{place}]'
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
            wanted = self.sizes.get(dim) if type(dim) is str else dim
            if wanted is not None and wanted != size:
                raise TypeMismatchError(
                    f"field {field!r} has shape {list(shape)}, declared {self!r}: {size} where {wanted} must be",
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

    ``Tensor["tokens heads dim=64", "bf16 | f32"]``: dimensions by name (equal within one message where the name is
    the same; ``_`` is never compared), by name and size, by size, or ``...`` for any rank; then the dtypes allowed,
    default all: f32, f16, bf16, i8, u8, i32, i64, bool, f8_e4m3, f8_e5m2. A third text constrains what is sent:
    devices (``"cpu"``, ``"cuda"``, ``"cpu | cuda"``) and ``contiguous``, which refuses what would be copied to make it
    so. ``| None`` makes the field optional; ``list[Tensor[...]]`` is a list of tensors, together at most
    `limits.TENSORS_PER_MESSAGE_MAX` a message.
    """

    def __class_getitem__(cls, item: Any) -> TensorSpec:
        words = item if isinstance(item, tuple) else (item,)
        if not 1 <= len(words) <= 3 or not all(isinstance(word, str) for word in words):
            raise TypeMismatchError(
                f'write Tensor["tokens dim", "f32 | bf16"], not Tensor[{item!r}]'
            )
        dtypes = words[1] if len(words) > 1 else " | ".join(DTYPE_CODES)
        devices, layout = _parse_place(words[2] if len(words) > 2 else "")
        return TensorSpec(
            parse_dims(words[0]), _parse_dtypes(dtypes), devices=devices, layout=layout
        )


def parse_dims(text: str) -> tuple[str | int, ...]:
    """Return the dimensions of a declaration; raises `TypeMismatchError` on what is none."""
    dims = tuple(int(word) if word.isdecimal() else word for word in text.split())
    for dim in dims:
        if isinstance(dim, str) and dim != "..." and not _DIM.match(dim):
            raise TypeMismatchError(
                f"dimension {dim!r} in {text!r} is neither a name, name=size, a size nor ..."
            )
    if dims.count("...") > 1:
        raise TypeMismatchError(f"more than one ... in the dimensions {text!r}")
    if len(dims) > limits.TENSOR_RANK_MAX:
        raise TypeMismatchError(
            f"{len(dims)} dimensions, TENSOR_RANK_MAX is {limits.TENSOR_RANK_MAX}"
        )
    sizes: dict[str, str] = {}
    for word, _, size in (str(dim).partition("=") for dim in dims):
        if size and sizes.setdefault(word, size) != size:
            raise TypeMismatchError(f"dimension {word!r} in {text!r} has two sizes")
    return dims


def _parse_place(text: str) -> tuple[tuple[str, ...], str]:
    """Return (devices, layout) of the third part of a declaration."""
    words = text.replace("|", " ").split()
    unknown = [word for word in words if word not in DEVICES and word != CONTIGUOUS]
    if unknown:
        raise TypeMismatchError(
            f"{unknown[0]!r} in {text!r} is no device ({', '.join(DEVICES)}) and no layout ({CONTIGUOUS})"
        )
    devices = tuple(dict.fromkeys(word for word in words if word in DEVICES))
    return devices, CONTIGUOUS if CONTIGUOUS in words else ""


def _parse_dtypes(text: str) -> tuple[str, ...]:
    names = tuple(word.strip() for word in text.split("|"))
    for name in names:
        if name not in DTYPE_CODES:
            raise TypeMismatchError(f"dtype {name!r} is unknown; use {', '.join(DTYPE_CODES)}")
    return tuple(sorted(set(names), key=names.index))
