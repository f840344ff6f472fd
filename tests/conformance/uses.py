"""The ways to use a port behind one interface: what a test says once, it says of each.

A `Seat` is a port that is used in one way; its ends take and give plain bytes whatever the channel's type is. Calls
are synchronous for all of them: the asyncio seat runs its loop on a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import fabric
from fabric import aio, errors

CALL_S: Final = 40.0  #: longer than any wait that a test asks for
_NO_ROOM = (errors.DeadlineExceeded, errors.WouldBlock, errors.RejectedError)


class Got:
    """A received message that is still held."""

    def __init__(self, view: Any, content: Any) -> None:
        self.view = view
        self._content = content

    @property
    def value(self) -> bytes:
        return bytes(self._content.value(self.view))

    @property
    def is_redelivered(self) -> bool:
        return bool(self.view.header.redelivered)

    @property
    def key(self) -> bytes | None:
        key: bytes | None = self.view.header.key
        return key

    def ack(self) -> None:
        self.view.ack()

    def nack(self) -> None:
        self.view.nack()

    def release(self) -> None:
        self.view.release()

    def done(self) -> bytes:
        """Acknowledge, give back, and return what it said."""
        value = self.value
        self.ack()
        self.release()
        return value


class Out:
    """A sending end, one call a message."""

    def __init__(self, end: Any, content: Any) -> None:
        self.end = end
        self.content = content

    def send(
        self, values: Sequence[bytes], key: str | None = None, deadline: float | None = None
    ) -> int:
        """Send in order; returns how many found room in time, raises when not even the first did."""
        for done, value in enumerate(values):
            try:
                self._send_one(value, key, deadline)
            except _NO_ROOM:
                if not done:
                    raise
                return done
        return len(values)

    def _send_one(self, value: bytes, key: str | None, deadline: float | None) -> None:
        self.end.send(self.content.message(value), key=key, deadline=deadline)

    def flush(self, timeout: float = 5.0) -> None:
        self.end.flush(timeout)

    def ends(self) -> dict[str, int]:
        """Return the counts of messages by end."""
        found: dict[str, Any] = self.end.stats()
        return {k: v for k, v in found.items() if k not in ("flows", "delivered_bytes")}

    def flow_count(self) -> int:
        return len(self.end.stats()["flows"])

    def close(self) -> None:
        self.end.close()


class BatchedOut(Out):
    """All messages in one call."""

    def send(
        self, values: Sequence[bytes], key: str | None = None, deadline: float | None = None
    ) -> int:
        messages = [self.content.message(value) for value in values]
        return int(self.end.send_many(messages, [key] * len(messages), deadline=deadline))


class LoanedOut(Out):
    """Every message written in place; an empty one has no place."""

    def _send_one(self, value: bytes, key: str | None, deadline: float | None) -> None:
        if not value:
            super()._send_one(value, key, deadline)
            return
        with self.content.lend(self.end, len(value), key=key, deadline=deadline) as draft:
            self.content.fill(draft, value)


class In:
    """A receiving end, one call a message."""

    def __init__(self, end: Any, content: Any) -> None:
        self.end = end
        self.content = content

    def take(self, count: int, timeout: float = 5.0) -> list[Got]:
        """Return the next `count` messages as views; fewer when one did not come in time."""
        found: list[Got] = []
        while len(found) < count:
            more = self.some(count - len(found), timeout)
            if not more:
                break
            found += more
        return found

    def some(self, count: int, timeout: float = 5.0) -> list[Got]:
        """Return at most `count` messages, by one call."""
        return [Got(view, self.content) for view in self._views(count, timeout)]

    def _views(self, count: int, timeout: float) -> list[Any]:
        view = self.end.receive(timeout)
        return [] if view is None else [view]

    def read(self, count: int, timeout: float = 5.0) -> list[bytes]:
        """Return what the next `count` messages say, acknowledged and given back, by the shortest call there is."""
        found: list[bytes] = []
        while len(found) < count and (more := self._said(count - len(found), timeout)):
            found += more
        return found

    def _said(self, count: int, timeout: float) -> list[bytes]:
        if self.content.type is bytes:
            return self._plain(count, timeout)
        return [got.done() for got in self.some(count, timeout)]

    def _plain(self, count: int, timeout: float) -> list[bytes]:
        value = self.end.receive_bytes(timeout)
        return [] if value is None else [value]

    def pending(self) -> int:
        return int(self.end.pending())

    def close(self) -> None:
        self.end.close()


class BatchedIn(In):
    """As many as are there in one call."""

    def _views(self, count: int, timeout: float) -> list[Any]:
        found: list[Any] = self.end.receive_many(count, timeout)
        return found

    def _plain(self, count: int, timeout: float) -> list[bytes]:
        found: list[bytes] = self.end.receive_many_bytes(count, timeout)
        return found


class Seat:
    """A port that is used with blocking calls."""

    out: type[Out] = Out
    inn: type[In] = In

    def __init__(self, name: str, socket: str, wait: str) -> None:
        self.port = fabric.attach(name, socket, wait=wait)
        self._opened: list[Any] = []

    def leave(self) -> None:
        """Close every end; the port stays."""
        while self._opened:
            self._opened.pop().close()

    def _keep(self, end: Any) -> Any:
        self._opened.append(end)
        return end

    def declare(self, channel: str, content: Any, **options: Any) -> None:
        reply = {"reply": content.type} if options.pop("reply", False) else {}
        self.port.declare(channel, content.type, **reply, **options)

    def sender(self, channel: str, content: Any) -> Out:
        return self.out(self._keep(self.port.sender(channel, content.type)), content)

    def receiver(self, channel: str, content: Any, **options: Any) -> In:
        return self.inn(self._keep(self.port.receiver(channel, content.type, **options)), content)

    def call(self, channel: str, content: Any) -> Callable[[bytes, float], list[bytes]]:
        """Open a requester; returns ``ask(value, deadline) -> what the streamed answer says``."""
        requester = self._keep(self.port.requester(channel, content.type, content.type))

        def ask(value: bytes, deadline: float) -> list[bytes]:
            replies = requester.stream(content.message(value), deadline=deadline)
            return [content.value(reply) for reply in replies]

        return ask

    def answer(self, channel: str, content: Any, handle: Callable[[bytes], list[bytes]]) -> None:
        """Open a responder that answers with what `handle` returns or raises, until the seat closes."""
        responder = self._keep(self.port.responder(channel, content.type, content.type))

        def serve() -> None:
            for request in responder:
                try:
                    request.stream(
                        [content.message(v) for v in handle(content.value(request.message))]
                    )
                except errors.CancelledRequestError:
                    continue  # nobody waits for it any more
                except ValueError as refusal:
                    request.fail(refusal)

        threading.Thread(target=serve, name=f"answer {channel}", daemon=True).start()

    def close(self) -> None:
        self.port.close()


class BatchedSeat(Seat):
    """A port whose messages go and come many a call."""

    out, inn = BatchedOut, BatchedIn


class LoanedSeat(Seat):
    """A port whose messages are written in place."""

    out = LoanedOut


class Loop:
    """An event loop on a thread; what goes wrong in its callbacks is kept."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.failures: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self.thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(CALL_S)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(CALL_S)
        self.loop.close()
        assert not self.failures, self.failures


