"""One decoding step over several sequences.

`exact` runs each sequence alone, so every tensor has the shape that a single-process run gives it and results
are bit-equal. `joint` runs one padded batch: faster on wide machines, equal in practice for float32 greedy
decoding, but shapes differ from the reference. Both are used by one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache

from .kv import ReservedLayer

JOINT_ROOM_TOKENS = 64
"""Tokens a joint batch may append before its padded buffers are built again."""


@dataclass(slots=True, eq=False)
class Row:
    """What a step needs of a sequence: its cache, and the token that is not in the cache yet."""

    cache: Cache
    token: int
    length: int  # tokens in the cache


class Batching(Protocol):
    """A way to run one step."""

    def step(self, rows: Sequence[Row]) -> Iterator[tuple[Row, int]]:
        """Yield each row with its next greedy token; the cache grows by the row's old token."""


@dataclass(slots=True)
class ExactBatching:
    """Each sequence alone."""

    model: Any

    def step(self, rows: Sequence[Row]) -> Iterator[tuple[Row, int]]:
        """Run the rows one after the other."""
        for row in rows:
            with torch.inference_mode():
                logits = self.model(
                    torch.tensor([[row.token]]), past_key_values=row.cache, use_cache=True
                ).logits
            row.length += 1
            yield row, int(logits[0, -1].argmax(-1))


@dataclass(slots=True)
class JointBatching:
    """All sequences in one left-padded batch, rebuilt when its members change."""

    model: Any
    _rows: list[Row] = field(default_factory=list)
    _cache: Cache | None = None
    _width: int = 0
    _room: int = 0

    def step(self, rows: Sequence[Row]) -> Iterator[tuple[Row, int]]:
        """Run one forward pass over all rows."""
        if list(rows) != self._rows or self._room == 0:
            self._build(list(rows))
        mask = torch.zeros((len(self._rows), self._width + 1), dtype=torch.long)
        for index, row in enumerate(self._rows):
            mask[index, self._width - row.length :] = 1
        with torch.inference_mode():
            logits = self.model(
                torch.tensor([[row.token] for row in self._rows]),
                past_key_values=self._cache,
                attention_mask=mask,
                position_ids=torch.tensor([[row.length] for row in self._rows]),
                use_cache=True,
            ).logits
        self._width += 1
        self._room -= 1
        for index, row in enumerate(self._rows):
            self._store(index, row)
            yield row, int(logits[index, -1].argmax(-1))

    def _store(self, index: int, row: Row) -> None:
        """Copy the appended position into the row's own cache, which stays the truth."""
        assert self._cache is not None
        for joint, own in zip(self._cache.layers, row.cache.layers, strict=True):
            own.update(
                joint.keys[index : index + 1, :, -1:], joint.values[index : index + 1, :, -1:]
            )
        row.length += 1

    def _build(self, rows: list[Row]) -> None:
        self._rows, self._room = rows, JOINT_ROOM_TOKENS
        self._width = max(row.length for row in rows)
        layers: list[Any] = []
        for layer in range(len(rows[0].cache.layers)):
            own = [row.cache.layers[layer] for row in rows]
            keys = self._padded([item.keys for item in own])
            values = self._padded([item.values for item in own])
            layers.append(ReservedLayer(keys, values, self._width))
        self._cache = Cache(layers=layers)

    def _padded(self, parts: list[torch.Tensor]) -> torch.Tensor:
        _, heads, _, dim = parts[0].shape
        joint = parts[0].new_zeros((len(parts), heads, self._width + self._room, dim))
        for index, part in enumerate(parts):
            joint[index, :, self._width - part.shape[2] : self._width] = part[0]
        return joint


BATCHINGS: dict[str, type[ExactBatching] | type[JointBatching]] = {
    "exact": ExactBatching,
    "joint": JointBatching,
}
