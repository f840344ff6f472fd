"""The asyncio faces of requests: asking, answering and scattering. See `fabric.aio`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Generic, TypeVar

from fabric import errors
from fabric.dataplane import client
from fabric.dataplane import requester as sync_requester
from fabric.dataplane import responder as sync_responder
from fabric.dataplane import scatter as sync_scatter
from fabric.dataplane.aio_wait import Waiter, send_when_possible
from fabric.dataplane.calls import Call
from fabric.dataplane.deadlines import absolute_ns, monotonic_ns
from fabric.dataplane.sender import as_key

M = TypeVar("M")
R = TypeVar("R")


class Requester(Generic[M, R]):
    """Asyncio face of `fabric.Requester`; `sync` is the endpoint itself."""

    def __init__(self, requester: sync_requester.Requester[M, R], waiter: Waiter) -> None:
        self.sync = requester
        self._waiter = waiter

    async def call(
        self, message: M, key: str | bytes | None = None, deadline: float | None = None
    ) -> Any:
        """See `fabric.Requester.call`; cancelling the task cancels the request."""
        stream = self.stream(message, key, deadline)
        try:
            async for reply in stream:
                return reply
        finally:
            await stream.aclose()
        raise errors.RemoteError(
            f"channel {self.sync.channel!r}: the responder answered with an empty stream"
        )

    async def stream(
        self, message: M, key: str | bytes | None = None, deadline: float | None = None
    ) -> Any:
        """See `fabric.Requester.stream`; an asynchronous generator, closing it cancels the request."""
        seconds = self.sync.sender.deadline_s if deadline is None else deadline
        call = Call(self.sync.next_correlation(), absolute_ns(seconds) or monotonic_ns())
        self.sync.register(call)
        try:
            meta, tensors = self.sync.sender.type.encode(message)
            key_bytes = as_key(key)
            call.preferred = await self._preferred(message, key_bytes, meta, tensors)

            def send(_: int) -> int:
                self.sync.send_request(call, meta, tensors, key_bytes, 0, may_provide=False)
                return 0

            await send_when_possible(self.sync.sender, self._waiter, send, 0, call.deadline_ns)
            while True:
                done, reply = await self._waiter.until(
                    lambda: self._attempt(call), call.deadline_ns
                )
                if not done:
                    self.sync.expire(call)
                if reply is None:
                    return
                yield reply
        finally:
            self.sync.finish(call)

    async def _preferred(
        self, message: M, key: bytes | None, meta: bytes, tensors: list[Any]
    ) -> int:
        """Return the flow that the policy prefers; a policy in Python is asked beside the loop."""
        sender = self.sync.sender
        if sender.has_policy and not (pinned := sender.pinned(key)):
            return int(await asyncio.to_thread(sender.preferred, message, key, meta, tensors))
        return pinned if sender.has_policy else sender.preferred(message, key, meta, tensors)

    def cancel(self, correlation: int) -> None:
        """See `fabric.Requester.cancel`."""
        self.sync.cancel(correlation)
        self._waiter.wake()

    async def close(self) -> None:
        """See `fabric.Requester.close`."""
        await asyncio.to_thread(self.sync.close)
        self._waiter.wake()

    def _attempt(self, call: Call) -> tuple[bool, Any]:
        others = False
        while True:
            found, reply = self.sync.take_from(call)
            if not found and self.sync.take_ready():
                others = True
                continue
            if not found and call.lost is not None:
                self.sync.fail_if_lost(call)
                continue
            if others:
                self._waiter.wake()
            return found, reply

    async def __aenter__(self) -> Requester[M, R]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Request(Generic[M, R]):
    """Asyncio face of `fabric.Request`; `sync` is the request itself."""

    def __init__(self, request: sync_responder.Request[M, R], waiter: Waiter) -> None:
        self.sync = request
        self.message: M = request.message
        self._waiter = waiter

    @property
    def cancelled(self) -> bool:
        """See `fabric.Request.cancelled`."""
        return self.sync.cancelled

    async def reply(self, message: R) -> None:
        """See `fabric.Request.reply`."""
        await self._transmit(lambda: self.sync.reply(message, may_wait=False))

    async def send(self, message: R) -> None:
        """See `fabric.Request.send`."""
        await self._transmit(lambda: self.sync.send(message, may_wait=False))

    async def end(self) -> None:
        """See `fabric.Request.end`."""
        await self._transmit(lambda: self.sync.end(may_wait=False))

    async def stream(self, messages: AsyncIterator[R]) -> int:
        """Send every message as a streamed reply, then end it; see `fabric.Request.stream`."""
        count = 0
        async for message in messages:
            await self.send(message)
            count += 1
        await self.end()
        return count

    async def fail(self, error: BaseException) -> None:
        """See `fabric.Request.fail`."""
        await asyncio.to_thread(self.sync.fail, error)

    async def _transmit(self, part: Callable[[], None]) -> None:
        def send(_: int) -> int:
            part()
            return 0

        deadline_ns = self.sync.deadline_ns or absolute_ns(None)
        await send_when_possible(self.sync.responder.replies, self._waiter, send, 0, deadline_ns)


class Responder(Generic[M, R]):
    """Asyncio face of `fabric.Responder`; ``async for request in responder``. `sync` is the endpoint itself."""

    def __init__(
        self, responder: sync_responder.Responder[M, R], waiter: Waiter, port: client.Port
    ) -> None:
        self.sync = responder
        self._waiter = waiter
        self._port = port

    async def receive(self, timeout: float | None = None) -> Request[M, R] | None:
        """See `fabric.Responder.receive`."""

        def attempt() -> tuple[bool, Any]:
            request = self.sync.receive_until(0)
            return request is not None, request

        _, request = await self._waiter.until(attempt, absolute_ns(timeout))
        return None if request is None else Request(request, self._waiter)

    async def close(self) -> None:
        """See `fabric.Responder.close`."""
        await asyncio.to_thread(self.sync.close)
        self._waiter.wake()

    def __aiter__(self) -> AsyncIterator[Request[M, R]]:
        return self

    async def __anext__(self) -> Request[M, R]:
        while True:
            try:
                request = await self.receive()
            except errors.ClosedError:
                if self.sync.is_closed or self._port.is_closed:
                    raise StopAsyncIteration from None
                raise
            if request is not None:
                return request

    async def __aenter__(self) -> Responder[M, R]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Scatterer(Generic[M, R]):
    """Asyncio face of `fabric.Scatterer`; `sync` is the endpoint itself."""

    def __init__(self, scatterer: sync_scatter.Scatterer[M, R], waiter: Waiter) -> None:
        self.sync = scatterer
        self._waiter = waiter

    async def call(
        self,
        message: M,
        index: Any,
        targets: Sequence[int] | None = None,
        deadline: float | None = None,
    ) -> R:
        """See `fabric.Scatterer.call`; cancelling the task cancels every part."""
        state = self.sync.start(deadline)
        requester = self.sync.requester

        def attempt() -> tuple[bool, Exception | None]:
            try:
                if not state.parts and not state.begin(message, index, targets):
                    return False, None
                done = state.step()
                while not done and requester.take_ready():
                    done = state.step()
                for call in state.calls:
                    requester.fail_if_lost(call)
                return done or state.step(), None
            except requester.need_segment as need:
                return True, need

        try:
            while True:
                done, need = await self._waiter.until(attempt, state.deadline_ns)
                if not done:
                    raise state.expire()
                if need is None:
                    return self.sync.gather(state)
                await asyncio.to_thread(requester.sender.provide, need, state.deadline_ns)
        finally:
            state.close()
            self._waiter.wake()

    def targets(self) -> list[int]:
        """See `fabric.Scatterer.targets`."""
        return self.sync.targets()

    async def close(self) -> None:
        """See `fabric.Scatterer.close`."""
        await asyncio.to_thread(self.sync.close)
        self._waiter.wake()

    async def __aenter__(self) -> Scatterer[M, R]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
