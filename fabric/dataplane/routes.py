"""What a sender remembers of a routing policy in Python: which flow a key goes to, asked once and kept for a while.

Bounded and aged; the answer comes from a stage host through the daemon, within `limits.ROUTE_ASK_S`. When nobody
answers, flow 0 lets the endpoint's own policy choose. One sender; its lock is the caller's.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from fabric import errors, limits
from fabric.dataplane.deadlines import monotonic_ns

log = logging.getLogger("fabric.routes")
_FIELD_BYTES_MAX = 256
_FIELD_ITEMS_MAX = 1024  # of a list of numbers, such as the hashes of a prompt's blocks

Ask = Callable[[dict[str, Any]], tuple[int, float]]


class Row(NamedTuple):
    """What the daemon says of one target, for policies that run natively."""

    endpoint: int
    weight: float = 1.0
    rank: int = 0
    distance: int = 0
    load: int = 0

    def give_to(self, native: Any) -> None:
        """Let a native sender know."""
        native.set_target(
            self.endpoint,
            weight=self.weight,
            rank=self.rank,
            distance=self.distance,
            load=self.load,
        )


class RoutePins:
    """Key → flow. `ask(header)` returns (flow, seconds it holds); `on_pin(key, flow, until_ns)` hears what is kept."""

    def __init__(
        self, ask: Ask, on_pin: Callable[[Hashable, int, int], None] = lambda key, flow, until: None
    ) -> None:
        self._ask = ask
        self._on_pin = on_pin
        self._lock = threading.Lock()
        self._pins: collections.OrderedDict[Hashable, tuple[int, int]] = collections.OrderedDict()
        self.asked_count = 0
        self.hit_count = 0
        self.fallback_count = 0
        self.quiet_until_ns = 0  #: nobody answered: not asked before

    def pinned(self, key: Hashable) -> int:
        """Return the flow that `key` is pinned to; 0 when it would have to be asked."""
        with self._lock:
            flow, until_ns = self._pins.get(key, (0, 0))
        return flow if until_ns > monotonic_ns() else 0

    def flow_for(self, key: Hashable, header: Callable[[], dict[str, Any]]) -> int:
        """Return the flow pinned to `key`, asking on a miss; 0 when nobody answered."""
        if flow := self.pinned(key):
            self.hit_count += 1
            return flow
        now = monotonic_ns()
        if now < self.quiet_until_ns:
            return 0
        self.asked_count += 1
        try:
            flow, ttl_s = self._ask(header())
        except errors.FabricError as error:
            self.fallback_count += 1
            log.warning("routing policy did not decide, the channel's default does: %s", error)
            return 0
        if flow and ttl_s > 0:
            self._keep(key, flow, now + int(min(ttl_s, limits.ROUTE_PIN_TTL_S) * 1e9))
        return flow

    def forget_flow(self, flow: int) -> None:
        """Unpin every key of a flow that closed or was lost."""
        with self._lock:
            for key in [key for key, pin in self._pins.items() if pin[0] == flow]:
                del self._pins[key]

    def _keep(self, key: Hashable, flow: int, until_ns: int) -> None:
        with self._lock:
            self._pins[key] = (flow, until_ns)
            self._pins.move_to_end(key)
            while len(self._pins) > limits.PINS_PER_SENDER_MAX:
                self._pins.popitem(last=False)
        self._on_pin(key, flow, until_ns)


def header_fields(message: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return what a policy may see of a message: numbers, booleans, short texts and bytes, lists of numbers."""
    found: dict[str, Any] = {}
    for name in names:
        value = getattr(message, name)
        is_text = isinstance(value, (str, bytes))
        if (
            (is_text and len(value) <= _FIELD_BYTES_MAX)
            or value is None
            or isinstance(value, (int, float))
            or _are_numbers(value)
        ):
            found[name] = value
    return found


def _are_numbers(value: Any) -> bool:
    is_short = isinstance(value, (list, tuple)) and 0 < len(value) <= _FIELD_ITEMS_MAX
    return is_short and all(isinstance(item, (int, float)) for item in value)
