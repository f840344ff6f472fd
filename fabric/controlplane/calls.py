"""Requests, answers and pushes in both directions over one framed control connection.

Both connections of a daemon speak this: to its processes (with descriptors) and to other daemons. A request is
`{op, id, …}` → `{re: id, …}`; a push `{op, push: n, …}` → `{done: n, …}`; an error travels as `error: {code, message,
context}`. One reading task; every call has a deadline; requests are served as tasks, at most CONTROL_REQUESTS_MAX.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fabric import errors, limits
from fabric.dataplane.framing import FrameStream, close_fds

Answer = dict[str, Any] | tuple[dict[str, Any], Sequence[int]]
Serve = Callable[["ControlConnection", str, dict[str, Any]], Awaitable[Answer]]

log = logging.getLogger("fabricd.calls")


class ControlConnection:
    """One connection. `serve(connection, op, fields)` answers requests; `run` returns when it is gone."""

    def __init__(self, stream: FrameStream, serve: Serve, name: str) -> None:
        self._stream = stream
        self._serve = serve
        self._numbers = itertools.count(1)
        self._waiting: dict[tuple[str, int], asyncio.Future[dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.name = name
        self.incarnation = 0  #: of the daemon at the other end; 0: of a process
        self.is_closed = False
        self.is_lost = False  #: its path is gone: nothing more will come
        self.ended = asyncio.Event()

    @property
    def socket(self) -> socket.socket:
        """The connected socket; to look at, not to use."""
        return self._stream.socket

    async def run(self) -> None:
        """Serve until the peer is gone or broke the rules; then fail every waiting call."""
        try:
            while True:
                fields, fds = await self._stream.receive()
                close_fds(fds)  # only the daemon hands out descriptors
                self._dispatch(fields)
        except errors.BrokenError as error:
            log.debug("connection ended", extra={"peer": self.name, "reason": str(error)})
        except errors.PeerProtocolError as error:
            log.warning("peer broke the protocol", extra={"peer": self.name, "reason": str(error)})
        finally:
            self.close()

    async def request(
        self, op: str, fields: dict[str, Any], timeout_s: float = limits.CONTROL_CALL_S
    ) -> dict[str, Any]:
        """Send a request and return its answer; raises the peer's error, `PeerLostError`, `DeadlineExceeded`."""
        return await self._call("id", op, fields, (), timeout_s)

    async def push(
        self,
        op: str,
        fields: dict[str, Any],
        fds: Sequence[int] = (),
        timeout_s: float = limits.PUSH_S,
    ) -> dict[str, Any]:
        """Push and wait until the client has done it; raises like `request`."""
        return await self._call("push", op, fields, fds, timeout_s)

    def close(self) -> None:
        """Close the connection; waiting calls get `PeerLostError`. Idempotent."""
        self.is_closed = True
        self.ended.set()
        self._stream.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(errors.PeerLostError(f"{self.name} is gone"))
                answer.exception()  # a caller that was cancelled will not look
        for task in self._tasks:
            task.cancel()

    def retire(self) -> None:
        """Another connection has taken over: close when what is under way has ended, or CONTROL_CALL_S has passed."""
        loop = asyncio.get_running_loop()
        until = loop.time() + limits.CONTROL_CALL_S

        def look() -> None:  # not at once: a request of the peer may be on its way
            if not (self._waiting or self._tasks) or loop.time() >= until:
                self.close()
            elif not self.is_closed:
                loop.call_later(limits.CLOSE_S, look)

        loop.call_later(limits.CLOSE_S, look)

    async def drain(self) -> None:
        """Wait until what was sent has left."""
        await self._stream.drain()

    async def _call(
        self, kind: str, op: str, fields: dict[str, Any], fds: Sequence[int], timeout_s: float
    ) -> dict[str, Any]:
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[kind, number] = answer
        try:
            try:
                self._stream.send({"op": op, kind: number, **fields}, fds)
            except errors.BrokenError as error:
                raise errors.PeerLostError(f"{self.name} is gone: {error}") from error
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            raise errors.DeadlineExceeded(
                f"{self.name} did not answer {op} within {timeout_s:g} s", op=op
            ) from error
        finally:
            del self._waiting[kind, number]

    def _dispatch(self, fields: dict[str, Any]) -> None:
        for kind, key in (("id", "re"), ("push", "done")):
            if key in fields:
                answer = self._waiting.get((kind, fields[key]))
                if answer is not None and not answer.done():
                    if "error" in fields:
                        answer.set_exception(errors.from_wire(fields["error"]))
                    else:
                        answer.set_result(fields)
                return
        if len(self._tasks) >= limits.CONTROL_REQUESTS_MAX:
            full = errors.CapacityError(
                "too many unanswered requests", limit="CONTROL_REQUESTS_MAX"
            )
            return self._answer(fields, {"error": full.to_wire()})
        task = asyncio.get_running_loop().create_task(self._answer_to(fields))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_to(self, fields: dict[str, Any]) -> None:
        op = fields.get("op")
        try:
            if not isinstance(op, str):
                raise errors.PeerProtocolError("a request without op")
            served = await self._serve(self, op, fields)
            answer, fds = served if isinstance(served, tuple) else (served, ())
        except errors.FabricError as error:
            answer, fds = {"error": error.to_wire()}, ()
        except (KeyError, TypeError, ValueError) as error:
            log.warning(
                "bad request",
                extra={"peer": self.name, "op": op, "reason": repr(error)},
                exc_info=True,
            )
            wrong = errors.PeerProtocolError(
                f"{op}: a field is missing or of the wrong kind ({error!r})"
            )
            answer, fds = {"error": wrong.to_wire()}, ()
        except OSError as error:
            log.exception("request failed", extra={"peer": self.name, "op": op})
            answer, fds = {"error": errors.to_wire(error)}, ()
        self._answer(fields, answer, fds)

    def _answer(
        self, fields: dict[str, Any], answer: dict[str, Any], fds: Sequence[int] = ()
    ) -> None:
        reply = {"re": fields["id"]} if "id" in fields else {"done": fields.get("push", 0)}
        try:
            self._stream.send({**reply, **answer}, fds)
        except errors.BrokenError:
            log.debug("answer lost", extra={"peer": self.name, "op": fields.get("op")})
        except errors.CapacityError as error:
            self._stream.send({**reply, "error": error.to_wire()})
