"""Leases between nodes: the exposing port answers `get` and `put` over a request channel of its node.

The channel is internal, one a node, made by the first port there that exposes something. A getter asks the one
responder that the lease names; when that is gone, the lease is stale.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from fabric import errors, limits
from fabric.dataplane.deadlines import asking_s, left_s, monotonic_ns
from fabric.dataplane.lease_ranges import Ranges
from fabric.messages import Tensor, message

if TYPE_CHECKING:
    from fabric.dataplane.calls import Call
    from fabric.dataplane.client import Port
    from fabric.dataplane.requester import Requester
    from fabric.messages.lease import Lease

log = logging.getLogger("fabric.leases")
_AT_ONCE = 4  # parts of one call on their way
#: what an exposer says of a lease is raised as it would be on its own node
_SAID = {
    cls.__name__: cls
    for cls in (
        errors.StaleHandleError, errors.BrokenError, errors.DeadlineExceeded, errors.CapacityError,
        errors.ConfigError, errors.TypeMismatchError,
    )
}  # fmt: skip


@message("fabric.lease.ask")
class LeaseAsk:
    lease: int
    incarnation: int
    bytes: int
    ranges: Annotated[Any, Tensor["ranges 2", "i64"]]
    data: Annotated[Any, Tensor["bytes", "u8"] | None] = None


@message("fabric.lease.answer")
class LeaseAnswer:
    data: Annotated[Any, Tensor["bytes", "u8"] | None] = None


def channel_of(node: int) -> str:
    """Return the internal channel of a node's leases."""
    return f"fabric.lease.{node}"


