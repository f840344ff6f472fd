"""Mixture of experts: every row goes to the replicas of its k experts, and comes back as their weighted sum.

`ExpertTopK` is the policy, where an expert lives; `top_k` the call over a scatter channel that uses the same placement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fabric.abc.route import Header, Target, route

Make = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], Any]


def place(experts: npt.NDArray[np.int64], expert_count: int, targets: int) -> npt.NDArray[np.int64]:
    """Return the target of each expert: runs of neighbouring experts, as even as can be; int64, shape of `experts`."""
    return np.asarray(experts, np.int64) * targets // expert_count


@route("expert_top_k")
class ExpertTopK:
    """Send what names an expert to the target that has it; targets are numbered by endpoint.

    Parameters
    ----------
    experts : int
        How many there are.
    field : str
        Of the message: the expert's number.
    """

    def __init__(self, experts: int = 1, field: str = "expert") -> None:
        if experts < 1:
            raise ValueError(f"{experts!r} experts: there is at least one")
        self.reads = (field,)
        self._experts = experts
        self._field = field

    def select(self, header: Header, targets: Sequence[Target]) -> Target:
        """Return the expert's target; a message without a valid expert is an error, and goes by the fallback."""
        expert = header.fields.get(self._field)
        if not isinstance(expert, int) or not 0 <= expert < self._experts:
            raise ValueError(f"{self._field} is {expert!r}, not 0 to {self._experts - 1}")
        ordered = sorted(targets, key=lambda t: t.endpoint)
        return ordered[int(place(np.asarray(expert), self._experts, len(ordered)))]


def top_k(
    scatterer: Any,
    make: Make,
    experts: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    expert_count: int,
    fields: Sequence[str],
    deadline: float | None = None,
) -> Mapping[str, npt.NDArray[Any]]:
    """Send each row to its k experts and return the sums of their answers, weighted.

    Parameters
    ----------
    scatterer : fabric.Scatterer
        Of a scatter channel whose consumers have the experts, placed by `place` in the order of `targets()`.
    make : callable
        ``(rows, experts) -> message``: the message whose row i is row ``rows[i]`` of the input, for ``experts[i]``;
        both int64, shape [rows · k].
    experts : array of int, shape [rows, k]
        From 0 to `expert_count` - 1.
    weights : array of float, shape [rows, k]
    expert_count : int
    fields : sequence of str
        Tensors of the answer, float16, float32 or float64, whose first dimension is the rows.
    deadline : float, optional
        Seconds for everything.

    Returns
    -------
    mapping of str to ndarray, shape [rows, ...]
        Sums in float32 (float64 for float64), added in ascending number of the expert, whatever the order of `experts`.

    Raises
    ------
    ValueError
        `experts` and `weights` differ in shape, or an expert's number is out of range; nothing was sent.
    PeerLostError, RemoteError, DeadlineExceeded
        As `Scatterer.call`.
    """
    chosen, shares = np.asarray(experts, np.int64), np.asarray(weights, np.float64)
    if chosen.ndim != 2 or chosen.shape != shares.shape:
        raise ValueError(f"experts {chosen.shape} and weights {shares.shape}: both are [rows, k]")
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < expert_count):
        raise ValueError(f"an expert out of 0 to {expert_count - 1}")
    order = np.argsort(chosen, axis=1, kind="stable")
    chosen = np.take_along_axis(chosen, order, 1)
    shares = np.take_along_axis(shares, order, 1)
    rows = np.repeat(np.arange(len(chosen), dtype=np.int64), chosen.shape[1])
    targets = scatterer.targets()
    index = place(chosen.ravel(), expert_count, max(len(targets), 1))
    answer = scatterer.call(
        make(rows, chosen.ravel()), index, targets=targets or None, deadline=deadline
    )
    return {name: _combined(np.asarray(getattr(answer, name)), shares) for name in fields}


def _combined(answers: npt.NDArray[Any], shares: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """Sum answers [rows · k, ...] by shares [rows, k], one expert after the other."""
    wide = np.float64 if answers.dtype == np.float64 else np.float32
    parts = answers.reshape(*shares.shape, *answers.shape[1:])
    total: npt.NDArray[Any] = np.zeros((len(shares), *answers.shape[1:]), wide)
    for expert in range(shares.shape[1]):
        share: npt.NDArray[Any] = shares[:, expert].astype(wide)
        part: npt.NDArray[Any] = parts[:, expert].astype(wide)
        total += part * share.reshape(-1, *[1] * (answers.ndim - 1))
    return total
