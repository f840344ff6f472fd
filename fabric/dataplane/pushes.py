"""What the daemon pushes to a port: lanes, flows, stops, and the pushes that others registered for.

`take` runs on the control thread and does the native calls; registered handlers run on a thread of their own each.
A push may come twice (after a reconnect): what is known already is only confirmed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fabric import errors
from fabric.dataplane.sender import REASONS

if TYPE_CHECKING:
    from fabric.dataplane.connection import ControlConnection

log = logging.getLogger("fabric.pushes")

Handler = Callable[[dict[str, Any]], Any]


class Pushes:
    """Push handling of one port. `tell(endpoint or None, method, *args)` reaches its endpoints."""

    def __init__(
        self, name: str, native: Any, connection: ControlConnection, tell: Callable[..., None]
    ) -> None:
        self._name = name
        self._native = native
        self._connection = connection
        self._tell = tell
        self._lock = threading.Lock()
        self._flows: dict[int, dict[str, Any]] = {}
        self._handlers: dict[str, Handler] = {}
        self._pending_stop: dict[str, Any] | None = None
        self._lanes: set[int] = set()
        self._flows_in: dict[int, dict[str, Any]] = {}

    def register(self, op: str, handler: Handler) -> None:
        """Answer pushes called `op` with `handler`; a stop that came before its handler is delivered now."""
        with self._lock:
            self._handlers[op] = handler
            missed = None
            if op == "stop":
                missed, self._pending_stop = self._pending_stop, None
        if missed is not None:
            self._start_handler("stop", handler, missed)

    def flows_of(self, endpoint: int) -> list[dict[str, Any]]:
        """Return the open flows of a sending endpoint."""
        with self._lock:
            return [flow for flow in self._flows.values() if flow["endpoint"] == endpoint]

    def flow_in(self, flow: int) -> dict[str, Any]:
        """Return credit and reply flow of an incoming flow; empty when it is closed."""
        with self._lock:
            return self._flows_in.get(flow, {})

    def forget_endpoint(self, endpoint: int) -> None:
        """Drop the flows of a closed endpoint."""
        with self._lock:
            self._flows = {n: f for n, f in self._flows.items() if f["endpoint"] != endpoint}

    def take(self, op: str, fields: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Do one push and return its answer; ``later`` in it: the handler's thread answers. Control thread."""
        own = getattr(self, f"_push_{op}", None)
        if own is not None:
            return own(fields, fds) or {}
        with self._lock:
            handler = self._handlers.get(op)
            if handler is None and op == "stop":
                self._pending_stop = fields
                return {}
        if handler is None:
            raise errors.ConfigError(f"port {self._name!r} has no handler for {op!r}", op=op)
        self._start_handler(op, handler, fields)
        return {"later": True}

    def _start_handler(self, op: str, handler: Handler, fields: dict[str, Any]) -> None:
        def work() -> None:
            try:
                answer = handler(fields) or {}
                if not isinstance(answer, dict):
                    answer = {}
            except Exception as error:  # reported to the daemon, which decides
                log.exception("push %s failed", op)
                answer = {"error": errors.to_wire(error)}
            self._connection.answer_push(fields.get("push", 0), answer)

        threading.Thread(target=work, name=f"fabric-{op}", daemon=True).start()

    def _push_lane(self, fields: dict[str, Any], fds: list[int]) -> None:
        lane = fields["lane"]
        if lane in self._lanes:
            return
        if len(fds) != 3:
            raise errors.PeerProtocolError(f"lane {lane} came with {len(fds)} descriptors, not 3")
        self._native.add_lane(
            lane,
            fds[0],
            fields["side"],
            fields["klass"],
            fields["peer_port"],
            fields["peer_incarnation"],
            *fds[1:],
        )
        self._lanes.add(lane)

    def _push_lane_drop(self, fields: dict[str, Any], _: list[int]) -> None:
        if fields["lane"] in self._lanes:
            self._lanes.discard(fields["lane"])
            self._native.remove_lane(fields["lane"])

    def _push_flow_in(self, fields: dict[str, Any], _: list[int]) -> None:
        flow = fields["flow"]
        if flow not in self._flows_in:
            self._native.add_flow_in(
                fields["endpoint"],
                flow,
                fields["lane"],
                fields["producer_port"],
                fields["messages"],
                fields["bytes"],
            )
            with self._lock:
                self._flows_in[flow] = {
                    key: fields.get(key, 0) for key in ("messages", "bytes", "reply_flow")
                }

    def _push_flow_in_close(self, fields: dict[str, Any], _: list[int]) -> None:
        with self._lock:
            known = self._flows_in.pop(fields["flow"], None)
        if known is not None:
            self._native.close_flow_in(fields["flow"], bool(fields.get("drain", True)))

    def _push_flow_out(self, fields: dict[str, Any], _: list[int]) -> None:
        flow = fields["flow"]
        with self._lock:
            is_known = flow in self._flows
        if not is_known:
            if fields.get("row"):
                self._tell(fields["endpoint"], "give_rows", [fields["row"]])
            self._native.add_flow_out(
                fields["endpoint"], flow, fields["lane"], fields["target_endpoint"], fields["messages"],
                fields["bytes"], fields["generation"], bool(fields.get("after_drain", False)),
            )  # fmt: skip
            with self._lock:
                self._flows[flow] = {
                    key: fields.get(key, 0)
                    for key in ("flow", "endpoint", "reply_flow", "target_endpoint", "row")
                }
        self._tell(fields["endpoint"], "look_at_flows")
        self._tell(fields["endpoint"], "wake")

    def _push_codecs(self, fields: dict[str, Any], _: list[int]) -> None:
        self._tell(fields["endpoint"], "set_codecs", fields.get("codecs"))

    def _push_path_rates(self, fields: dict[str, Any], _: list[int]) -> None:
        self._tell(None, "set_path_rates", {int(n): float(r) for n, r in fields["rates"]})

    def _push_codec_why(self, fields: dict[str, Any], _: list[int]) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        self._tell(fields["endpoint"], "explain_codec", rows)
        return {"rows": rows}

    def _push_route(self, fields: dict[str, Any], _: list[int]) -> None:
        self._tell(fields["endpoint"], "set_route", fields.get("route"), fields.get("rows") or ())

    def _push_route_table(self, fields: dict[str, Any], _: list[int]) -> None:
        self._tell(fields["endpoint"], "give_rows", fields["rows"])

    def _push_flow_suspect(self, fields: dict[str, Any], _: list[int]) -> None:
        """The receiver of a flow is silent, or awake again: new work avoids it, and comes back."""
        with self._lock:
            flow = self._flows.get(fields["flow"])
            if flow is not None:
                flow["suspect"] = bool(fields["suspect"])
        if flow is not None:
            self._native.suspect_flow(fields["flow"], bool(fields["suspect"]))
            self._tell(flow["endpoint"], "wake")

    def _push_sender_forget(self, fields: dict[str, Any], _: list[int]) -> None:
        """The counts of a closed, drained sender are archived: its ledger row may serve another."""
        self._native.forget_sender(fields["endpoint"])

    def _push_flow_close(self, fields: dict[str, Any], _: list[int]) -> None:
        flow = self._forget_flow(fields["flow"])
        if flow is not None:
            self._native.close_flow_out(fields["flow"])
            self._tell(flow["endpoint"], "forget_flow", fields["flow"])
            self._tell(flow["endpoint"], "look_at_flows")

    def _push_flow_calls(self, fields: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Say how many requests that went out on a (closed) flow have not been answered whole."""
        counts: list[int] = []
        self._tell(fields["endpoint"], "count_calls", fields["flow"], counts)
        return {"calls": sum(counts)}

    def _push_flow_lost(self, fields: dict[str, Any], _: list[int]) -> None:
        flow = self._forget_flow(fields["flow"])
        reason = int(fields.get("reason", 6))
        self._native.lose_flow_out(
            fields["flow"],
            fields.get("handed_upto", 0),
            reason,
            bool(fields.get("reader_lives", False)),
        )
        endpoint = flow["endpoint"] if flow is not None else fields.get("endpoint", 0)
        name = REASONS[reason] if 0 <= reason < len(REASONS) else str(reason)
        self._tell(endpoint, "forget_flow", fields["flow"])
        self._tell(None, "lose_flow", fields["flow"], name)

    def _forget_flow(self, flow: int) -> dict[str, Any] | None:
        with self._lock:
            return self._flows.pop(flow, None)
