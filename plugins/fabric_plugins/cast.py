"""Send f32 tensors in 16 bits: half of the bytes, and the receiver still gets f32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from fabric.abc.tensor_codec import Encoded, TensorContext
from fabric.abc.transform import transform
from fabric.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

TARGETS: Final = ("bf16", "f16")
ERROR_BOUND: Final = (
    2.0**-8
)  # bf16 has 8 bits of mantissa, rounded to nearest: half of that, for normal numbers


@transform(
    "cast",
    kind="codec",
    tier="edge",
    on_error="bypass",
    lossless=False,
    error_bound=ERROR_BOUND,
    dtypes=("f32",),
    max_expansion=0.5,
    time_budget_ms=10_000,
)
class Cast:
    """Round each f32 tensor to bf16 or f16; one that would lose more than 2⁻⁸, or is not finite, travels raw.

    Parameters
    ----------
    to : {"bf16", "f16"}
        bf16 keeps the range, f16 (up to 65,504, from about 6e-5) three bits more of accuracy.
    """

    def __init__(self, to: Literal["bf16", "f16"] = "bf16") -> None:
        if to not in TARGETS:
            raise ConfigError(f"cast: to={to!r}; use {' or '.join(TARGETS)}", key="to", found=to)
        self._to = to

    def encode(self, array: np.ndarray[Any, Any], ctx: TensorContext) -> Encoded | None:
        """Return the rounded numbers; None where they would not do."""
        import numpy

        narrow = narrowed(array, self._to)
        with numpy.errstate(all="ignore"):
            lost = numpy.linalg.norm((array - widened(narrow, self._to)).reshape(-1))
            allowed = ERROR_BOUND * numpy.linalg.norm(array.reshape(-1))
        if not numpy.isfinite(allowed) or not lost <= allowed:
            return None
        if not lost and not allowed and array.any():
            return None  # squares of its numbers vanish: nothing was measured
        return Encoded([narrow], {"to": self._to})

    def decode(
        self, parts: Sequence[np.ndarray[Any, Any]], ctx: TensorContext
    ) -> np.ndarray[Any, Any]:
        """Return the rounded numbers as f32; ValueError where they are more or fewer than the tensor has."""
        import numpy

        to = ctx.info.get("to")
        if len(parts) != 1 or to not in TARGETS or ctx.dtype != "f32" or parts[0].nbytes % 2:
            raise ValueError(f"cast: {len(parts)} parts as {to!r} for {ctx.dtype}")
        bits = parts[0].view(numpy.uint16 if to == "bf16" else numpy.float16)
        return widened(bits, to).reshape(ctx.shape)


def narrowed(array: np.ndarray[Any, Any], to: str) -> np.ndarray[Any, Any]:
    """Return f32 rounded to nearest even: bits of bf16 as uint16, or float16."""
    import numpy

    if to == "f16":
        with numpy.errstate(over="ignore"):
            return array.astype(numpy.float16)
    bits = array.view(numpy.uint32)
    rounding = ((bits >> 16) & 1) + numpy.uint32(0x7FFF)
    return ((bits + rounding) >> 16).astype(numpy.uint16)


def widened(bits: np.ndarray[Any, Any], to: str) -> np.ndarray[Any, Any]:
    """Return 16-bit numbers as float32."""
    import numpy

    if to == "f16":
        return bits.astype(numpy.float32)
    return (bits.astype(numpy.uint32) << 16).view(numpy.float32)
