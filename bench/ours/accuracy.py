"""What quantised KV and hidden states of a model lose: subject ``bench.ours.accuracy``. The near half works; option
`compares`: what follows bf16 KV is found while it connects.

Workloads, each deterministic, so that a run after the first repeats its answer:

- ``agreement``, with `code`: ``figures {"agreement", "positions"}``. Each text in one pass, teacher-forced, every key
  and value of every layer through the codec before attention reads it. The share of positions whose most likely
  next token is the one found with bf16 KV.
- ``outliers``, with `code`: ``figures {"other_rows_error"}``. Hidden states behind each layer, one token times 25,000,
  in groups of `GROUP`; the largest relative error of the other rows of a layer, as norms.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fabric_modules.model import load_model, load_tokenizer, prepare_model
from fabric_plugins.quantize import Quantize
from transformers.cache_utils import DynamicCache

from bench.sides import ROOT
from fabric.abc.tensor_codec import TensorContext

TEXTS = ("LICENSE", "docs/SEMANTICS.md", "docs/ARCHITECTURE.md", "docs/messages.md")
TOKENS = 512  # of each text: 2,048 positions
HIDDEN_TOKENS, GROUP = 256, 64
OUTLIER = 25_000.0


Change = Callable[[torch.Tensor, str], torch.Tensor]


class ChangedCache(DynamicCache):
    """A cache that gives attention other keys and values than it was given, of one pass."""

    def __init__(self, config: Any, change: Change) -> None:
        super().__init__(config=config)
        self._change = change

    def update(self, keys: Any, values: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Return what they become."""
        return self._change(keys, "k").to(keys.dtype), self._change(values, "v").to(values.dtype)


class Accuracy:
    """The near half."""

    workloads = ("agreement", "outliers")

    def __init__(self, role: str, compares: bool) -> None:
        self._found: dict[tuple[str, str], dict[str, float]] = {}
        if role == "near":
            files = prepare_model("smollm2")
            self._model = load_model(files, threads=2)
            tokenizer = load_tokenizer(files).tokenizer
            texts = [(ROOT / name).read_text() for name in TEXTS]
            self._ids = [tokenizer.encode(t, add_special_tokens=False).ids for t in texts]
            with torch.inference_mode():
                plain = self._ids if compares else []
                self._plain = [self._tops(ids, lambda t, field: t.bfloat16()) for ids in plain]

    def agreement(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Return the share of positions that agree."""
        if role == "far":
            return {}
        key = ("agreement", order["code"])
        if key not in self._found:
            codec = Quantize(order["code"])
            same = positions = 0
            with torch.inference_mode():
                for ids, plain in zip(self._ids, self._plain, strict=True):
                    coded = self._tops(ids, lambda t, field: through(codec, t.bfloat16(), field))
                    same += int((plain == coded).sum())
                    positions += len(plain)
            self._found[key] = {"agreement": same / positions, "positions": float(positions)}
        return {"figures": self._found[key]}

    def _tops(self, ids: list[int], change: Change) -> torch.Tensor:
        """Most likely next token of every position."""
        cache = ChangedCache(self._model.config, change)
        tokens = torch.tensor([ids[:TOKENS]])
        return self._model(tokens, past_key_values=cache, use_cache=True).logits[0].argmax(-1)

    def outliers(self, role: str, order: dict[str, Any]) -> dict[str, Any]:
        """Return the largest error of rows that are no outlier."""
        if role == "far":
            return {}
        key = ("outliers", order["code"])
        if key not in self._found:
            codec, errors = Quantize(order["code"], "group", GROUP), []
            with torch.inference_mode():
                out = self._model(
                    torch.tensor([self._ids[0][:HIDDEN_TOKENS]]), output_hidden_states=True
                )
            for state in out.hidden_states:
                hidden = state[0].bfloat16()
                hidden[HIDDEN_TOKENS // 2] *= OUTLIER
                lost = (hidden.float() - through(codec, hidden, "hidden").float()).numpy()
                others = np.arange(HIDDEN_TOKENS) != HIDDEN_TOKENS // 2
                norm = np.linalg.norm(hidden.float().numpy()[others])
                errors.append(float(np.linalg.norm(lost[others]) / norm))
            self._found[key] = {"other_rows_error": max(errors)}
        return {"figures": self._found[key]}

    def close(self) -> None:
        """Nothing is held."""


def through(codec: Quantize, tensor: torch.Tensor, field: str) -> torch.Tensor:
    """Return a bf16 tensor after encoding and decoding; K and V as they travel, ``[tokens, heads, dim]``."""
    is_kv = tensor.ndim == 4
    travels = tensor[0].transpose(0, 1).contiguous() if is_kv else tensor.contiguous()
    bits = travels.view(torch.int16).numpy().view(np.uint16)
    encoded = codec.encode(bits, TensorContext("kv", field, "bf16", bits.shape))
    if encoded is None:
        raise RuntimeError(f"field {field!r} travelled raw: the bound cannot be kept")
    parts = [part.reshape(-1).view(np.uint8) for part in encoded.parts]
    back = codec.decode(parts, TensorContext("kv", field, "bf16", bits.shape, (), encoded.info))
    found = torch.from_numpy(back.view(np.int16)).view(torch.bfloat16)
    return found.transpose(0, 1)[None] if is_kv else found


def connect(role: str, folder: Path, options: dict[str, Any]) -> Accuracy:
    """Return the end."""
    return Accuracy(role, bool(options.get("compares")))
