"""Prefill: run prompts through the model and stream each layer's KV while later layers compute.

Compute happens on the handler's thread of `prompts`. A second thread copies KV straight into arena slots and
sends it, so waiting for credit does not stop compute until `SEND_QUEUE_LAYERS` pieces wait. A prompt is
acknowledged after its last message was accepted: a crash before that has it redelivered, and the new run
carries another `attempt`. A cancelled prompt stops at its next layer.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

import fabric
from fabric.errors import DeadlineExceeded, FabricError

from .kv import capture_cache
from .limits import FORGOTTEN_REQUESTS_MAX, PROMPT_TOKENS_MAX, SEND_QUEUE_LAYERS, SEND_TIMEOUT_S
from .model import load_model, prepare_model
from .recent import RecentSet
from .tensors import TORCH_DTYPES, copy_to_slot
from .types import Cancel, KVLayer, Prefilled, Prompt

log = logging.getLogger("fabric_modules.prefill")
_DELIVERED = 1  # End::delivered of the sender's counts


class PromptCancelledError(Exception):
    """The prompt being computed was cancelled."""


@dataclass(slots=True)
class Run:
    """One run of one prompt: what was sent for it, and what of that was acknowledged in time."""

    request: str
    tokens: int
    attempt: int = field(default_factory=lambda: secrets.randbits(62))
    cancelled: bool = False
    failure: str = ""
    pieces: list[tuple[int, int]] = field(
        default_factory=list
    )  # (sequence, bytes), by the sender thread
    planned_bytes: int = 0
    hidden_bytes: int = 0
    started_ns: int = field(default_factory=time.monotonic_ns)

    def sent_bytes(self, upto: int) -> int:
        """Bytes of this run in messages with a sequence of at most `upto`."""
        return sum(size for sequence, size in self.pieces if sequence <= upto)


def compute_prompt(
    model: Any,
    tokens: torch.Tensor,
    publish: Callable[[int, int, torch.Tensor, torch.Tensor], None],
    on_last_layer: Callable[[], None],
    chunk: int = 0,
) -> int:
    """Run a prompt and return the greedy first token.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Llama-shaped: decoder layers in `model.model.layers`.
    tokens : torch.Tensor
        int64[tokens].
    publish : callable
        Called with (layer, offset, k, v) as soon as a layer's keys and values exist.
    on_last_layer : callable
        Called when the last decoder layer returned for the last chunk.
    chunk : int, default 0
        Tokens per forward pass; 0 takes the prompt whole.
    """
    layers = model.model.layers
    cache = capture_cache(len(layers), publish)
    parts = tokens.split(chunk) if chunk else (tokens,)
    with torch.inference_mode():
        for part in parts[:-1]:
            model.model(part.unsqueeze(0), past_key_values=cache, use_cache=True)
        hook = layers[-1].register_forward_hook(lambda *_: on_last_layer())
        try:
            hidden = model.model(parts[-1].unsqueeze(0), past_key_values=cache, use_cache=True)
        finally:
            hook.remove()
        return int(model.lm_head(hidden.last_hidden_state[:, -1]).argmax(-1))


class LayerSender:
    """Sends jobs in order on its own thread; the first failure of a run ends that run."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[tuple[Run, Callable[[], None]] | None] = queue.Queue(
            SEND_QUEUE_LAYERS
        )
        self._thread = threading.Thread(target=self._work, name="kv-sender", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, run: Run, job: Callable[[], None]) -> None:
        """Queue a job of `run`.

        Raises
        ------
        DeadlineExceeded
            The queue stayed full for `SEND_TIMEOUT_S`: decode takes nothing.
        """
        try:
            self._jobs.put((run, job), timeout=SEND_TIMEOUT_S)
        except queue.Full as error:
            raise DeadlineExceeded(
                f"{SEND_QUEUE_LAYERS} KV pieces waited {SEND_TIMEOUT_S:.0f} s to be sent; is decode alive?"
            ) from error

    def close(self) -> None:
        """Send what is queued, then end the thread; waits at most `SEND_TIMEOUT_S`."""
        self._jobs.put(None, timeout=SEND_TIMEOUT_S)
        self._thread.join(SEND_TIMEOUT_S)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            run, job = item
            try:
                job()
            except FabricError as error:
                run.failure = run.failure or f"{error.code}: {error}"
                log.warning("KV of %s was not sent: %s", run.request, error)
            except Exception as error:  # one broken run must not end the thread that serves all
                run.failure = run.failure or f"{type(error).__name__}: {error}"
                log.exception("KV of %s was not sent", run.request)