class Blocking:
    """An asyncio end whose coroutines are waited for; what is no coroutine is passed on."""

    def __init__(self, end: Any, loop: Loop) -> None:
        self.end = end
        self.loop = loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.end, name)
        if not asyncio.iscoroutinefunction(found):
            return found
        return lambda *args, **options: self.loop.run(found(*args, **options))


class AsyncioLoanedOut(LoanedOut):
    """Written in place inside the loop, which waits for room beside its other tasks."""

    def _send_one(self, value: bytes, key: str | None, deadline: float | None) -> None:
        if not value:
            Out._send_one(self, value, key, deadline)
            return

        async def write() -> None:
            lent = self.content.lend(self.end, len(value), key=key, deadline=deadline)
            async with lent as draft:
                self.content.fill(draft, value)

        self.end.loop.run(write())


class AsyncioSeat(Seat):
    """A port whose calls are awaited."""

    def __init__(self, name: str, socket: str, wait: str) -> None:
        self._opened = []
        self.loop = Loop(f"loop of {name}")
        self._context = aio.attach(name, socket, wait=wait)
        self._face: aio.Port = self.loop.run(self._context.__aenter__())
        self.port = self._face.sync

    def _open(self, opening: Coroutine[Any, Any, Any]) -> Any:
        return self._keep(Blocking(self.loop.run(opening), self.loop))

    def sender(self, channel: str, content: Any) -> Out:
        return self.out(self._open(self._face.sender(channel, content.type)), content)

    def receiver(self, channel: str, content: Any, **options: Any) -> In:
        return self.inn(self._open(self._face.receiver(channel, content.type, **options)), content)

    def call(self, channel: str, content: Any) -> Callable[[bytes, float], list[bytes]]:
        requester = self._open(self._face.requester(channel, content.type, content.type))

        async def ask(value: bytes, deadline: float) -> list[bytes]:
            replies = requester.stream(content.message(value), deadline=deadline)
            return [content.value(reply) async for reply in replies]

        return lambda value, deadline: list(self.loop.run(ask(value, deadline)))

    def answer(self, channel: str, content: Any, handle: Callable[[bytes], list[bytes]]) -> None:
        responder = self._open(self._face.responder(channel, content.type, content.type))

        async def replies(values: list[bytes]) -> Any:
            for value in values:
                yield content.message(value)

        async def serve() -> None:
            async for request in responder.end:
                try:
                    await request.stream(replies(handle(content.value(request.message))))
                except errors.CancelledRequestError:
                    continue
                except ValueError as refusal:
                    await request.fail(refusal)

        asyncio.run_coroutine_threadsafe(serve(), self.loop.loop)

    def close(self) -> None:
        self.loop.run(self._context.__aexit__(None, None, None))
        self.loop.close()


class AsyncioBatchedSeat(AsyncioSeat):
    """Many a call, awaited."""

    out, inn = BatchedOut, BatchedIn


class AsyncioLoanedSeat(AsyncioSeat):
    """Written in place in the loop."""

    out = AsyncioLoanedOut


#: name → (seat, how its threads wait)
USES: Final[dict[str, tuple[type[Seat], str]]] = {
    "polling": (Seat, "poll"),
    "sleeping": (Seat, "sleep"),
    "adaptive": (Seat, "adaptive"),
    "asyncio": (AsyncioSeat, "adaptive"),
    "batched": (BatchedSeat, "adaptive"),
    "loaned": (LoanedSeat, "adaptive"),
}
#: ways to combine them, for where every one is tried
MIXED_USES: Final[dict[str, tuple[type[Seat], str]]] = {
    "polling batched": (BatchedSeat, "poll"),
    "polling loaned": (LoanedSeat, "poll"),
    "asyncio batched": (AsyncioBatchedSeat, "adaptive"),
    "asyncio loaned": (AsyncioLoanedSeat, "adaptive"),
}


def seat(use: str, name: str, socket: str) -> Seat:
    """Attach a port to be used in one way."""
    kind, wait = {**USES, **MIXED_USES}[use]
    return kind(name, socket, wait)
