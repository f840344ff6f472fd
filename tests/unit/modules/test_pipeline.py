"""Prefill and decode over real channels of one process, on a tiny model: same tokens, cancellation, refusals."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from fabric_modules.decode import Decode  # noqa: E402
from fabric_modules.prefill import Prefill  # noqa: E402
from fabric_modules.reference import generate  # noqa: E402
from fabric_modules.types import Cancel, Generate, KVLayer, Prefilled, Prompt, Token  # noqa: E402

import fabric  # noqa: E402
from fabric.errors import CancelledRequestError, RemoteError  # noqa: E402
from fabric.testing.local import LocalFabric  # noqa: E402
from fabric.worker.host import HostSettings, ModuleHost  # noqa: E402


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


class Pipeline:
    """One prefill and one decode host on threads, and a client's requester."""

    def __init__(
        self, node: LocalFabric, model: Path, decode: dict[str, Any], prefill: dict[str, Any]
    ) -> None:
        self.ports = [
            fabric.attach(name, node.path) for name in ("client", "prefill-0", "decode-0")
        ]
        client = self.ports[0]
        client.declare("generate", Generate, reply=Token)
        client.declare("prompts", Prompt, pattern="queue", delivery="at_least_once")
        client.declare("kv", KVLayer, delivery="at_least_once", klass="bulk")
        client.declare("prefilled", Prefilled, delivery="at_least_once")
        client.declare("cancels", Cancel, pattern="queue", klass="control")
        self.hosts = [
            ModuleHost(
                port,
                cls,
                HostSettings(f"m:{cls.__name__}", port.name, {"model": str(model), **config}),
            )
            for port, cls, config in (
                (self.ports[1], Prefill, prefill),
                (self.ports[2], Decode, decode),
            )
        ]
        self.threads = [threading.Thread(target=host.serve, daemon=True) for host in self.hosts]
        for thread in self.threads:
            thread.start()
        self.requester = client.requester("generate", Generate, Token)

    @property
    def prefill(self) -> Any:
        return self.hosts[0].module

    @property
    def decode(self) -> Any:
        return self.hosts[1].module

    def stream(self, request: str, tokens: list[int], count: int) -> Iterator[Any]:
        body = Generate(request, np.array(tokens, np.int64), count, -1)
        return self.requester.stream(body, deadline=30)

    def close(self) -> None:
        for host in self.hosts:
            host.stop(grace_s=1.0)
        for thread in self.threads:
            thread.join(5)
        for port in self.ports:
            port.close()


@pytest.fixture
def pipeline(tiny_model: Any, tmp_path: Path) -> Iterator[Callable[..., Pipeline]]:
    tiny_model.save_pretrained(tmp_path / "model")
    made: list[Pipeline] = []
    with LocalFabric() as node:

        def make(
            decode: dict[str, Any] | None = None, prefill: dict[str, Any] | None = None
        ) -> Pipeline:
            made.append(Pipeline(node, tmp_path / "model", decode or {}, prefill or {}))
            return made[-1]

        yield make
        for each in made:
            each.close()


@pytest.mark.parametrize("batch", ["exact", "joint"])
def test_concurrent_answers_equal_the_single_process(
    pipeline: Callable[..., Pipeline], tiny_model: Any, prompts: list[list[int]], batch: str
) -> None:
    running = pipeline(decode={"batch": batch})
    answers: dict[int, list[int]] = {}

    def ask(index: int) -> None:
        answers[index] = [token.token for token in running.stream(f"r{index}", prompts[index], 24)]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == {i: generate(tiny_model, tokens, 24) for i, tokens in enumerate(prompts)}


def test_final_token_accounts_for_every_kv_byte(
    pipeline: Callable[..., Pipeline], prompts: list[list[int]]
) -> None:
    running = pipeline()
    last = list(running.stream("r", prompts[2], 3))[-1]
    assert last.final and last.kv_messages == 3
    assert (
        last.kv_bytes == len(prompts[2]) * 3 * 2 * 2 * 8 * 4
    )  # layers, K and V, heads, dim, float32
    assert 0 <= last.kv_hidden_bytes <= last.kv_bytes
    until(lambda: running.prefill.kv.native.ended_upto() == running.prefill._accepted == 3)


def test_chunks_and_half_width_kv_still_make_an_answer(
    pipeline: Callable[..., Pipeline], tiny_model: Any, prompts: list[list[int]]
) -> None:
    running = pipeline(prefill={"chunk": 16, "kv_dtype": "bf16"})
    tokens = list(running.stream("r", prompts[2], 4))
    assert tokens[-1].kv_messages == 9 and len(tokens) == 4
    assert tokens[-1].kv_bytes == len(prompts[2]) * 3 * 2 * 2 * 8 * 2
    assert tokens[0].token == generate(tiny_model, prompts[2], 1)[0]


def test_client_that_leaves_its_stream_frees_the_kv(
    pipeline: Callable[..., Pipeline], prompts: list[list[int]]
) -> None:
    running = pipeline()
    stream = running.stream("r", prompts[2], 200)
    next(stream)
    assert running.decode.sequences.kv_bytes() > 0
    stream.close()
    until(lambda: len(running.decode.sequences) == 0 and running.decode.sequences.kv_bytes() == 0)
    assert [t.index for t in running.stream("next", prompts[0], 3)] == [0, 1, 2]


def test_cancelled_prompt_stops_between_two_layers(
    pipeline: Callable[..., Pipeline], prompts: list[list[int]]
) -> None:
    """Prefill is held inside its first layer until it heard of the cancellation."""
    running = pipeline()
    until(lambda: hasattr(running.prefill, "model"))
    entered = threading.Event()

    def hold(*_: Any) -> None:
        entered.set()
        until(lambda: "r" in running.prefill._cancelled)

    hook = running.prefill.model.model.layers[0].register_forward_hook(hold)
    ends: list[type[Exception]] = []

    def ask() -> None:
        try:
            list(running.stream("r", prompts[1], 8))
        except CancelledRequestError as error:
            ends.append(type(error))

    threading.Thread(target=ask, daemon=True).start()
    assert entered.wait(5)
    (call,) = running.requester.in_flight()
    running.requester.cancel(call)
    until(lambda: ends == [CancelledRequestError] and len(running.decode.sequences) == 0)
    hook.remove()
    until(lambda: running.prefill._current is None)
    assert running.prefill._accepted <= 1
    assert len(list(running.stream("next", prompts[0], 3))) == 3


def test_prompt_longer_than_the_context_is_refused_by_name(
    pipeline: Callable[..., Pipeline],
) -> None:
    running = pipeline()
    with pytest.raises(RemoteError, match="takes 1 to 256"):
        list(running.stream("r", [5] * 257, 2))
    assert len(list(running.stream("fits", [5] * 256, 2))) == 2


def test_request_for_too_many_tokens_is_refused(
    pipeline: Callable[..., Pipeline], prompts: list[list[int]]
) -> None:
    running = pipeline()
    with pytest.raises(RemoteError, match="new ones"):
        list(running.stream("r", prompts[0], 1_000_000))
