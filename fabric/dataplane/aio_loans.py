"""Writing in place from an event loop. See `fabric.aio`."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from fabric.dataplane.aio_wait import Waiter, send_when_possible
from fabric.dataplane.loans import Lending


class AioLending:
    """What the asyncio `Sender.loan` gives.

    ``async with`` waits for memory and for room in the loop, beside its other tasks. A plain ``with`` waits in their
    stead: for blocks without an ``await`` on channels that have room.
    """

    def __init__(self, lending: Lending, waiter: Waiter) -> None:
        self._lending = lending
        self._waiter = waiter

    async def __aenter__(self) -> Any:
        lending = self._lending
        lending.begin()
        return await send_when_possible(
            lending.sender, self._waiter, lambda _: lending.take(), 0, lending.deadline_ns
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        lending = self._lending
        if kind is not None:
            lending.discard()
            return
        try:
            meta, tensors = lending.encode()
            flow = await choose_flow(lending.sender, lending.draft, lending.key, meta, tensors)
            await send_when_possible(
                lending.sender,
                self._waiter,
                lambda flow: lending.send(meta, flow, 0),
                flow,
                lending.deadline_ns,
            )
        except BaseException:
            lending.discard()
            raise

    def __enter__(self) -> Any:
        return self._lending.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self._lending.__exit__(kind, error, trace)


async def choose_flow(
    sender: Any, message: Any, key: bytes | None, meta: bytes, tensors: list[Any]
) -> int:
    """Return the flow that the channel's policy gives this message, asking for it on a thread; 0: none does."""
    pinned = int(sender.pinned(key))
    if pinned or not sender.has_policy:
        return pinned
    return int(await asyncio.to_thread(sender.choose, message, key, meta, tensors))
