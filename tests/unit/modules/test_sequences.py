"""Requests in decode: whole attempts only, one end each, and a slow client holds up nobody else."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from fabric_modules.limits import ACTIVE_SEQUENCES_MAX, KV_TIMEOUT_S, NEW_TOKENS_MAX  # noqa: E402
from fabric_modules.sequences import Produced, Sequence, Sequences  # noqa: E402

from fabric.errors import CapacityError, ClosedError, DeadlineExceeded, RemoteError  # noqa: E402

LAYERS, TOKENS = 2, 4


@dataclass
class Client:
    """Records what a client would get; `credit` tokens are taken before it would block."""

    credit: int = 1000
    gone: bool = False
    tokens: list[Produced] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    def send(self, token: Produced) -> bool:
        if self.gone:
            raise ClosedError("the client left")
        if not self.credit:
            return False
        self.credit -= 1
        self.tokens.append(token)
        return True

    def fail(self, error: Exception) -> None:
        self.errors.append(error)


def accept(table: Sequences, request: str = "r", room: int = 3, **client: Any) -> Client:
    who = Client(**client)
    table.accept(Sequence(request, TOKENS, room, -1, who, 0))
    return who


def place(
    table: Sequences, attempt: int, layer: int, value: float = 1.0, request: str = "r"
) -> None:
    k = torch.full((TOKENS, 1, 2), value)
    table.place(request, attempt, layer, 0, TOKENS, k, k, 1)


def done(table: Sequences, attempt: int, error: str = "", request: str = "r") -> None:
    table.prefilled(
        SimpleNamespace(
            request=request,
            attempt=attempt,
            first_token=9,
            error=error,
            kv_bytes=64,
            kv_messages=2,
            kv_hidden_bytes=32,
            prefill_us=5,
        ),
        1,
    )


def test_a_request_starts_when_every_layer_and_the_first_token_are_here() -> None:
    table = Sequences(LAYERS)
    client = accept(table)
    place(table, 1, 1)
    done(table, 1)
    assert not table.deliver() and not client.tokens
    place(table, 1, 0)
    table.deliver()
    assert [(t.index, t.token, t.final) for t in client.tokens] == [(0, 9, False)]


def test_halves_of_two_attempts_are_never_joined() -> None:
    table = Sequences(LAYERS)
    client = accept(table)
    place(table, 1, 0, value=1.0)
    place(table, 2, 1, value=2.0)
    done(table, 2)
    table.deliver()
    assert not client.tokens
    place(table, 2, 0, value=2.0)
    row = table.runnable() or table.deliver() or table.runnable()
    assert all(torch.all(layer.keys == 2.0) for layer in row[0].row.cache.layers)


def test_last_token_is_final_and_frees_the_request() -> None:
    table = Sequences(LAYERS)
    client = accept(table, room=2)
    place(table, 1, 0)
    place(table, 1, 1)
    done(table, 1)
    table.deliver()
    table.append(table.runnable()[0], 4, 2)
    table.deliver()
    assert [(t.token, t.final, t.kv_bytes) for t in client.tokens] == [(9, False, 0), (4, True, 64)]
    assert len(table) == 0 and table.kv_bytes() == 0


def test_a_client_without_credit_stops_only_its_own_sequence() -> None:
    table = Sequences(LAYERS)
    slow, quick = accept(table, "slow", credit=0), accept(table, "quick")
    for request in ("slow", "quick"):
        for layer in range(LAYERS):
            place(table, 1, layer, request=request)
        done(table, 1, request=request)
    assert table.deliver() == 1
    assert [s.request for s in table.runnable()] == ["quick"]
    slow.credit = 5
    assert table.deliver() == 0
    assert [s.request for s in table.runnable()] == ["slow", "quick"]
    assert len(quick.tokens) == len(slow.tokens) == 1


def test_cancel_frees_kv_and_late_pieces_are_dropped() -> None:
    table = Sequences(LAYERS)
    accept(table)
    place(table, 1, 0)
    assert table.kv_bytes() > 0
    assert table.cancel("r") and not table.cancel("r")
    place(table, 1, 1)
    assert table.kv_bytes() == 0 and table.dropped_pieces == 1


def test_a_client_that_left_ends_its_request() -> None:
    table = Sequences(LAYERS)
    accept(table, gone=True)
    place(table, 1, 0)
    place(table, 1, 1)
    done(table, 1)
    table.deliver()
    assert len(table) == 0


def test_failed_prefill_is_reported_to_the_client() -> None:
    table = Sequences(LAYERS)
    client = accept(table)
    done(table, 1, error="too long")
    assert isinstance(client.errors[0], RemoteError) and len(table) == 0


def test_kv_of_another_prompt_length_ends_the_request_with_an_error() -> None:
    table = Sequences(LAYERS)
    client = accept(table)
    k = torch.ones(TOKENS + 1, 1, 2)
    table.place("r", 1, 0, 0, TOKENS + 1, k, k, 1)
    assert "the prompt has 4" in str(client.errors[0])


def test_a_request_without_progress_ends_at_its_deadline() -> None:
    table = Sequences(LAYERS)
    client = accept(table)
    assert table.expire(int(KV_TIMEOUT_S * 1e9)) == []
    assert table.expire(int(KV_TIMEOUT_S * 1e9) + 1) == ["r"]
    assert isinstance(client.errors[0], DeadlineExceeded)


def test_limits_are_typed_refusals() -> None:
    table = Sequences(LAYERS)
    for index in range(ACTIVE_SEQUENCES_MAX):
        accept(table, str(index))
    cases = (
        ("new", 3, "are active"),
        ("0", 3, "served already"),
        ("x", NEW_TOKENS_MAX + 1, "new ones"),
    )
    for request, room, reason in cases:
        with pytest.raises(CapacityError, match=reason):
            accept(table, request, room)
