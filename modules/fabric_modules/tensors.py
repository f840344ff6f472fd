"""Between message tensors and torch, without a copy where memory allows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

TORCH_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def torch_view(view: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a tensor over a received view; valid only while the message is held.

    bf16 arrives as 16-bit integers, because numpy has no such type; `dtype` names what they are.
    """
    if isinstance(view, torch.Tensor):
        return view
    array = np.asarray(view)
    if not array.flags.writeable:  # torch has no read-only tensors; nothing here writes to one
        pointer = array.__array_interface__ | {"data": (array.__array_interface__["data"][0], False)}
        array = np.asarray(_Writable(pointer, array))
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if dtype is not None and tensor.dtype != dtype else tensor


def copy_to_slot(slot: Any, tensor: torch.Tensor) -> None:
    """Copy and convert `tensor` into a writable slot view of the same shape."""
    target = slot if isinstance(slot, torch.Tensor) else torch.from_numpy(np.asarray(slot))
    if target.dtype in (torch.uint16, torch.int16) and tensor.dtype.is_floating_point:
        target = target.view(torch.bfloat16)
    target.copy_(tensor)


class _Writable:
    """Presents an array's memory without its read-only mark, and keeps the array alive."""

    def __init__(self, interface: dict[str, Any], owner: np.ndarray[Any, Any]) -> None:
        self.__array_interface__ = interface
        self._owner = owner