class Prefill(fabric.Module):
    """Prompts in, KV out. Config: `model`, `threads` (1), `chunk` (0: whole prompt), `kv_dtype` (f32)."""

    manual_ack: ClassVar[frozenset[str]] = frozenset({"prompts"})

    prompts: fabric.In[Prompt]
    cancels: fabric.In[Cancel]
    kv: fabric.Out[KVLayer]
    prefilled: fabric.Out[Prefilled]

    def start(self) -> None:
        """Load the model."""
        self.chunk = int(self.config.get("chunk", 0))
        self.kv_name = str(self.config.get("kv_dtype", "f32"))
        self.kv_dtype = TORCH_DTYPES[self.kv_name]
        files = prepare_model(self.config.get("model", "smollm2"))
        self.model = load_model(files, int(self.config.get("threads", 1)))
        self.tokens_max = min(PROMPT_TOKENS_MAX, self.model.config.max_position_embeddings)
        self._current: Run | None = None
        self._cancelled = RecentSet(FORGOTTEN_REQUESTS_MAX)
        self._lock = threading.Lock()
        self._accepted = 0  # sequences of `kv` count accepted messages from 1; one thread sends
        self._sender = LayerSender()
        self._sender.start()
        log.info("prefill is ready: %s, %d MiB of weights", files.directory, files.size_bytes >> 20)

    def on_prompts(self, message: Any) -> None:
        """Compute one prompt; the sender thread acknowledges it when all is sent."""
        run = Run(message.request, len(message.tokens))
        with self._lock:
            run.cancelled = run.request in self._cancelled
            self._current = run
        first = -1
        try:
            first = self._compute(run, message.as_torch("tokens").clone())
        except PromptCancelledError:
            log.info("prompt %s was cancelled", run.request)
        except (FabricError, ValueError, RuntimeError) as error:
            run.failure = run.failure or f"{type(error).__name__}: {error}"
            log.exception("prompt %s failed", run.request)
        finally:
            with self._lock:
                self._current = None
        self._sender.put(run, lambda: self._finish(run, first, message))

    def on_cancels(self, message: Any) -> None:
        """Stop the named prompt at its next layer, or before it starts."""
        with self._lock:
            self._cancelled.add(message.request)
            if self._current is not None and self._current.request == message.request:
                self._current.cancelled = True

    def drain(self) -> None:
        """Send what is computed."""
        self._sender.close()

    def _compute(self, run: Run, tokens: torch.Tensor) -> int:
        if not 0 < run.tokens <= self.tokens_max:
            raise ValueError(
                f"prompt of {run.tokens} tokens; this model takes 1 to {self.tokens_max}"
            )

        def publish(layer: int, offset: int, k: torch.Tensor, v: torch.Tensor) -> None:
            if run.cancelled:
                raise PromptCancelledError(run.request)
            run.planned_bytes += (k.numel() + v.numel()) * self.kv_dtype.itemsize
            self._sender.put(run, lambda: self._send_layer(run, layer, offset, k, v))

        lost_before = self._lost_messages()

        def on_last_layer() -> None:
            upto = self.kv.native.ended_upto()
            if not run.failure and self._lost_messages() == lost_before:
                run.hidden_bytes = run.sent_bytes(upto)

        return compute_prompt(self.model, tokens, publish, on_last_layer, self.chunk)

    def _lost_messages(self) -> int:
        """KV messages that ended without decode's acknowledgement; they must not count as hidden."""
        counts = self.kv.native.counts()
        return sum(count for (end, _), count in counts.items() if end != _DELIVERED)

    def _send_layer(
        self, run: Run, layer: int, offset: int, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        if run.cancelled or run.failure:
            return
        k, v = k.transpose(0, 1), v.transpose(0, 1)
        shapes = {"k": (tuple(k.shape), self.kv_name), "v": (tuple(v.shape), self.kv_name)}
        with self.kv.loan(key=run.request, **shapes) as m:
            m.request, m.attempt, m.layer, m.offset, m.total = (
                run.request,
                run.attempt,
                layer,
                offset,
                run.tokens,
            )
            m.layers = len(self.model.model.layers)
            copy_to_slot(m.k, k)
            copy_to_slot(m.v, v)
        self._accepted += 1
        run.pieces.append((self._accepted, (k.numel() + v.numel()) * self.kv_dtype.itemsize))

    def _finish(self, run: Run, first: int, message: Any) -> None:
        try:
            if not run.cancelled:
                self.prefilled.send(
                    Prefilled(
                        request=run.request,
                        attempt=run.attempt,
                        first_token=first,
                        tokens=run.tokens,
                        kv_bytes=sum(size for _, size in run.pieces),
                        kv_messages=len(run.pieces),
                        kv_hidden_bytes=run.hidden_bytes,
                        error=run.failure,
                        prefill_us=(time.monotonic_ns() - run.started_ns) // 1000,
                    ),
                    key=run.request,
                )
        finally:
            message.ack()
