"""The asyncio face: the same calls as `fabric`, awaited, over the same port and endpoints.

Data calls use no threads: a call that would wait arms the port's event descriptor in the loop and tries again when it
fires. Control calls (attach, open, declare, close) ask the daemon on the loop's executor. One loop per port; all
tasks of that loop may use it. Cancelling a waiting call leaves nothing behind: no message was sent, none is lost.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from fabric import errors
from fabric.dataplane import client
from fabric.dataplane import requester as sync_requester
from fabric.dataplane import responder as sync_responder
from fabric.dataplane.deadlines import absolute_ns, left_s, monotonic_ns
from fabric.dataplane.receiver import Receiver as SyncReceiver
from fabric.dataplane.sender import Sender as SyncSender
from fabric.dataplane.sender import as_key

__all__ = ["Port", "Receiver", "Request", "Requester", "Responder", "Sender", "attach"]

M = TypeVar("M")
R = TypeVar("R")
T = TypeVar("T")
_WAIT_S_MAX = 0.25  # a waiter looks again after this long, should an event be missed


@asynccontextmanager
async def attach(
    name: str, socket: str | os.PathLike[str] | None = None, *, token: str | None = None
) -> AsyncIterator[Port]:
    """Attach this process to its node; ``async with fabric.aio.attach("me") as port``. Raises like `fabric.attach`."""
    port = Port(await asyncio.to_thread(client.attach, name, socket, token=token))
    try:
        yield port
    finally:
        await port.close()


class _Waiter:
    """Waits for the port's event descriptor; any number of tasks of one loop."""

    def __init__(self, native: Any) -> None:
        self._native = native
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[None]] = set()
        self._fd = native.event_fd()
        self._loop.add_reader(self._fd, self._on_event)

    async def until(
        self, attempt: Callable[[], tuple[bool, T]], deadline_ns: int
    ) -> tuple[bool, T]:
        """Call `attempt` until it is done or the deadline is reached; returns its last answer."""
        while True:
            done, value = attempt()
            if done or not deadline_ns or monotonic_ns() >= deadline_ns:
                return done, value
            news = self._loop.create_future()
            self._waiting.add(news)
            try:
                if not self._native.arm():
                    await asyncio.sleep(0)
                    continue
                done, value = attempt()  # between the last look and arming something may have come
                if done:
                    return done, value
                await asyncio.wait([news], timeout=min(left_s(deadline_ns), _WAIT_S_MAX))
            finally:
                self._waiting.discard(news)
                news.cancel()

    def wake(self) -> None:
        """Let every waiter look again."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def close(self) -> None:
        """Stop watching."""
        self._loop.remove_reader(self._fd)
        self.wake()

    def _on_event(self) -> None:
        self._native.disarm()
        self._native.progress()
        self.wake()


class Port:
    """Asyncio face of `fabric.Port`; `sync` is the port itself."""

    def __init__(self, port: client.Port) -> None:
        self.sync = port
        self._waiter = _Waiter(port.native)

    @property
    def name(self) -> str:
        """Name given at attach."""
        return self.sync.name

    async def declare(self, channel: str, type: Any, **options: Any) -> None:
        """See `fabric.Port.declare`."""
        await asyncio.to_thread(self.sync.declare, channel, type, **options)

    async def sender(self, channel: str, type: type[M] | None = None) -> Sender[M]:
        """See `fabric.Port.sender`."""
        return Sender(await asyncio.to_thread(self.sync.sender, channel, type), self._waiter)

    async def receiver(
        self, channel: str, type: type[M] | None = None, **options: Any
    ) -> Receiver[M]:
        """See `fabric.Port.receiver`."""
        return Receiver(
            await asyncio.to_thread(lambda: self.sync.receiver(channel, type, **options)),
            self._waiter,
            self.sync,
        )

    async def requester(self, channel: str, type: type[M], reply: type[R]) -> Requester[M, R]:
        """See `fabric.Port.requester`."""
        return Requester(
            await asyncio.to_thread(self.sync.requester, channel, type, reply), self._waiter
        )

    async def responder(
        self, channel: str, type: type[M], reply: type[R], **options: Any
    ) -> Responder[M, R]:
        """See `fabric.Port.responder`."""
        found = await asyncio.to_thread(
            lambda: self.sync.responder(channel, type, reply, **options)
        )
        return Responder(found, self._waiter, self.sync)

    async def close(self) -> None:
        """See `fabric.Port.close`."""
        self._waiter.close()
        await asyncio.to_thread(self.sync.close)


class Sender(Generic[M]):
    """Asyncio face of `fabric.Sender`; `sync` is the endpoint itself."""

    def __init__(self, sender: SyncSender[M], waiter: _Waiter) -> None:
        self.sync = sender
        self._waiter = waiter

    async def send(
        self, message: M, key: str | bytes | None = None, deadline: float | None = None
    ) -> int:
        """See `fabric.Sender.send`."""
        deadline_ns = absolute_ns(deadline)
        expires_ns = deadline_ns if deadline is not None else 0
        meta, tensors = self.sync.type.encode(message)
        key_bytes = as_key(key)
        flow = self.sync.pinned(key_bytes)
        if not flow and self.sync.has_policy:
            flow = await asyncio.to_thread(self.sync.choose, message, key_bytes, meta, tensors)

        def attempt(flow: int) -> int:
            return int(
                self.sync.native.send(meta, tensors, key_bytes, 0, flow=flow, expires_ns=expires_ns)
            )

        return await _send(self.sync, self._waiter, attempt, flow, deadline_ns)

    async def send_many(
        self,
        messages: Sequence[M],
        keys: Sequence[str | bytes | None] | None = None,
        deadline: float | None = None,
    ) -> int:
        """Send in order until the deadline; returns how many were accepted. See `fabric.Sender.send_many`."""
        named = [None] * len(messages) if keys is None else list(keys)
        deadline_ns = absolute_ns(deadline)
        for count, (message, key) in enumerate(zip(messages, named, strict=True)):
            try:
                await self.send(message, key, left_s(deadline_ns) if deadline is not None else None)
            except (errors.DeadlineExceeded, errors.WouldBlock):
                return count
        return len(messages)

    async def flush(self, timeout: float | None = None) -> None:
        """See `fabric.Sender.flush`."""
        deadline_ns = absolute_ns(timeout)
        done, _ = await self._waiter.until(
            lambda: (bool(self.sync.native.flush(0)), None), deadline_ns
        )
        if not done:
            self.sync.fail_flush()

    def loan(self, **options: Any) -> Any:
        """See `fabric.Sender.loan`: a synchronous context manager; leaving it may wait for credit."""
        return self.sync.loan(**options)

    def stats(self) -> dict[str, Any]:
        """See `fabric.Sender.stats`."""
        return self.sync.stats()

    async def close(self) -> None:
        """See `fabric.Sender.close`."""
        await asyncio.to_thread(self.sync.close)

    async def __aenter__(self) -> Sender[M]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _send(
    sender: SyncSender[Any],
    waiter: _Waiter,
    send: Callable[[int], int],
    flow: int,
    deadline_ns: int,
) -> int:
    """Try a send that does not wait until it is accepted; raises `DeadlineExceeded` with the last reason."""
    while True:
        last: list[Exception] = []

        def attempt(last: list[Exception] = last) -> tuple[bool, int | Exception]:
            try:
                return True, send(flow)
            except errors.WouldBlock as full:
                last[:] = [full]
                return False, 0
            except sender.need_segment as need:
                return True, need

        done, found = await waiter.until(attempt, deadline_ns)
        if isinstance(found, Exception):
            await asyncio.to_thread(sender.provide, found, deadline_ns or monotonic_ns() + 1)
        elif done:
            return found
        elif deadline_ns:
            raise errors.DeadlineExceeded(
                f"channel {sender.channel!r}: {last[0]}", channel=sender.channel
            ) from last[0]
        else:
            raise last[0]


class Receiver(Generic[M]):
    """Asyncio face of `fabric.Receiver`; ``async for message in receiver``. `sync` is the endpoint itself."""

    def __init__(self, receiver: SyncReceiver[M], waiter: _Waiter, port: client.Port) -> None:
        self.sync = receiver
        self._waiter = waiter
        self._port = port

    async def receive(self, timeout: float | None = None) -> Any:
        """See `fabric.Receiver.receive`."""

        def attempt() -> tuple[bool, Any]:
            native = self.sync.native.receive(0)
            return native is not None, native

        _, native = await self._waiter.until(attempt, absolute_ns(timeout))
        return None if native is None else self.sync.decode(native)

    async def receive_many(self, count: int, timeout: float | None = None) -> list[Any]:
        """See `fabric.Receiver.receive_many`."""

        def attempt() -> tuple[bool, list[Any]]:
            natives = self.sync.native.receive_many(count, 0)
            return bool(natives), natives

        _, natives = await self._waiter.until(attempt, absolute_ns(timeout))
        return [self.sync.decode(native) for native in natives]

    def pending(self) -> int:
        """See `fabric.Receiver.pending`."""
        return self.sync.pending()

    async def close(self) -> None:
        """See `fabric.Receiver.close`."""
        await asyncio.to_thread(self.sync.close)
        self._waiter.wake()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        while True:
            try:
                message = await self.receive()
            except errors.ClosedError:
                if self.sync.is_closed or self._port.is_closed:
                    raise StopAsyncIteration from None
                raise
            except errors.EndOfChannel:
                raise StopAsyncIteration from None
            if message is not None:
                return message

    async def __aenter__(self) -> Receiver[M]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Requester(Generic[M, R]):
    """Asyncio face of `fabric.Requester`; `sync` is the endpoint itself."""

    def __init__(self, requester: sync_requester.Requester[M, R], waiter: _Waiter) -> None:
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
        call = sync_requester.Call(
            self.sync.next_correlation(), absolute_ns(deadline) or monotonic_ns()
        )
        self.sync.register(call)
        try:
            meta, tensors = self.sync.sender.type.encode(message)
            key_bytes = as_key(key)

            def send(_: int) -> int:
                self.sync.send_request(call, meta, tensors, key_bytes, 0, may_provide=False)
                return 0

            await _send(self.sync.sender, self._waiter, send, 0, call.deadline_ns)
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

    def cancel(self, correlation: int) -> None:
        """See `fabric.Requester.cancel`."""
        self.sync.cancel(correlation)
        self._waiter.wake()

    async def close(self) -> None:
        """See `fabric.Requester.close`."""
        await asyncio.to_thread(self.sync.close)
        self._waiter.wake()

    def _attempt(self, call: sync_requester.Call) -> tuple[bool, Any]:
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

    def __init__(self, request: sync_responder.Request[M, R], waiter: _Waiter) -> None:
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
        await _send(self.sync.responder.replies, self._waiter, send, 0, deadline_ns)


class Responder(Generic[M, R]):
    """Asyncio face of `fabric.Responder`; ``async for request in responder``. `sync` is the endpoint itself."""

    def __init__(
        self, responder: sync_responder.Responder[M, R], waiter: _Waiter, port: client.Port
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
