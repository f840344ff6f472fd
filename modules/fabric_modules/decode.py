"""Decode: take requests, have them prefilled, assemble the KV that streams in, and produce tokens.

Handlers (one thread per channel) only move data into `Sequences` and acknowledge it, so prefill's sends are
taken promptly while the `run` thread computes. Tokens are delivered without waiting: a client that does not read
stops its own sequence and no other. A client that cancels or is gone frees its KV here, and prefill is told.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import Any

import fabric
from fabric.errors import CapacityError, ConfigError, DeadlineExceeded, FabricError, WouldBlock

from .batching import BATCHINGS, Batching
from .limits import IDLE_CHECK_S
from .model import load_model, prepare_model
from .sequences import Produced, Sequence, Sequences
from .types import Cancel, Generate, KVLayer, Prefilled, Prompt, Token

log = logging.getLogger("fabric_modules.decode")


class Answer:
    """Sends tokens to the client of one request as its streamed reply."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def send(self, token: Produced) -> bool:
        """Reply without waiting."""
        reply = self._request.reply if token.final else self._request.send
        try:
            reply(Token(**asdict(token)), may_wait=False)
        except (WouldBlock, DeadlineExceeded):
            return False
        return True

    def fail(self, error: Exception) -> None:
        """End the reply with an error."""
        self._request.fail(error)

    @property
    def abandoned(self) -> bool:
        """The client cancelled, or is gone."""
        return bool(self._request.cancelled)


class Decode(fabric.Module):
    """Requests in, tokens out. Config: `model`, `threads` (1), `batch` (exact | joint)."""

    generate: fabric.Serve[Generate, Token]
    kv: fabric.In[KVLayer]
    prefilled: fabric.In[Prefilled]
    prompts: fabric.Out[Prompt]
    cancels: fabric.Out[Cancel]

    def start(self) -> None:
        """Load the model."""
        kind = self.config.get("batch", "exact")
        if kind not in BATCHINGS:
            raise ConfigError(
                f"batch: {kind!r}; use {' or '.join(BATCHINGS)}", key="batch", found=kind
            )
        files = prepare_model(self.config.get("model", "smollm2"))
        self.model = load_model(files, int(self.config.get("threads", 1)))
        self.batching: Batching = BATCHINGS[kind](self.model)
        self.sequences = Sequences(len(self.model.model.layers), self.model.dtype)
        log.info("decode is ready: %s, %d MiB of weights", files.directory, files.size_bytes >> 20)

    def on_generate(self, request: Any) -> None:
        """Take a request on and ask for its prefill."""
        body = request.message
        tokens = body.as_torch("tokens").clone()
        sequence = Sequence(
            body.request,
            len(tokens),
            body.max_new_tokens,
            body.eos,
            Answer(request),
            time.monotonic_ns(),
        )
        self.sequences.accept(sequence)
        try:
            self.prompts.send(Prompt(request=body.request, tokens=tokens), key=body.request)
        except FabricError:
            self.sequences.cancel(sequence.request)
            raise
        request.release()

    def on_kv(self, message: Any) -> None:
        """Copy one KV piece out of its slot."""
        self.sequences.place(
            message.request,
            message.attempt,
            message.layer,
            message.offset,
            message.total,
            message.as_torch("k"),
            message.as_torch("v"),
            time.monotonic_ns(),
        )

    def on_prefilled(self, message: Any) -> None:
        """Start decoding once the KV is whole."""
        self.sequences.prefilled(
            Prefilled(**{name: getattr(message, name) for name in _PREFILLED_FIELDS}),
            time.monotonic_ns(),
        )

    def run(self) -> None:
        """Advance every active sequence by one token, over and over."""
        while not self.stopping.is_set() or len(self.sequences):
            self._reap()
            stuck = self.sequences.deliver()
            runnable = self.sequences.runnable()
            if not runnable:
                self._wait(stuck)
                continue
            by_row = {id(sequence.row): sequence for sequence in runnable}
            for row, token in self.batching.step([s.row for s in runnable if s.row is not None]):
                self.sequences.append(by_row[id(row)], token, time.monotonic_ns())
                self.sequences.deliver()

    def drain(self) -> None:
        """Tell the clients of unfinished requests."""
        for sequence in self.sequences.all():
            if self.sequences.cancel(sequence.request):
                sequence.reply.fail(CapacityError("the decode module is stopping; ask again"))

    def _wait(self, stuck: int) -> None:
        with self.sequences.changed:
            if not self.sequences.has_runnable():
                self.sequences.changed.wait(0.005 if stuck else IDLE_CHECK_S)

    def _reap(self) -> None:
        """End what nobody waits for any more, and what makes no progress."""
        ended = self.sequences.expire(time.monotonic_ns())
        for sequence in self.sequences.all():
            if sequence.reply.abandoned and self.sequences.cancel(sequence.request):
                ended.append(sequence.request)
        ended += self.sequences.take_abandoned()
        for request in ended:
            log.info("request %s ended early; its KV is freed", request)
            try:
                self.cancels.send(Cancel(request=request), key=request, deadline=0)
            except FabricError as error:  # prefill only does needless work
                log.info("prefill was not told that %s ended: %s", request, error)


_PREFILLED_FIELDS = (
    "request",
    "attempt",
    "first_token",
    "tokens",
    "kv_bytes",
    "kv_messages",
    "kv_hidden_bytes",
    "prefill_us",
    "error",
)
