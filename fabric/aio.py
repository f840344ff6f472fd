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
from fabric.dataplane.aio_loans import AioLending, send_by_policy
from fabric.dataplane.aio_requests import Request, Requester, Responder, Scatterer
from fabric.dataplane.aio_wait import Waiter, send_when_possible
from fabric.dataplane.deadlines import absolute_ns, left_s
from fabric.dataplane.receiver import Receiver as SyncReceiver
from fabric.dataplane.sender import Sender as SyncSender
from fabric.dataplane.sender import as_key
from fabric.messages.lease import Lease

__all__ = [
    "BytesReceiver", "Port", "Receiver", "Request", "Requester", "Responder", "Scatterer", "Sender", "attach",
]  # fmt: skip

M = TypeVar("M")
R = TypeVar("R")


@asynccontextmanager
async def attach(
    name: str,
    socket: str | os.PathLike[str] | None = None,
    *,
    token: str | None = None,
    wait: str | None = None,
) -> AsyncIterator[Port]:
    """Attach this process to its node; ``async with fabric.aio.attach("me") as port``. Raises like `fabric.attach`."""
    port = Port(await asyncio.to_thread(client.attach, name, socket, token=token, wait=wait))
    try:
        yield port
    finally:
        await port.close()


class Port:
    """Asyncio face of `fabric.Port`; `sync` is the port itself."""

    def __init__(self, port: client.Port) -> None:
        self.sync = port
        self._waiter = Waiter(port.native)

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
        found = await asyncio.to_thread(lambda: self.sync.receiver(channel, type, **options))
        face = BytesReceiver if hasattr(found, "receive_bytes") else Receiver
        return face(found, self._waiter, self.sync)

    async def requester(self, channel: str, type: type[M], reply: type[R]) -> Requester[M, R]:
        """See `fabric.Port.requester`."""
        return Requester(
            await asyncio.to_thread(self.sync.requester, channel, type, reply), self._waiter
        )

    async def scatterer(self, channel: str, type: type[M], reply: type[R]) -> Scatterer[M, R]:
        """See `fabric.Port.scatterer`."""
        return Scatterer(
            await asyncio.to_thread(self.sync.scatterer, channel, type, reply), self._waiter
        )

    async def responder(
        self, channel: str, type: type[M], reply: type[R], **options: Any
    ) -> Responder[M, R]:
        """See `fabric.Port.responder`."""
        found = await asyncio.to_thread(
            lambda: self.sync.responder(channel, type, reply, **options)
        )
        return Responder(found, self._waiter, self.sync)

    async def expose(self, array: Any, writable: bool = False) -> Lease:
        """See `fabric.Port.expose`."""
        return await asyncio.to_thread(self.sync.expose, array, writable)

    async def get(
        self, lease: Lease, ranges: Any = None, into: Any = None, deadline: float | None = None
    ) -> Any:
        """See `fabric.Port.get`; on a thread of the loop's executor."""
        return await asyncio.to_thread(self.sync.get, lease, ranges, into, deadline)

    async def put(
        self, lease: Lease, ranges: Any, data: Any, deadline: float | None = None
    ) -> None:
        """See `fabric.Port.put`; on a thread of the loop's executor."""
        await asyncio.to_thread(self.sync.put, lease, ranges, data, deadline)

    async def close(self) -> None:
        """See `fabric.Port.close`."""
        self._waiter.close()
        await asyncio.to_thread(self.sync.close)


