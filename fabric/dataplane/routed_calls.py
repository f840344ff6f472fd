"""The part of a sender that follows its channel's routing policy.

A built-in policy runs in the native sender, for every message, with no Python in between; the daemon keeps what it
knows of the targets current (`give_rows`). A policy in Python is asked through the daemon, once per flow or once per
batch; what it said about a key the native sender remembers, so that the next message of the key needs no Python either.
Where nobody answers, the policy's declared fallback, a built-in one, decides natively for a while.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fabric import limits
from fabric.config import routes as names
from fabric.dataplane.deadlines import left_s, monotonic_ns
from fabric.dataplane.routes import RoutePins, Row, header_fields
from fabric.errors import DeadlineExceeded, FabricError, RejectedError, WouldBlock

if TYPE_CHECKING:
    from fabric.dataplane.client import Port
    from fabric.messages import MessageType


class RoutedCalls:
    """What `fabric.Sender` does about routing; its other half has the native endpoint and the port."""

    _port: Port
    native: Any
    channel: str
    endpoint: int
    klass: str
    type: MessageType
    _route: str | None = None
    _pins: RoutePins | None = None
    _reads: tuple[str, ...] = ()  # fields that a cached decision depends on, beside the key
    _is_per_batch = False
    _decided: dict[int, int] | None = None  # of the batch that is being sent: message → flow

    @property
    def has_policy(self) -> bool:
        """Whether a routing policy in Python chooses the flow."""
        return self._pins is not None

    @property
    def route(self) -> str | None:
        """The channel's routing policy: a name, with parameters as JSON behind it."""
        return self._route

    def set_route(self, route: str | None, rows: Iterable[Sequence[Any]] = ()) -> None:
        """Let another policy choose from the next message on; pins of the one before are forgotten."""
        self.give_rows(rows)
        if (route or None) == self._route:
            return
        self._route = route or None
        spec = names.parse(route) if route else None
        self._reads, self._is_per_batch = (), False
        is_native = spec is not None and spec.is_built_in
        self._pins = RoutePins(self._ask_route, self._on_pin) if spec and not is_native else None
        kernel = spec.name if spec is not None and is_native and spec.name != "broadcast" else ""
        options = {k: v for k, v in spec.params.items() if k in _NATIVE_OPTIONS} if spec else {}
        self.native.set_route(kernel, seed=self.endpoint, **(options if kernel else {}))

    def give_rows(self, rows: Iterable[Sequence[Any]]) -> None:
        """Tell the native sender what the daemon knows of targets: weight, rank, distance, load."""
        for row in rows:
            Row(*row).give_to(self.native)

    def forget_flow(self, flow: int) -> None:
        """Unpin a flow that is gone."""
        pins = self._pins
        if pins is not None:
            pins.forget_flow(flow)

    def pinned(self, key: bytes | None) -> int:
        """Return the flow that the channel's policy chose for `key` before; 0: `choose` has to ask."""
        return self._pins.pinned(key) if self._pins is not None and not self._reads else 0

    def choose(self, message: Any, key: bytes | None, meta: bytes, tensors: list[Any]) -> int:
        """Return the flow that the channel's policy gives this message; 0 where it did not answer."""
        pins = self._pins
        if pins is None:
            return 0
        if self._decided is not None and (flow := self._decided.pop(id(message), 0)):
            return flow
        asked: Hashable = key
        if self._reads:
            values = header_fields(message, self._reads).values()
            asked = (key, *(tuple(v) if isinstance(v, list) else v for v in values))
        return pins.flow_for(asked, lambda: self._header(message, key, meta, tensors))

    def preferred(self, message: Any, key: bytes | None, meta: bytes, tensors: list[Any]) -> int:
        """Return the flow that the channel's policy gives a request; 0: the requester decides by itself."""
        if self._pins is not None:
            return self.choose(message, key, meta, tensors)
        try:
            return int(self.native.decide(key)) if self._route else 0
        except FabricError:
            return 0  # what is wrong with the port, the send says

    def other_flows(
        self, message: Any, key: bytes | None, meta: bytes, tensors: list[Any], flow: int
    ) -> Iterator[int]:
        """Yield what to try instead of a flow that is gone: the policy's next choice, then the endpoint's own."""
        self.forget_flow(flow)
        other = self.choose(message, key, meta, tensors)
        if other != flow:
            yield other
            self.forget_flow(other)
        yield 0

    def set_asks(self) -> None:
        """The way of asking is known now: per flow, per batch, by which fields."""

    # ---- inside

    def _header(
        self, message: Any, key: bytes | None, meta: bytes, tensors: list[Any]
    ) -> dict[str, Any]:
        size = len(meta) + sum(memoryview(tensor).nbytes for tensor in tensors)
        fields = header_fields(message, self.type.scalar_names)
        return {
            "channel": self.channel, "endpoint": self.endpoint, "key": key, "klass": self.klass, "size": size,
            "fields": fields,
        }  # fmt: skip

    def _ask_route(self, header: dict[str, Any]) -> tuple[int, float]:
        answer = self._request_route(header)
        flow, ttl_s = int(answer.get("flow") or 0), float(answer.get("ttl_s") or 0.0)
        if fallback := answer.get("fallback"):
            flow = self._fall_back(fallback, header["key"], ttl_s, bool(answer.get("is_silent")))
        return flow, ttl_s

    def _request_route(self, header: dict[str, Any]) -> dict[str, Any]:
        pins = self._pins
        hits = self.native.pin_hits() + (pins.hit_count if pins is not None else 0)
        asked = {**header, "hits": hits}
        answer, _ = self._port.request("route_ask", asked, limits.ROUTE_ASK_S)
        reads = tuple(str(name) for name in answer.get("reads") or ())
        known = set(self.type.scalar_names)
        self._reads = tuple(name for name in reads if name in known)
        if bool(self._reads) or answer.get("per") == "batch":
            self._is_per_batch = answer.get("per") == "batch"
            self.set_asks()
        return answer

    def _fall_back(self, policy: str, key: bytes | None, ttl_s: float, is_silent: bool) -> int:
        """Choose by the declared fallback: for this key, or natively for all while the policy gives no answer."""
        pins = self._pins
        if pins is not None:
            pins.fallback_count += 1
        until_ns = monotonic_ns() + int(ttl_s * 1e9)
        self.native.fall_back(policy, until_ns if is_silent else 0)
        if not is_silent:
            return int(self.native.decide(key))
        if pins is not None:
            pins.quiet_until_ns = until_ns
        return 0

    def _on_pin(self, key: Hashable, flow: int, until_ns: int) -> None:
        if not self._reads and (key is None or isinstance(key, bytes)):
            self.native.pin(key, flow, until_ns)

    def _send_each(
        self, messages: Sequence[Any], keys: list[bytes | None], deadline: float | None, deadline_ns: int
    ) -> int:  # fmt: skip
        """A routing policy may have to be asked for every message; one of ``per="batch"`` is asked for all at once."""
        for count, (message, key) in enumerate(zip(messages, keys, strict=True)):
            left = left_s(deadline_ns)
            if count and deadline_ns and not left:
                return count
            if self._is_per_batch and count % limits.ROUTE_BATCH_MAX == 0:
                self._decide_batch(messages, keys, count)
            try:
                self.send(message, key, left if deadline is not None else None)  # type: ignore[attr-defined]
            except (DeadlineExceeded, WouldBlock, RejectedError):
                if count:
                    return count
                raise
        return len(messages)

    def _decide_batch(self, messages: Sequence[Any], keys: list[bytes | None], start: int) -> None:
        """Ask once where the next messages of a batch go; those without an answer are asked for one by one."""
        batch = list(zip(messages, keys, strict=True))[start : start + limits.ROUTE_BATCH_MAX]
        headers = [self._header(message, key, *self.type.encode(message)) for message, key in batch]
        try:
            flows = self._request_route({**headers[0], "batch": headers}).get("flows") or []
        except FabricError:
            return
        self._decided = {id(m): int(flow) for (m, _), flow in zip(batch, flows, strict=False)}


_NATIVE_OPTIONS = ("load_factor", "spill")
