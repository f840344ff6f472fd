"""Quantisation of torch tensors where they are, for modules that send from a GPU: half as many bytes cross to the host.

The same formulas as `fabric.kernels.quantize`; for every device that PyTorch knows. torch is imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fabric.errors import TypeMismatchError

if TYPE_CHECKING:
    import torch

#: code → largest number that it can say
LARGEST: Final = {"i8": 127.0, "f8_e4m3": 448.0, "f8_e5m2": 57344.0}
SCALE_MIN: Final = 1e-35


def quantize(
    tensor: torch.Tensor, code: str = "i8", group: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scales on the tensor's device.

    Parameters
    ----------
    tensor : torch.Tensor
        Floating point; its first dimension are rows, all others columns.
    code : {"i8", "f8_e4m3", "f8_e5m2"}
    group : int
        Neighbours in a row that share a scale, a divisor of the columns; 0: the rows of a column do.

    Returns
    -------
    codes : torch.Tensor
        int8 or the fp8 dtype, [rows, columns].
    scales : torch.Tensor
        float32[columns], or float32[rows, columns / group].

    Raises
    ------
    TypeMismatchError
        No such code, no floating-point tensor, or groups that do not divide the columns.
    """
    import torch

    if (
        code not in LARGEST
        or not tensor.is_floating_point()
        or tensor.ndim == 0
        or not tensor.numel()
    ):
        raise TypeMismatchError(
            f"quantize takes tensors of floats to {', '.join(LARGEST)}, not {tensor.dtype} of rank {tensor.ndim} "
            f"to {code!r}"
        )
    matrix = tensor.reshape(tensor.shape[0], -1).float()
    columns = matrix.shape[1]
    if group < 0 or (group and columns % group):
        raise TypeMismatchError(f"groups of {group} do not divide {columns} columns")
    grouped = matrix.reshape(len(matrix), -1, group) if group else matrix
    scales = grouped.abs().amax(dim=-1 if group else 0) / LARGEST[code]
    scales = torch.where(scales >= SCALE_MIN, scales, torch.zeros_like(scales))
    inverse = torch.where(scales > 0, 1 / scales, torch.zeros_like(scales))
    scaled = (grouped * (inverse[..., None] if group else inverse)).reshape(matrix.shape)
    if code == "i8":
        return scaled.round().to(torch.int8), scales
    kind = torch.float8_e4m3fn if code == "f8_e4m3" else torch.float8_e5m2
    return scaled.clamp(-LARGEST[code], LARGEST[code]).to(kind), scales


def dequantize(
    codes: torch.Tensor, scales: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """Return the numbers that codes and scales stand for, on their device.

    Parameters
    ----------
    codes, scales : torch.Tensor
        As `quantize` returned them.
    shape : tuple of int
        Of the tensor.
    dtype : torch.dtype
        Of the tensor.
    """
    matrix = codes.float()
    if scales.ndim == 1:
        return (matrix * scales).reshape(shape).to(dtype)
    grouped = matrix.reshape(len(matrix), scales.shape[1], -1) * scales[..., None]
    return grouped.reshape(shape).to(dtype)
