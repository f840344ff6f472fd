"""The requests that decode works on: KV assembly, tokens to come, tokens to deliver.

No channels and no model: callers give it messages and `now`, so it runs the same in a test. Receiving threads
and the decoding thread share it under `Sequences.changed`. A request leaves the table exactly once: finished,
failed or cancelled, and its KV is freed with it.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from fabric.errors import CapacityError, DeadlineExceeded, FabricError, RemoteError

from .batching import Row
from .kv import KVAssembly
from .limits import (
    ACTIVE_SEQUENCES_MAX,
    ATTEMPTS_PER_REQUEST_MAX,
    KV_TIMEOUT_S,
    NEW_TOKENS_MAX,
    PROMPT_TOKENS_MAX,
)


class ReplyTo(Protocol):
    """Where the tokens of one request go."""

    def send(self, token: Produced) -> bool:
        """Deliver without waiting; False when there is no credit. Raises FabricError when the client is gone."""

    def fail(self, error: Exception) -> None:
        """End the request with an error; never raises."""

    @property
    def abandoned(self) -> bool:
        """The client cancelled, or is gone."""


@dataclass(frozen=True, slots=True)
class Produced:
    """A token on its way to the client."""

    request: str
    index: int
    token: int
    final: bool
    kv_bytes: int = 0
    kv_messages: int = 0
    kv_hidden_bytes: int = 0
    prefill_us: int = 0


@dataclass(slots=True, eq=False)
class Sequence:
    """One request from acceptance to its end."""

    request: str
    prompt_tokens: int
    max_new_tokens: int
    eos: int
    reply: ReplyTo
    progress_ns: int
    attempts: dict[int, KVAssembly] = field(default_factory=dict)
    prefilled: dict[int, Any] = field(default_factory=dict)
    row: Row | None = None
    summary: Any = None
    produced: int = 0
    finished: bool = False
    outbox: deque[Produced] = field(default_factory=deque)

    @property
    def runnable(self) -> bool:
        """KV is here, tokens are wanted, and the client keeps up."""
        return self.row is not None and not self.finished and not self.outbox


class Sequences:
    """Table of the requests in work.

    Parameters
    ----------
    layers : int
        Decoder layers; a request is ready when each has the KV of every prompt token.
    dtype : torch.dtype, optional
        What the model computes in.
    """

    def __init__(self, layers: int, dtype: torch.dtype | None = None) -> None:
        self._layers = layers
        self._dtype = dtype
        self._table: dict[str, Sequence] = {}
        self.changed = threading.Condition()
        self.dropped_pieces = 0
        self._abandoned: list[str] = []

    def __len__(self) -> int:
        return len(self._table)

    def kv_bytes(self) -> int:
        """Bytes of KV held, reserved room not counted."""
        with self.changed:
            return sum(a.received_bytes for s in self._table.values() for a in s.attempts.values())

    def accept(self, sequence: Sequence) -> None:
        """Take a request on.

        Raises
        ------
        CapacityError
            Too many requests, or one that asks for too much.
        """
        if (
            not 0 < sequence.max_new_tokens <= NEW_TOKENS_MAX
            or not 0 < sequence.prompt_tokens <= PROMPT_TOKENS_MAX
        ):
            raise CapacityError(
                f"request {sequence.request}: {sequence.prompt_tokens} prompt tokens (1 to {PROMPT_TOKENS_MAX}) and "
                f"{sequence.max_new_tokens} new ones (1 to {NEW_TOKENS_MAX})"
            )
        with self.changed:
            if sequence.request in self._table:
                raise CapacityError(
                    f"request {sequence.request} is being served already; use another id"
                )
            if len(self._table) >= ACTIVE_SEQUENCES_MAX:
                raise CapacityError(
                    f"{ACTIVE_SEQUENCES_MAX} sequences are active (ACTIVE_SEQUENCES_MAX); try later"
                )
            self._table[sequence.request] = sequence

    def place(
        self,
        request: str,
        attempt: int,
        layer: int,
        offset: int,
        total: int,
        k: torch.Tensor,
        v: torch.Tensor,
        now_ns: int,
    ) -> None:
        """Copy one KV piece in; pieces of unknown, ended or decoding requests are dropped and counted."""
        with self.changed:
            sequence = self._table.get(request)
            if sequence is None or sequence.row is not None:
                self.dropped_pieces += 1
                return
            try:
                assembly = self._assembly(sequence, attempt, total)
                assembly.place(layer, offset, k, v)
            except ValueError as error:
                self._end(sequence, error)
                return
            sequence.progress_ns = now_ns
            self._activate(sequence, attempt)

    def prefilled(self, done: Any, now_ns: int) -> None:
        """Note that an attempt is sent completely, or failed."""
        with self.changed:
            sequence = self._table.get(done.request)
            if sequence is None or sequence.row is not None:
                return
            if done.error:
                self._end(sequence, RemoteError(f"prefill of {done.request} failed: {done.error}"))
                return
            sequence.prefilled[done.attempt] = done
            while len(sequence.prefilled) > ATTEMPTS_PER_REQUEST_MAX:
                sequence.prefilled.pop(next(iter(sequence.prefilled)))
            sequence.progress_ns = now_ns
            self._activate(sequence, done.attempt)

    def cancel(self, request: str) -> bool:
        """Forget a request and free its KV; false when there is none."""
        with self.changed:
            return self._remove(request) is not None

    def append(self, sequence: Sequence, token: int, now_ns: int) -> None:
        """Record the next token of a sequence."""
        with self.changed:
            if self._table.get(sequence.request) is sequence:
                self._append(sequence, token, now_ns)

    def runnable(self) -> list[Sequence]:
        """Return the sequences that a step should advance, oldest first."""
        with self.changed:
            return [sequence for sequence in self._table.values() if sequence.runnable]

    def has_runnable(self) -> bool:
        """Is there work? Call it with `changed` held."""
        return any(sequence.runnable for sequence in self._table.values())

    def all(self) -> list[Sequence]:
        """Return every request in work, oldest first."""
        with self.changed:
            return list(self._table.values())

    def take_abandoned(self) -> list[str]:
        """Return and forget the requests whose client turned out to be gone at delivery."""
        with self.changed:
            gone, self._abandoned = self._abandoned, []
            return gone

    def deliver(self) -> int:
        """Hand waiting tokens to their clients without waiting; returns how many sequences wait for credit."""
        with self.changed:
            waiting = [sequence for sequence in self._table.values() if sequence.outbox]
        stuck = 0
        for sequence in waiting:
            stuck += not self._deliver(sequence)
        return stuck

    def expire(self, now_ns: int) -> list[str]:
        """End requests without progress for `KV_TIMEOUT_S`; returns their ids."""
        with self.changed:
            late = [s for s in self._table.values() if now_ns - s.progress_ns > KV_TIMEOUT_S * 1e9]
            for sequence in late:
                what = "its KV" if sequence.row is None else "the client to take its tokens"
                self._end(
                    sequence,
                    DeadlineExceeded(
                        f"request {sequence.request} waited {KV_TIMEOUT_S:.0f} s for {what}"
                    ),
                )
            return [sequence.request for sequence in late]

    def _deliver(self, sequence: Sequence) -> bool:
        try:
            while sequence.outbox:
                if not sequence.reply.send(sequence.outbox[0]):
                    return False
                sequence.outbox.popleft()
        except FabricError:
            with self.changed:
                if self._remove(sequence.request) is not None:
                    self._abandoned.append(sequence.request)
            return True
        if sequence.finished:
            self.cancel(sequence.request)
        return True

    def _assembly(self, sequence: Sequence, attempt: int, total: int) -> KVAssembly:
        if total != sequence.prompt_tokens:
            raise ValueError(f"KV for {total} tokens; the prompt has {sequence.prompt_tokens}")
        assembly = sequence.attempts.get(attempt)
        if assembly is None:
            while len(sequence.attempts) >= ATTEMPTS_PER_REQUEST_MAX:
                sequence.attempts.pop(next(iter(sequence.attempts)))
            assembly = KVAssembly(self._layers, total, sequence.max_new_tokens, self._dtype)
            sequence.attempts[attempt] = assembly
        return assembly

    def _activate(self, sequence: Sequence, attempt: int) -> None:
        """Start decoding when this attempt is whole; other attempts are freed."""
        assembly, done = sequence.attempts.get(attempt), sequence.prefilled.get(attempt)
        if assembly is None or done is None or not assembly.complete:
            return
        sequence.row = Row(assembly.cache(), done.first_token, sequence.prompt_tokens)
        sequence.summary = done
        sequence.attempts = {attempt: assembly}
        sequence.prefilled.clear()
        self._append(sequence, done.first_token, sequence.progress_ns)
        self.changed.notify_all()

    def _append(self, sequence: Sequence, token: int, now_ns: int) -> None:
        assert sequence.row is not None
        sequence.row.token = token
        final = token == sequence.eos or sequence.produced + 1 >= sequence.max_new_tokens
        done = sequence.summary
        facts = (
            (done.kv_bytes, done.kv_messages, done.kv_hidden_bytes, done.prefill_us)
            if final
            else ()
        )
        sequence.outbox.append(Produced(sequence.request, sequence.produced, token, final, *facts))
        sequence.produced += 1
        sequence.finished = final
        sequence.progress_ns = now_ns

    def _end(self, sequence: Sequence, error: Exception) -> None:
        if self._remove(sequence.request) is not None:
            sequence.reply.fail(error)

    def _remove(self, request: str) -> Sequence | None:
        sequence = self._table.pop(request, None)
        if sequence is not None:
            sequence.attempts.clear()
            sequence.row = None
        return sequence
