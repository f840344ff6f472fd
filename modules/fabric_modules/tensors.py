"""Between message tensors and torch, without a copy where memory allows it."""

from __future__ import annotations

from typing import Any

import torch

import fabric

TORCH_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def copy_to_slot(slot: Any, tensor: torch.Tensor) -> None:
    """Copy and convert `tensor` into a writable slot view of the same shape (16-bit integers stand for bf16)."""
    fabric.as_torch(slot).copy_(tensor)
