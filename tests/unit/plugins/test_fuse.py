"""The join `fuse`: rows of an embedding and of a prompt become one message, in each mode and dtype."""

from __future__ import annotations

import numpy as np
import pytest
from fabric_plugins.fuse import Embedding, Fuse, Prompt, _like, _to_f32

from fabric.abc.join import JoinContext
from fabric.errors import ConfigError

CONTEXT = JoinContext("vision", b"r", 0)


def made(config, rows, prompt_rows, tokens=None, missing=()):
    join = Fuse()
    join.open(config)
    tokens = np.arange(len(prompt_rows)) if tokens is None else np.array(tokens)
    embedding = None if rows is None else Embedding("r", rows)
    parts = {"embedding": embedding, "prompt": Prompt("r", tokens, prompt_rows)}
    return join.fuse(parts, JoinContext("vision", b"r", 0, missing))


def f32(*rows):
    return np.array(rows, np.float32)


def bf16(array):
    return _like(np.asarray(array, np.float32), np.zeros(0, np.uint16))


@pytest.mark.parametrize(
    ("config", "rows", "source"),
    [
        ({}, [[9, 9], [1, 1], [2, 2]], [1, 0, 0]),
        ({"mode": "concatenate", "first": "prompt"}, [[1, 1], [2, 2], [9, 9]], [0, 0, 1]),
        ({"mode": "add"}, [[10, 10], [11, 11]], [1, 1]),
        ({"mode": "interleave", "placeholder": 5}, [[1, 1], [9, 9]], [0, 1]),
    ],
    ids=["concatenate", "behind", "add one to all", "interleave"],
)
def test_rows_of_both_are_placed_as_the_mode_says(config, rows, source):
    fused = made(config, f32([9, 9]), f32([1, 1], [2, 2]), [4, 5])
    assert fused.rows.tolist() == rows
    assert fused.source.tolist() == source
    assert (fused.request, fused.missing) == ("r", [])


def test_the_only_placeholder_takes_all_rows_and_several_take_one_each():
    config = {"mode": "interleave", "placeholder": 7}
    one = made(config, f32([8, 8], [9, 9]), f32([1, 1], [0, 0], [2, 2]), [1, 7, 1])
    assert one.rows[:, 0].tolist() == [1, 8, 9, 2] and one.source.tolist() == [0, 1, 1, 0]
    each = made(config, f32([8, 8], [9, 9]), f32([0, 0], [1, 1], [0, 0]), [7, 1, 7])
    assert each.rows[:, 0].tolist() == [8, 1, 9] and each.source.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"2 placeholders \(token 7\) for 3 rows"):
        made(config, f32([1, 1], [2, 2], [3, 3]), f32([0, 0], [0, 0]), [7, 7])
    with pytest.raises(ValueError, match="0 placeholders"):
        made(config, f32([1, 1]), f32([0, 0]), [1])


def test_projected_rows_have_the_prompts_dimension_and_dtype(tmp_path):
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "w.npy", weights)
    config = {"mode": "project", "weights": str(tmp_path / "w.npy")}
    fused = made(config, f32([1, 2]), np.zeros((1, 3), np.float16))
    assert fused.rows.dtype == np.float16
    assert fused.rows.tolist() == [[6, 9, 12], [0, 0, 0]]
    placed = made({**config, "placeholder": 5}, f32([1, 2]), np.zeros((2, 3), np.float32), [1, 5])
    assert placed.source.tolist() == [0, 1]
    with pytest.raises(ValueError, match="do not fit"):
        made(config, f32([1, 2, 3]), np.zeros((1, 3), np.float32))


def test_bf16_is_added_in_float32_and_rounded_to_nearest_even():
    fused = made({"mode": "add"}, bf16([[1.0, 256.0, np.inf]]), bf16([[2.0, 1.0, 1.0]]))
    assert fused.rows.dtype == np.uint16
    assert _to_f32(fused.rows).tolist() == [[3.0, 256.0, np.inf]]  # 257 lies between 256 and 258
    halves = np.array([0x3F80_8000, 0x3F81_8000], np.uint32).view(np.float32)
    assert _like(halves, np.zeros(0, np.uint16)).tolist() == [0x3F80, 0x3F82]
    assert np.isnan(_to_f32(_like(np.array([np.nan], np.float32), np.zeros(0, np.uint16))))[0]


def test_bf16_is_the_nearest_of_its_neighbours():
    values = np.random.default_rng(1).normal(size=10_000).astype(np.float32) * 1e3
    near = _to_f32(_like(values, np.zeros(0, np.uint16))).astype(np.float64)
    below = (values.view(np.uint32) & 0xFFFF_0000).view(np.float32).astype(np.float64)
    above = ((values.view(np.uint32) & 0xFFFF_0000) + 0x1_0000).view(np.float32).astype(np.float64)
    least = np.minimum(abs(values - below), abs(values - above))
    assert (abs(values - near) == least).all()


def test_a_prompt_without_its_embedding_goes_on_as_it_is():
    fused = made({"mode": "add"}, None, f32([1, 2]), missing=("embedding",))
    assert (fused.rows.tolist(), fused.source.tolist()) == ([[1, 2]], [0])
    assert fused.missing == ["embedding"]


def test_rows_that_do_not_fit_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"float32\[3\] rows, the prompt float32\[2\]"):
        made({}, f32([1, 2, 3]), f32([1, 2]))
    with pytest.raises(ValueError, match=r"float16\[2\]"):
        made({}, np.zeros((1, 2), np.float16), f32([1, 2]))
    with pytest.raises(ValueError, match="2 rows cannot be added to 3"):
        made({"mode": "add"}, f32([1, 1], [1, 1]), f32([1, 1], [1, 1], [1, 1]))


@pytest.mark.parametrize(
    "config",
    [
        {"mode": "average"},
        {"mode": "interleave"},
        {"mode": "interleave", "placeholder": "x"},
        {"mode": "project"},
        {"weights": "w.npy"},
        {"placeholdr": 5},
    ],
)
def test_a_configuration_that_cannot_be_is_refused(config):
    with pytest.raises(ConfigError, match="fuse: "):
        Fuse().open(config)
