"""KV leaves prefill layer by layer and is joined on decode only when it is whole."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from fabric_modules.batching import ExactBatching, JointBatching, Row  # noqa: E402
from fabric_modules.kv import KVAssembly, capture_cache  # noqa: E402
from fabric_modules.reference import generate  # noqa: E402


def prefill(model: Any, tokens: list[int], chunk: int = 0) -> tuple[list[Any], int]:
    pieces: list[Any] = []
    cache = capture_cache(3, lambda *piece: pieces.append(piece))
    ids = torch.tensor(tokens)
    with torch.inference_mode():
        for part in ids.split(chunk) if chunk else (ids,):
            logits = model(part.unsqueeze(0), past_key_values=cache, use_cache=True).logits
    return pieces, int(logits[0, -1].argmax())


def assemble(pieces: list[Any], total: int, room: int) -> KVAssembly:
    assembly = KVAssembly(3, total, room)
    for layer, offset, k, v in reversed(pieces):
        assembly.place(layer, offset, k.transpose(0, 1), v.transpose(0, 1))
    return assembly


def decode(model: Any, batching: Any, prompts: list[list[int]], count: int) -> list[list[int]]:
    rows, answers = [], {}
    for tokens in prompts:
        pieces, first = prefill(model, tokens)
        row = Row(assemble(pieces, len(tokens), count).cache(), first, len(tokens))
        rows.append(row)
        answers[id(row)] = [first]
    for step in range(count - 1):
        active = rows if step % 4 else rows[: max(1, len(rows) - 1)]
        for row, token in batching.step(active):
            row.token = token
            answers[id(row)].append(token)
    return [answers[id(row)] for row in rows]


def test_every_layer_is_published_once_in_layer_order(
    tiny_model: Any, prompts: list[list[int]]
) -> None:
    pieces, _ = prefill(tiny_model, prompts[1])
    assert [(layer, offset) for layer, offset, _, _ in pieces] == [(0, 0), (1, 0), (2, 0)]


def test_chunked_prefill_publishes_offsets_and_the_same_first_token(
    tiny_model: Any, prompts: list[list[int]]
) -> None:
    pieces, first = prefill(tiny_model, prompts[2], chunk=16)
    assert [(layer, offset) for layer, offset, _, _ in pieces] == [
        (l, o) for o in (0, 16, 32) for l in range(3)
    ]
    assert first == prefill(tiny_model, prompts[2])[1]


def test_assembled_kv_decodes_exactly_like_one_process(
    tiny_model: Any, prompts: list[list[int]]
) -> None:
    answers = decode(tiny_model, ExactBatching(tiny_model), prompts[:1], 30)
    steps = len(answers[0])
    assert answers[0] == generate(tiny_model, prompts[0], steps)


def test_joint_batch_gives_the_tokens_of_single_runs(
    tiny_model: Any, prompts: list[list[int]]
) -> None:
    """Members come and go every fourth step, so buffers are rebuilt on the way."""
    for tokens, answer in zip(
        prompts, decode(tiny_model, JointBatching(tiny_model), prompts, 40), strict=True
    ):
        assert answer == generate(tiny_model, tokens, len(answer))


def test_keys_and_values_of_different_shapes_are_kept_apart() -> None:
    assembly = KVAssembly(2, 6, 2)
    k, v = torch.randn(2, 6, 4, 8), torch.randn(2, 6, 1, 5)
    for layer in (1, 0):
        assembly.place(layer, 0, k[layer], v[layer])
    layers = assembly.cache().layers
    for layer in (0, 1):
        assert torch.equal(layers[layer].keys[0].transpose(0, 1), k[layer])
        assert torch.equal(layers[layer].values[0].transpose(0, 1), v[layer])


def test_a_repeated_piece_changes_nothing() -> None:
    assembly = KVAssembly(1, 4, 1)
    k = torch.ones(2, 1, 2)
    assert assembly.place(0, 0, k, k)
    assert not assembly.place(0, 0, k * 5, k * 5)
    assert not assembly.complete
    assert assembly.received_bytes == 2 * k.nbytes


@pytest.mark.parametrize(("layer", "offset"), [(2, 0), (-1, 0), (0, 3), (0, -1)])
def test_a_piece_outside_the_prompt_is_refused(layer: int, offset: int) -> None:
    k = torch.ones(2, 1, 2)
    with pytest.raises(ValueError, match="does not fit"):
        KVAssembly(2, 4, 1).place(layer, offset, k, k)
    assert KVAssembly(2, 4, 1).place(1, 2, k, k)


def test_a_piece_of_another_width_is_refused() -> None:
    assembly = KVAssembly(1, 4, 1)
    assembly.place(0, 0, torch.ones(2, 1, 2), torch.ones(2, 1, 2))
    with pytest.raises(ValueError, match="in a cache of"):
        assembly.place(0, 2, torch.ones(2, 1, 3), torch.ones(2, 1, 2))
