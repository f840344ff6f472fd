"""Message types of disaggregated generation.

A client calls `generate`; decode answers with one `Token` per token. Decode asks `prompts` for a prefill, and
prefill sends one `KVLayer` per layer and chunk while it still computes, then one `Prefilled`.
`attempt` marks the messages of one run of one prompt: halves of two runs are never joined.
"""

from __future__ import annotations

import fabric


@fabric.message("llm.generate", version=1)
class Generate:
    """Ask for a greedy continuation of `tokens`; answered by a stream of `Token`."""

    request: str
    tokens: fabric.Tensor["tokens", "i64"]
    max_new_tokens: int
    eos: int  # -1: none


@fabric.message("llm.token", version=1)
class Token:
    """One generated token. The last one has `final` set and says how the prompt's KV travelled."""

    request: str
    index: int
    token: int
    final: bool
    kv_bytes: int
    kv_messages: int
    kv_hidden_bytes: int
    prefill_us: int


@fabric.message("llm.prompt", version=1)
class Prompt:
    """Ask a prefill module for the KV of `tokens`, in the context of `request`."""

    request: str
    tokens: fabric.Tensor["tokens", "i64"]


@fabric.message("llm.kv_layer", version=1)
class KVLayer:
    """Keys and values of one layer for `tokens` positions from `offset`; K and V may differ in shape."""

    request: str
    attempt: int
    layer: int
    layers: int
    offset: int
    total: int
    k: fabric.Tensor["tokens k_heads k_dim", "f32 | f16 | bf16"]
    v: fabric.Tensor["tokens v_heads v_dim", "f32 | f16 | bf16"]


@fabric.message("llm.prefilled", version=1)
class Prefilled:
    """A prompt's KV is sent. `error` is empty on success, else what happened."""

    request: str
    attempt: int
    first_token: int
    tokens: int
    kv_bytes: int
    kv_messages: int
    kv_hidden_bytes: int
    prefill_us: int
    error: str


@fabric.message("llm.cancel", version=1)
class Cancel:
    """The client gave `request` up; prefill stops at the next layer."""

    request: str
