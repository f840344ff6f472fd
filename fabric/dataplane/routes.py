"""Pins of a custom routing policy: which flow a key goes to, asked once per key and kept for a while.

Bounded and aged; the answer comes from a stage host through the daemon, within `limits.ROUTE_ASK_S`. When nobody
answers, flow 0 lets the endpoint's own policy choose. One sender; its lock is the caller's.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable
from typing import Any

from fabric import errors, limits
from fabric.dataplane.deadlines import monotonic_ns

log = logging.getLogger("fabric.routes")
_FIELD_BYTES_MAX = 256

Ask = Callable[[dict[str, Any]], tuple[int, float]]


class RoutePins:
    """Key → flow. `ask(header)` returns (flow, seconds it holds)."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._pins: collections.OrderedDict[bytes | None, tuple[int, int]] = (
            collections.OrderedDict()
        )
        self.asked_count = 0
        self.fallback_count = 0

    def pinned(self, key: bytes | None) -> int:
        """Return the flow that `key` is pinned to; 0 when it would have to be asked."""
        with self._lock:
            flow, until_ns = self._pins.get(key, (0, 0))
        return flow if until_ns > monotonic_ns() else 0

    def flow_for(self, key: bytes | None, header: Callable[[], dict[str, Any]]) -> int:
        """Return the flow pinned to `key`, asking on a miss; 0 when nobody answered."""
        if flow := self.pinned(key):
            return flow
        now = monotonic_ns()
        self.asked_count += 1
        try:
            flow, ttl_s = self._ask(header())
        except errors.FabricError as error:
            self.fallback_count += 1
            log.warning("routing policy did not decide, the channel's default does: %s", error)
            return 0
        if flow and ttl_s > 0:
            with self._lock:
                self._pins[key] = (flow, now + int(min(ttl_s, limits.ROUTE_PIN_TTL_S) * 1e9))
                self._pins.move_to_end(key)
                while len(self._pins) > limits.PINS_PER_SENDER_MAX:
                    self._pins.popitem(last=False)
        return flow

    def forget_flow(self, flow: int) -> None:
        """Unpin every key of a flow that closed or was lost."""
        with self._lock:
            for key in [key for key, pin in self._pins.items() if pin[0] == flow]:
                del self._pins[key]


def header_fields(message: Any, names: list[str]) -> dict[str, Any]:
    """Return the scalar fields that a policy may see: numbers, booleans, short strings and bytes."""
    found: dict[str, Any] = {}
    for name in names:
        value = getattr(message, name)
        is_text = isinstance(value, (str, bytes))
        if (
            (is_text and len(value) <= _FIELD_BYTES_MAX)
            or value is None
            or isinstance(value, (int, float))
        ):
            found[name] = value
    return found
