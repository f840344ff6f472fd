"""Greedy decoding in one process: what the disaggregated run is compared with, token for token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import DynamicCache


def generate(
    model: Any,
    tokens: list[int],
    max_new_tokens: int,
    eos: int = -1,
    on_token: Callable[[int], None] = lambda token: None,
) -> list[int]:
    """Return the greedy continuation of `tokens`, `eos` included when it ends there.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        As `load_model` returns it: float32.
    tokens : list of int
        The prompt, in one forward pass.
    max_new_tokens : int
        At least 1.
    eos : int, default -1
        Token that ends the answer; -1 for none.
    on_token : callable, optional
        Told each token.
    """
    cache = DynamicCache(config=model.config)
    result: list[int] = []
    step = torch.tensor([tokens])
    with torch.inference_mode():
        while True:
            hidden = model.model(step, past_key_values=cache, use_cache=True).last_hidden_state
            token = int(model.lm_head(hidden[:, -1]).argmax(-1))
            result.append(token)
            on_token(token)
            if token == eos or len(result) >= max_new_tokens:
                return result
            step = torch.tensor([[token]])
