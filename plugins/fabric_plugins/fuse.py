"""Fuse an encoder's output with its prompt, in flight and once per request: what a prefill takes in is one message.

Modes (`config: {mode: …}` of the join in fabric.yaml):
- ``concatenate`` (default): the embedding's rows before the prompt's (``first: prompt``: behind);
- ``interleave``: in the place of the prompt's rows whose token is `placeholder`: one row each, as in LLaVA, or all of
  them in place of the only one;
- ``add``: row by row; an embedding of one row is added to every row;
- ``project``: rows @ weights first (`weights`: a .npy file of shape [dim of the embedding, dim of the prompt]), then
  placed as above, by `placeholder` where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import fabric
from fabric.abc.join import JoinContext
from fabric.errors import ConfigError

Array = np.ndarray[Any, Any]
MODES = ("concatenate", "interleave", "add", "project")
FROM_PROMPT, FROM_EMBEDDING = 0, 1


@fabric.message("fuse.embedding", version=1)
class Embedding:
    """What an encoder made of a picture or of sound: `rows` vectors."""

    request: str
    rows: fabric.Tensor["rows dim", "f32 | f16 | bf16"]


@fabric.message("fuse.prompt", version=1)
class Prompt:
    """A prompt's tokens and their vectors."""

    request: str
    tokens: fabric.Tensor["tokens", "i64"]
    rows: fabric.Tensor["tokens dim", "f32 | f16 | bf16"]


@fabric.message("fuse.fused", version=1)
class Fused:
    """The vectors to compute on, in order; `source` is 0 for a row of the prompt, 1 for one with the embedding."""

    request: str
    rows: fabric.Tensor["rows dim", "f32 | f16 | bf16"]
    source: fabric.Tensor["rows", "u8"]
    missing: list[str]


@fabric.join(
    "fuse", inputs={"embedding": Embedding, "prompt": Prompt}, produces=Fused, by="request"
)
class Fuse:
    """Fuses in the mode that the join's `config` names; a prompt without its embedding goes on as it is."""

    def __init__(self) -> None:
        self._place: Callable[[Array, Prompt], tuple[Array, Array]] = concatenate
        self._weights: Array | None = None

    def open(self, config: Mapping[str, Any]) -> None:
        """Take the mode; raises `ConfigError` naming the key that is wrong."""
        mode = config.get("mode", "concatenate")
        unknown = set(config) - {"mode", "placeholder", "weights", "first"}
        if mode not in MODES or unknown:
            what = f"unknown key {min(unknown)!r}" if unknown else f"mode {mode!r}"
            raise ConfigError(
                f"fuse: {what}: give mode ({', '.join(MODES)}), placeholder, weights or first",
                key="config",
            )
        placeholder, weights = config.get("placeholder"), config.get("weights")
        if (mode == "interleave") > isinstance(placeholder, int):
            raise ConfigError("fuse: interleave needs placeholder: a token's number", key="config")
        if (mode == "project") != isinstance(weights, str):
            raise ConfigError(
                "fuse: weights: FILE.npy belongs to mode project, and it needs one", key="config"
            )
        if isinstance(weights, str):
            self._weights = np.load(weights, allow_pickle=False).astype(np.float32)
        if mode == "add":
            self._place = add
        elif isinstance(placeholder, int):
            self._place = lambda rows, prompt: interleave(rows, prompt, placeholder)
        elif config.get("first") == "prompt":
            self._place = append

    def fuse(self, parts: Mapping[str, Any], ctx: JoinContext) -> Fused:
        """Return one message of both parts."""
        prompt, embedding = parts["prompt"], parts["embedding"]
        if embedding is None:
            source = np.full(len(prompt.rows), FROM_PROMPT, np.uint8)
            return Fused(prompt.request, prompt.rows, source, list(ctx.missing))
        rows = project(embedding.rows, self._weights, prompt.rows)
        if rows.shape[1] != prompt.rows.shape[1] or rows.dtype != prompt.rows.dtype:
            raise ValueError(
                f"the embedding has {rows.dtype}[{rows.shape[1]}] rows, the prompt {prompt.rows.dtype}"
                f"[{prompt.rows.shape[1]}]: use mode project, or an encoder that fits"
            )
        fused, source = self._place(rows, prompt)
        return Fused(prompt.request, fused, source, [])


def concatenate(rows: Array, prompt: Prompt) -> tuple[Array, Array]:
    """Put the embedding's rows before the prompt's."""
    return np.concatenate((rows, prompt.rows)), _sources(
        FROM_EMBEDDING, rows, FROM_PROMPT, prompt.rows
    )


def append(rows: Array, prompt: Prompt) -> tuple[Array, Array]:
    """Put the embedding's rows behind the prompt's."""
    return np.concatenate((prompt.rows, rows)), _sources(
        FROM_PROMPT, prompt.rows, FROM_EMBEDDING, rows
    )


def interleave(rows: Array, prompt: Prompt, placeholder: int) -> tuple[Array, Array]:
    """Put the embedding's rows where the prompt's token is `placeholder`; raises `ValueError` when they do not fit."""
    places = np.flatnonzero(np.asarray(prompt.tokens) == placeholder)
    if len(places) == 1:
        at = int(places[0])
        before, after = prompt.rows[:at], prompt.rows[at + 1 :]
        source = np.concatenate([
            np.full(len(part), origin, np.uint8)
            for part, origin in ((before, FROM_PROMPT), (rows, FROM_EMBEDDING), (after, FROM_PROMPT))
        ])  # fmt: skip
        return np.concatenate((before, rows, after)), source
    if len(places) != len(rows):
        raise ValueError(
            f"{len(places)} placeholders (token {placeholder}) for {len(rows)} rows: give one, or one for each row"
        )
    fused = np.array(prompt.rows)
    fused[places] = rows
    source = np.full(len(fused), FROM_PROMPT, np.uint8)
    source[places] = FROM_EMBEDDING
    return fused, source


def add(rows: Array, prompt: Prompt) -> tuple[Array, Array]:
    """Add row by row, or one row to all; raises `ValueError` when they do not fit."""
    if len(rows) not in (1, len(prompt.rows)):
        raise ValueError(
            f"{len(rows)} rows cannot be added to {len(prompt.rows)}: give as many, or one"
        )
    total = _to_f32(rows) + _to_f32(prompt.rows)
    return _like(total, prompt.rows), np.full(len(total), FROM_EMBEDDING, np.uint8)


def project(rows: Array, weights: Array | None, like: Array) -> Array:
    """Return ``rows @ weights`` in the dtype of `like`, computed in float32; the rows themselves without weights."""
    if weights is None:
        return rows
    if rows.shape[1] != weights.shape[0]:
        raise ValueError(
            f"weights of shape {weights.shape} for rows of {rows.shape[1]}: they do not fit"
        )
    return _like(_to_f32(rows) @ weights, like)


def _sources(first: int, rows: Array, second: int, more: Array) -> Array:
    return np.repeat(np.array([first, second], np.uint8), [len(rows), len(more)])


def _to_f32(array: Array) -> Array:
    """Return float32; bf16 travels as uint16, the upper half of a float32's bits."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(array, np.float32)


def _like(values: Array, like: Array) -> Array:
    """Return float32 values in the dtype of `like`, rounded to nearest, ties to even."""
    if like.dtype != np.uint16:
        return values.astype(like.dtype)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40  # rounding could make an infinity of a NaN
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
