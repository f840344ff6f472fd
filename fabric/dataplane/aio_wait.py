"""Waiting in an asyncio loop without threads: the port's event descriptor, and sends that wait for room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from fabric import errors
from fabric.dataplane.deadlines import left_s, monotonic_ns
from fabric.dataplane.naming import name_channel
from fabric.dataplane.sender import Sender as SyncSender

T = TypeVar("T")
_WAIT_S_MAX = 0.25  # a waiter looks again after this long, should an event be missed


class Waiter:
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
        try:
            self._native.disarm()
            self._native.progress()
        except errors.ClosedError:
            # The port broke: nobody empties its descriptor any more, which would keep the loop busy.
            self._loop.remove_reader(self._fd)
        self.wake()


async def send_when_possible(
    sender: SyncSender[Any],
    waiter: Waiter,
    send: Callable[[int], T],
    flow: int,
    deadline_ns: int,
) -> T:
    """Try a send that does not wait until it is accepted; raises `DeadlineExceeded` with the last reason."""
    while True:
        last: list[Exception] = []

        def attempt(last: list[Exception] = last) -> tuple[bool, tuple[T] | Exception | None]:
            try:
                return True, (send(flow),)
            except errors.WouldBlock as full:
                name_channel(full, sender.channel)
                last[:] = [full]
                return False, None
            except sender.need_segment as need:
                return True, need
            except errors.FabricError as error:
                name_channel(error, sender.channel)
                raise

        _, found = await waiter.until(attempt, deadline_ns)
        if isinstance(found, tuple):
            return found[0]
        if found is not None:
            await asyncio.to_thread(sender.provide, found, deadline_ns or monotonic_ns() + 1)
        elif deadline_ns:
            raise errors.DeadlineExceeded(str(last[0]), channel=sender.channel) from last[0]
        else:
            raise last[0]
