"""Quantisation of float tensors to 8 bits in flight: half of bf16's bytes, the loss measured and bounded per tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from fabric import kernels
from fabric.abc.tensor_codec import Encoded, TensorContext
from fabric.abc.transform import transform
from fabric.errors import ConfigError

from .tensors import columns_of, empty_tensor

if TYPE_CHECKING:
    import numpy as np

#: code → largest ``norm(x - x') / norm(x)`` of a tensor that is sent in it
BOUNDS: Final = {"i8": 0.025, "f8_e4m3": 0.04, "f8_e5m2": 0.08}
SCALES: Final = ("kv", "channel", "token", "group")
ROW_FACTOR: Final = (
    4.0  # a row (a token) may lose this many times the bound: no row is given up for the others
)
GROUP_MAX: Final = 65536


@transform(
    "quantize",
    kind="codec",
    tier="edge",
    on_error="bypass",
    lossless=False,
    error_bound=max(BOUNDS.values()),
    dtypes=kernels.NUMBERS,
    time_budget_ms=10_000,
)
class Quantize:
    """Quantise each tensor of f32, f16 or bf16; what would lose more than the bound travels raw.

    A tensor is a matrix: its first dimension are rows (tokens), all others columns (channels).

    Parameters
    ----------
    code : {"i8", "f8_e4m3", "f8_e5m2"}
        What an element becomes.
    scales : {"kv", "channel", "token", "group"}
        Elements that share a scale: a column, a row, or `group` neighbours in a row. ``kv``: columns in fields named
        in `channel_fields`, rows in others (keys have outliers in channels, values in tokens: KIVI, arXiv:2402.02750).
    group : int
        Elements of a group; also tried where `scales` would lose more than the bound.
    channel_fields : str
        Names of fields, separated by commas.
    bound : float
        Largest relative error of a tensor (norms), 0: that of the code, 0.025, 0.04 or 0.08. A row may lose
        half as much again.
    """

    def __init__(
        self,
        code: Literal["i8", "f8_e4m3", "f8_e5m2"] = "i8",
        scales: Literal["kv", "channel", "token", "group"] = "kv",
        group: int = 64,
        channel_fields: str = "k,key,keys",
        bound: float = 0.0,
    ) -> None:
        if code not in BOUNDS or scales not in SCALES or not 1 <= group <= GROUP_MAX:
            raise ConfigError(
                f"quantize: code={code!r}, scales={scales!r}, group={group}; use {', '.join(BOUNDS)}, "
                f"{', '.join(SCALES)}, and a group of 1 to {GROUP_MAX}"
            )
        if not 0 <= bound <= BOUNDS["f8_e5m2"]:
            raise ConfigError(f"quantize: bound={bound}; use 0 to {BOUNDS['f8_e5m2']}", key="bound")
        self._code, self._scales, self._group = code, scales, group
        self._channel_fields = frozenset(name.strip() for name in channel_fields.split(","))
        self._bound = bound or BOUNDS[code]

    def encode(self, array: np.ndarray[Any, Any], ctx: TensorContext) -> Encoded | None:
        """Return codes and scales; None where values are not finite or the bound cannot be kept."""
        columns = columns_of(ctx.shape)
        if array.size == 0:
            return None
        matrix = array.reshape(-1, columns)
        wanted = self._group_of(ctx, columns)
        for group in dict.fromkeys((wanted, min(self._group, columns))):
            found = kernels.quantize(matrix, ctx.dtype, self._code, group)
            if not found.is_finite:
                return None
            if found.error <= self._bound and found.worst_row_error <= ROW_FACTOR * self._bound:
                if found.codes.nbytes + found.scales.nbytes >= array.nbytes:
                    return None
                return Encoded([found.codes, found.scales], {"code": self._code, "group": group})
        return None

    def _group_of(self, ctx: TensorContext, columns: int) -> int:
        """Neighbours that share a scale, 0 for columns."""
        by = self._scales
        if by == "kv":
            by = "channel" if ctx.field.partition("[")[0] in self._channel_fields else "token"
        if by == "channel" and len(ctx.shape) > 1:
            return 0
        return columns if by == "token" and len(ctx.shape) > 1 else min(self._group, columns)

    def decode(
        self, parts: Sequence[np.ndarray[Any, Any]], ctx: TensorContext
    ) -> np.ndarray[Any, Any]:
        """Return numbers near those that were given; ValueError where codes and scales do not fit the tensor."""
        code, group = ctx.info.get("code"), ctx.info.get("group")
        if len(parts) != 2 or code not in BOUNDS or type(group) is not int or group < 0:
            raise ValueError(
                f"quantize: {len(parts)} parts of code {code!r} in groups of {group!r}"
            )
        out = empty_tensor(ctx)
        columns = columns_of(ctx.shape)
        if columns:
            kernels.dequantize(parts[0], parts[1], out.reshape(-1, columns), ctx.dtype, code, group)
        return out
