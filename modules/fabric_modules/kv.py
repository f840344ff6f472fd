"""KV caches between transformers and the fabric: capture layers on prefill, assemble them on decode.

`CaptureCache` publishes each layer's new keys and values from inside `update`, which is the first moment they
exist. `KVAssembly` places received pieces into buffers sized for the whole answer, in the layout that
attention reads, so a piece is copied once. Not thread-safe; the module that owns them locks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from .limits import NEW_TOKENS_MAX, PROMPT_TOKENS_MAX

Publish = Callable[[int, int, torch.Tensor, torch.Tensor], None]
"""(layer, offset, k[heads, tokens, dim], v[heads, tokens, dim])."""


class CaptureLayer(DynamicLayer):
    """A growing cache layer that hands every addition to `publish` before attention uses it."""

    def __init__(self, layer: int, publish: Publish) -> None:
        super().__init__()
        self._layer = layer
        self._publish = publish

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Publish, then append as usual."""
        self._publish(self._layer, self.get_seq_length(), key_states[0], value_states[0])
        return super().update(key_states, value_states, *args, **kwargs)


def capture_cache(layers: int, publish: Publish) -> Cache:
    """Return a cache for one prompt whose layers publish what they get."""
    return Cache(layers=[CaptureLayer(layer, publish) for layer in range(layers)])


class ReservedLayer(DynamicLayer):
    """A cache layer over buffers that already have room for every token to come."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        super().__init__()
        self._all_keys = keys
        self._all_values = values
        self._length = length
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write behind the last token; returns views over everything so far."""
        end = self._length + key_states.shape[-2]
        self._all_keys[:, :, self._length : end] = key_states
        self._all_values[:, :, self._length : end] = value_states
        self._length = end
        self.keys, self.values = self._all_keys[:, :, :end], self._all_values[:, :, :end]
        return self.keys, self.values


class KVAssembly:
    """The KV of one attempt at one prompt, while its pieces arrive in any order.

    Parameters
    ----------
    layers, total : int
        Layers of the model; prompt tokens.
    room : int
        Tokens that decode may append.
    dtype : torch.dtype, optional
        What the model computes in; pieces are converted. Default: that of the first piece.
    """

    def __init__(
        self, layers: int, total: int, room: int, dtype: torch.dtype | None = None
    ) -> None:
        if not 0 < total <= PROMPT_TOKENS_MAX or not 0 <= room <= NEW_TOKENS_MAX:
            raise ValueError(
                f"prompt of {total} tokens with {room} to come: at most "
                f"{PROMPT_TOKENS_MAX} and {NEW_TOKENS_MAX}"
            )
        self.total = total
        self._room = room
        self._dtype = dtype
        self._keys: list[torch.Tensor | None] = [None] * layers
        self._values: list[torch.Tensor | None] = [None] * layers
        self._filled = [0] * layers
        self._seen: set[tuple[int, int]] = set()
        self.received_bytes = 0

    def place(self, layer: int, offset: int, k: torch.Tensor, v: torch.Tensor) -> bool:
        """Copy one piece in; k and v are [tokens, heads, dim].

        Returns
        -------
        bool
            False for a piece that was there already (a redelivery).

        Raises
        ------
        ValueError
            The piece does not fit this prompt.
        """
        tokens = k.shape[0]
        if (
            not 0 <= layer < len(self._keys)
            or offset < 0
            or offset + tokens > self.total
            or v.shape[0] != tokens
        ):
            raise ValueError(
                f"piece of layer {layer} at {offset} with {tokens} keys and {v.shape[0]} values does not fit "
                f"{len(self._keys)} layers of {self.total} tokens"
            )
        if (layer, offset) in self._seen:
            return False
        keys = self._keys[layer] = self._reserve(self._keys[layer], k)
        values = self._values[layer] = self._reserve(self._values[layer], v)
        keys[0, :, offset : offset + tokens] = k.transpose(0, 1)
        values[0, :, offset : offset + tokens] = v.transpose(0, 1)
        self._seen.add((layer, offset))
        self._filled[layer] += tokens
        self.received_bytes += k.nbytes + v.nbytes
        return True

    @property
    def complete(self) -> bool:
        """Every layer holds every token."""
        return all(filled == self.total for filled in self._filled)

    def cache(self) -> Cache:
        """Return a transformers cache over the assembled buffers; the assembly is done with."""
        layers: list[Any] = []
        for keys, values in zip(self._keys, self._values, strict=True):
            if keys is None or values is None:
                raise ValueError("the KV is not complete")
            layers.append(ReservedLayer(keys, values, self.total))
        return Cache(layers=layers)

    def _reserve(self, existing: torch.Tensor | None, piece: torch.Tensor) -> torch.Tensor:
        heads, dim, dtype = piece.shape[1], piece.shape[2], self._dtype or piece.dtype
        if existing is None:
            return torch.empty((1, heads, self.total + self._room, dim), dtype=dtype)
        if existing.shape[1] != heads or existing.shape[3] != dim or existing.dtype != dtype:
            raise ValueError(
                f"piece of shape {tuple(piece.shape)} {piece.dtype} in a cache of "
                f"{tuple(existing.shape)} {existing.dtype}"
            )
        return existing