class Sender(Generic[M]):
    """Asyncio face of `fabric.Sender`; `sync` is the endpoint itself."""

    def __init__(self, sender: SyncSender[M], waiter: Waiter) -> None:
        self.sync = sender
        self._waiter = waiter

    async def send(
        self, message: M, key: str | bytes | None = None, deadline: float | None = None
    ) -> int:
        """See `fabric.Sender.send`."""
        if deadline is None:
            sent = self.sync.send_at_once(message, key)
            if sent is not None:
                return sent
        deadline = self.sync.deadline_s if deadline is None else deadline
        deadline_ns = absolute_ns(deadline)
        expires_ns = deadline_ns if deadline is not None else 0
        meta, tensors = self.sync.type.encode(message)
        if self.sync.has_codec:
            meta, tensors = self.sync.coded(meta, tensors, expires_ns)
        key_bytes = as_key(key)

        def attempt(flow: int) -> int:
            return int(
                self.sync.native.send(meta, tensors, key_bytes, 0, flow=flow, expires_ns=expires_ns)
            )

        what = (message, key_bytes, meta, tensors)
        return await send_by_policy(self.sync, self._waiter, attempt, what, deadline_ns)

    async def send_many(
        self,
        messages: Sequence[M],
        keys: Sequence[str | bytes | None] | None = None,
        deadline: float | None = None,
    ) -> int:
        """See `fabric.Sender.send_many`."""
        deadline = self.sync.deadline_s if deadline is None else deadline
        deadline_ns = absolute_ns(deadline)
        sync = self.sync
        if sync.has_policy:
            return await self._send_each(messages, keys, deadline_ns, deadline)
        gone = sync.send_many_at_once(messages) if keys is None and deadline is None else 0
        if gone and gone == len(messages):
            return gone
        encoded, named = sync.encode_many(messages[gone:] if gone else messages, keys)
        metas, tensors = [meta for meta, _ in encoded], [buffers for _, buffers in encoded]
        expires_ns = deadline_ns if deadline is not None else 0
        done = 0

        def attempt(_: int) -> int:
            nonlocal done
            done += int(
                sync.native.send_many(
                    metas[done:], tensors[done:], named[done:], 0, expires_ns=expires_ns
                )
            )
            if done < len(metas):
                raise errors.WouldBlock(f"{len(metas) - done} of {len(metas)} messages wait")
            return done

        try:
            return gone + await send_when_possible(sync, self._waiter, attempt, 0, deadline_ns)
        except (errors.DeadlineExceeded, errors.WouldBlock, errors.RejectedError):
            if gone + done:
                return gone + done
            raise

    async def _send_each(
        self, messages: Sequence[M], keys: Sequence[str | bytes | None] | None, deadline_ns: int, deadline: float | None
    ) -> int:  # fmt: skip
        """A routing policy may have to be asked for every message."""
        _, named = self.sync.encode_many(messages, keys)  # before any is sent
        for count, (message, key) in enumerate(zip(messages, named, strict=True)):
            left = left_s(deadline_ns)
            if count and deadline_ns and not left:
                return count
            try:
                await self.send(message, key, left if deadline is not None else None)
            except (errors.DeadlineExceeded, errors.WouldBlock, errors.RejectedError):
                if count:
                    return count
                raise
        return len(messages)

    async def flush(self, timeout: float | None = None) -> None:
        """See `fabric.Sender.flush`."""
        deadline_ns = absolute_ns(timeout)
        done, _ = await self._waiter.until(
            lambda: (bool(self.sync.native.flush(0)), None), deadline_ns
        )
        if not done:
            self.sync.fail_flush()

    def loan(self, *size: int, **options: Any) -> AioLending:
        """See `fabric.Sender.loan`; ``async with`` waits for memory and room in the loop, ``with`` in its stead."""
        return AioLending(self.sync.loan(*size, **options), self._waiter)

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


class Receiver(Generic[M]):
    """Asyncio face of `fabric.Receiver`; ``async for message in receiver``. `sync` is the endpoint itself."""

    def __init__(self, receiver: SyncReceiver[M], waiter: Waiter, port: client.Port) -> None:
        self.sync = receiver
        self._waiter = waiter
        self._port = port

    async def receive(self, timeout: float | None = None) -> Any:
        """See `fabric.Receiver.receive`."""
        if timeout is None:  # most often it is there, and nothing is to be awaited
            found = self.sync.receive(0)
            if found is not None:
                return found
        return await self._look(lambda: self.sync.receive(0), timeout)

    async def receive_many(self, count: int, timeout: float | None = None) -> list[Any]:
        """See `fabric.Receiver.receive_many`."""
        found = await self._look(lambda: self.sync.receive_many(count, 0) or None, timeout)
        return found or []

    async def receive_into(self, timeout: float | None = None, **targets: Any) -> Any:
        """See `fabric.Receiver.receive_into`."""
        self.sync.check_targets(targets)
        message = await self.receive(timeout)
        if message is not None:
            self.sync.copy_out(message, targets)
        return message

    async def _look(self, receive: Callable[[], Any], timeout: float | None) -> Any:
        """Return what `receive` finds, at once or once something came; None at the timeout."""
        deadline_ns = None if timeout is None else absolute_ns(timeout)
        found = receive()
        if found is not None:
            return found

        def attempt() -> tuple[bool, Any]:
            found = receive()
            return found is not None, found

        if deadline_ns is None:
            deadline_ns = absolute_ns(None)
        return (await self._waiter.until(attempt, deadline_ns))[1]

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


class BytesReceiver(Receiver[Any]):
    """Asyncio face of the receiver of a channel of plain bytes."""

    async def receive_bytes(self, timeout: float | None = None) -> bytes | None:
        """Return the next message as bytes, acknowledged; None when none came within `timeout` seconds."""
        found = await self._look(lambda: self.sync.receive_bytes(0), timeout)  # type: ignore[attr-defined]
        return None if found is None else bytes(found)

    async def receive_many_bytes(self, count: int, timeout: float | None = None) -> list[bytes]:
        """Return up to `count` messages as bytes, acknowledged; waits for the first only.

        One that lies in a slot comes alone.
        """
        receive = self.sync.receive_many_bytes  # type: ignore[attr-defined]
        return await self._look(lambda: receive(count, 0) or None, timeout) or []
