"""Writing in place from an event loop. See `fabric.aio`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
            await send_by_policy(
                lending.sender,
                self._waiter,
                lending.sending(meta, tensors),
                (lending.draft, lending.key, meta, tensors),
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


async def send_by_policy(
    sender: Any,
    waiter: Waiter,
    send: Callable[[int], int],
    what: tuple[Any, bytes | None, bytes, list[Any]],
    deadline_ns: int,
) -> int:
    """Send on the flow that the channel's policy gives `what` (message, key, meta, buffers), asked for on a thread."""
    flow = int(sender.pinned(what[1]))
    if not flow and sender.has_policy:
        flow = int(await asyncio.to_thread(sender.choose, *what))
    others = sender.other_flows(*what, flow)
    while True:
        try:
            return await send_when_possible(sender, waiter, send, flow, deadline_ns)
        except sender.flow_gone:
            if not flow:
                raise
        flow = int(await asyncio.to_thread(next, others))