class LeaseServer:
    """Answers for the leases of one port, on a thread of its own."""

    def __init__(self, port: Port, node: int, find: Callable[[int], Any]) -> None:
        self._incarnation = port.incarnation
        self._find = find
        port.declare(channel_of(node), LeaseAsk, reply=LeaseAnswer, klass="bulk")
        self._responder = port.responder(channel_of(node), LeaseAsk, LeaseAnswer)
        self.endpoint = self._responder.endpoint
        self._thread = threading.Thread(target=self._run, name="fabric-leases", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self._responder.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(limits.CLOSE_S)

    def _run(self) -> None:
        try:
            for request in self._responder:
                self._serve(request)
        except errors.FabricError as error:
            log.debug("leases are served no more: %s", error)

    def _serve(self, request: Any) -> None:
        """Answer one ask. A refusal is the asker's to know: whoever asks for stale leases fills no log here."""
        try:
            request.reply(self._answer(request.message))
        except (errors.CancelledRequestError, errors.PeerLostError):
            return  # nobody waits for this one any more
        except errors.FabricError as error:
            request.fail(error)
        except Exception as error:
            log.warning("an ask for a lease failed", exc_info=True)
            request.fail(error)

    def _answer(self, ask: Any) -> LeaseAnswer:
        import numpy

        found = self._find(ask.lease)
        if (
            found is None or ask.incarnation != self._incarnation
        ) or ask.bytes != found.lease.bytes:
            raise errors.StaleHandleError("the lease was revoked", lease=ask.lease)
        plan = Ranges(ask.ranges, found.lease.bytes)
        until = monotonic_ns() + int(limits.LEASE_FIND_S * 1e9)
        if ask.data is None:
            data = numpy.empty(plan.total, numpy.uint8)
            found.memory.read(lambda own: plan.copy_out(own, data), found.lease.writable, until)
            return LeaseAnswer(data)
        if not found.lease.writable or ask.data.nbytes != plan.total:
            raise errors.ConfigError("a put that the lease does not allow")
        source = ask.data
        found.memory.write(lambda own: plan.copy_in(source, own), *plan.hull, until)
        return LeaseAnswer()


class LeaseClient:
    """Asks the exposers of one other node."""

    def __init__(self, port: Port, node: int) -> None:
        self._port = port
        self._node = node
        self._lock = threading.Lock()
        self._requester: Requester[LeaseAsk, LeaseAnswer] | None = None
        self._seen: set[int] = set()

    def get(self, lease: Lease, plan: Ranges, target: Any, deadline_ns: int) -> None:
        """Fill `target` with the ranges of a lease."""
        asks = [
            LeaseAsk(lease.lease, lease.incarnation, lease.bytes, part)
            for part in plan.parts(limits.LEASE_PART_BYTES)
        ]
        at = 0
        for answer in self._ask(lease, asks, deadline_ns):
            data = answer.data
            if data is None or data.nbytes > target.nbytes - at:
                raise errors.PeerProtocolError(
                    "the exposer answered with other bytes than asked for"
                )
            target[at : at + data.nbytes] = data
            at += data.nbytes
            answer.release()
        if at != target.nbytes:
            raise errors.PeerProtocolError(
                f"the exposer answered with {at} of {target.nbytes} bytes"
            )

    def put(self, lease: Lease, plan: Ranges, source: Any, deadline_ns: int) -> None:
        """Write `source` into the ranges of a lease, part after part."""
        at, asks = 0, []
        for part in plan.parts(limits.LEASE_PART_BYTES):
            size = int(part[:, 1].sum())
            asks.append(
                LeaseAsk(lease.lease, lease.incarnation, lease.bytes, part, source[at : at + size])
            )
            at += size
        for answer in self._ask(lease, asks, deadline_ns):
            answer.release()

    def close(self) -> None:
        """Close the asking end. Idempotent."""
        with self._lock:
            requester, self._requester = self._requester, None
        if requester is not None:
            requester.close()

    def _ask(self, lease: Lease, asks: list[LeaseAsk], deadline_ns: int) -> Any:
        """Yield the answers in order, some parts ahead; an exposer that is gone makes the lease stale."""
        requester = self._open(deadline_ns)
        self._find(requester, lease.endpoint, deadline_ns)
        calls: list[Call] = []
        waiting = iter(asks)
        try:
            while True:
                while len(calls) < _AT_ONCE and (ask := next(waiting, None)) is not None:
                    calls.append(requester.begin_at(ask, lease.endpoint, deadline_ns))
                if not calls:
                    return
                yield requester.result(calls[0])
                requester.finish(calls.pop(0))
        except errors.RemoteError as error:
            cls = _SAID.get(str(error.context.get("error")))
            if cls is None:
                raise
            raise cls(f"lease of another node: {error.message}") from error
        except errors.PeerLostError as error:
            raise errors.StaleHandleError("the exposer of the lease is gone") from error
        finally:
            for call in calls:
                requester.finish(call)

    def _open(self, deadline_ns: int) -> Requester[LeaseAsk, LeaseAnswer]:
        with self._lock:
            if self._requester is None:
                try:
                    self._requester = self._port.requester(
                        channel_of(self._node), LeaseAsk, LeaseAnswer, timeout=asking_s(deadline_ns)
                    )
                except errors.ConfigError as error:
                    raise errors.StaleHandleError(
                        f"nothing was ever exposed on node {self._node}: {error.message}"
                    ) from error
            return self._requester

    def _find(self, requester: Any, endpoint: int, deadline_ns: int) -> None:
        """Wait for the flow to an exposer; one that is not there in time, or was lost, makes the lease stale."""
        until = min(deadline_ns, monotonic_ns() + int(limits.LEASE_FIND_S * 1e9))
        while not any(flow["target_endpoint"] == endpoint for flow in requester.targets()):
            if endpoint in self._seen:
                raise errors.StaleHandleError("the exposer of the lease is gone")
            if monotonic_ns() >= until:
                what = (
                    f"not reached within {limits.LEASE_FIND_S:g} s"
                    if left_s(deadline_ns)
                    else "not reached in time"
                )
                raise errors.StaleHandleError(f"the exposer of the lease is gone or was {what}")
            requester.wait([], min(until, monotonic_ns() + 50_000_000))
        self._seen.add(endpoint)
