"""Messages of any declared type, made from a seed: random dtypes and sizes, empty, not contiguous, huge."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from fabric.messages import FieldSchema, message_type
from fabric.messages.tensor import as_fp8

SHAPES: Final = ("random", "empty", "one", "not contiguous", "huge")
HUGE_BYTES: Final = 4 << 20  # of one tensor
_SIZES: Final = (1, 2, 3, 7, 16)
_FLOATS: Final = {"f32": np.float32, "f16": np.float16}
_INTEGERS: Final = {
    "i8": np.int8,
    "u8": np.uint8,
    "i32": np.int32,
    "i64": np.int64,
    "bool": np.bool_,
}


class RandomMessages:
    """Makes messages of one class.

    Parameters
    ----------
    cls : type
        Decorated with `fabric.message`.
    seed : int
        The same seed makes the same messages.
    """

    def __init__(self, cls: type, seed: int) -> None:
        self._cls = cls
        self._type = message_type(cls)
        self._random = random.Random(seed)
        self._arrays = np.random.default_rng(seed)

    def make(self, shape: str = "random") -> Any:
        """Return one message; `shape` is one of `SHAPES` and says how its tensors are."""
        dims = {"huge": 0} if shape == "huge" else {}
        specs = {field.name: field.spec for field in self._type.tensors}
        values = {
            field.name: self._tensors(specs[field.name], shape, dims)
            if field.name in specs
            else self._scalar(field)
            for field in self._type.schema.fields
        }
        return self._cls(**values)

    def _tensors(self, spec: Any, shape: str, dims: dict[Any, int]) -> Any:
        if spec.is_list:
            return [self._tensor(spec, shape, {}) for _ in range(self._random.randrange(3))]
        return self._tensor(spec, shape, dims)

    def _tensor(self, spec: Any, shape: str, dims: dict[Any, int]) -> Any:
        dtype = self._random.choice(list(spec.dtypes))
        sizes = [self._size(dim, shape, dims, spec) for dim in spec.dims]
        if shape == "huge" and dims.get("huge") == 0:
            self._stretch(spec.dims, sizes, dims)
        if shape == "not contiguous" and len(sizes) >= 2:
            return self._array(dtype, sizes[::-1]).transpose()
        return self._array(dtype, sizes)

    def _size(self, dim: Any, shape: str, dims: dict[Any, int], spec: Any) -> int:
        fixed = getattr(spec, "sizes", None) or {}
        if isinstance(dim, int):
            return dim
        if isinstance(fixed, dict) and dim in fixed:
            return int(fixed[dim])
        if dim in ("_", "..."):
            return self._random.choice(_SIZES)
        if dim not in dims:
            dims[dim] = {"empty": 0, "one": 1}.get(shape, self._random.choice(_SIZES))
        return dims[dim]

    def _stretch(self, names: Any, sizes: list[int], dims: dict[Any, int]) -> None:
        """Let the first dimension that has a name be so long that the tensor is huge."""
        for index, name in enumerate(names):
            if isinstance(name, str) and name in dims:
                others = int(np.prod(sizes)) // max(1, sizes[index])
                dims[name] = sizes[index] = HUGE_BYTES // 4 // max(1, others)
                dims["huge"] = 1
                return

    def _array(self, dtype: str, sizes: list[int]) -> Any:
        if dtype in _FLOATS:
            return self._arrays.standard_normal(sizes).astype(_FLOATS[dtype])
        if dtype in _INTEGERS:
            return self._arrays.integers(0, 2 if dtype == "bool" else 100, sizes).astype(
                _INTEGERS[dtype]
            )
        if dtype == "bf16":
            whole = np.ascontiguousarray(self._arrays.standard_normal(sizes).astype(np.float32))
            return (whole.view(np.uint32).reshape(sizes) >> 16).astype(np.uint16)
        return as_fp8(self._arrays.integers(0, 0x70, sizes).astype(np.uint8), dtype)

    def _scalar(self, field: FieldSchema) -> Any:
        text = field.type
        if field.values:
            value = self._random.choice(field.values)
            declared = self._cls.__annotations__.get(field.name)
            return declared(value) if isinstance(declared, enum.EnumMeta) else value
        return self._of(text, field)

    def _of(self, text: str, field: FieldSchema) -> Any:
        if text.endswith(" | None"):
            return (
                None
                if self._random.random() < 0.3
                else self._of(text.removesuffix(" | None"), field)
            )
        if text.startswith("list["):
            return [self._of(text[5:-1], field) for _ in range(self._random.randrange(4))]
        if text.startswith("dict["):
            key, _, value = text[5:-1].partition(", ")
            return {
                self._of(key, field): self._of(value, field)
                for _ in range(self._random.randrange(3))
            }
        makers: dict[str, Callable[[], Any]] = {
            "str": lambda: "".join(self._random.choices("abcæ🙂 ", k=self._random.randrange(12))),
            "int": lambda: self._random.randrange(-(2**40), 2**40),
            "float": lambda: self._random.uniform(-1e6, 1e6),
            "bool": lambda: self._random.random() < 0.5,
            "bytes": lambda: self._random.randbytes(self._random.randrange(20)),
        }
        if text not in makers:
            raise ValueError(f"field {field.name!r}: the kit makes no {text}")
        return makers[text]()
