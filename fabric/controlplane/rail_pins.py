"""Pins: traffic to a node bound to some of its rails until it is unpinned; kept over reconnects and restarts.

Belongs to the daemon's loop. A pin holds what this node sends; the other node has pins of its own. It is never given
up by itself: while all its rails are down what goes in chunks waits, and every place that shows paths says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fabric import errors
from fabric.paths.explain import is_waiting, mask_of

if TYPE_CHECKING:
    from fabric.controlplane.context import Context
    from fabric.controlplane.gateway import NodeGateway

Rows = Sequence[Mapping[str, Any]]


class RailPins:
    """Name of a node → rails. `name_of(number)` is the node's name, empty for one that nobody knows."""

    def __init__(
        self, context: Context, gateway: NodeGateway, name_of: Callable[[int], str]
    ) -> None:
        self._context = context
        self._gateway = gateway
        self._name_of = name_of
        self._kept: dict[str, tuple[int, ...]] = {}

    def restore(self, items: Mapping[str, tuple[dict[str, Any], int]]) -> None:
        """Take back the pins that the keeper held; they are in force when their session opens."""
        for key, (value, _) in items.items():
            if key.startswith("pin/"):
                self._kept[value["peer"]] = tuple(value["rails"])

    def of(self, peer: str) -> tuple[int, ...]:
        """Return the rails that traffic to a node is bound to; empty: all."""
        return self._kept.get(peer, ())

    def all(self) -> dict[str, tuple[int, ...]]:
        """Return every pin by the node's name."""
        return dict(self._kept)

    def pin(self, number: int, rails: Sequence[int], rows: Rows) -> None:
        """Bind traffic to a node to `rails` from now on.

        Parameters
        ----------
        number : int
            The node's.
        rails : sequence of int
            At least one.
        rows : sequence of mapping
            The rails that there are.

        Raises
        ------
        ConfigError
            A rail of that number does not exist; those that do are named.
        """
        peer = self._name_of(number)
        known = sorted(int(row["rail"]) for row in rows)
        unknown = sorted(set(rails) - set(known))
        if unknown or not rails:
            have = f"it has {', '.join(map(str, known))}" if known else "it has none now"
            raise errors.ConfigError(
                f"there is no rail {', '.join(map(str, unknown)) or '(none was named)'} to node {peer!r}; {have}",
                node=peer,
                rails=unknown,
            )
        self._kept[peer] = tuple(sorted(set(rails)))
        self._context.keeper.put(f"pin/{peer}", {"peer": peer, "rails": list(self._kept[peer])})
        self.apply(number)
        self._tell("path pinned", peer, self._kept[peer])

    def unpin(self, number: int) -> bool:
        """Let all rails carry again; returns whether there was a pin."""
        peer = self._name_of(number)
        rails = self._kept.pop(peer, None)
        if rails is None:
            return False
        self._context.keeper.drop(f"pin/{peer}")
        self.apply(number)
        self._tell("path unpinned", peer, rails)
        return True

    def apply(self, number: int) -> None:
        """Bring the pin of a node into force in its session, where there is one."""
        session = self._gateway.session_of(number)
        if session:
            self._gateway.engine.pin(session, mask_of(self.of(self._name_of(number))))

    def waiting(self, peer: str, rows: Rows) -> str:
        """Return a warning when all pinned rails of a node are out of use; else nothing."""
        rails = self.of(peer)
        if not is_waiting(rows, rails):
            return ""
        numbers = ", ".join(map(str, rails))
        return (
            f"what goes to node {peer} in chunks waits: it is pinned to rail {numbers}, and none of it is up;"
            f" let it use the others with fabricctl path unpin {peer}"
        )

    def _tell(self, kind: str, peer: str, rails: Sequence[int]) -> None:
        numbers = ", ".join(map(str, rails))
        self._context.events.add(kind, severity="info", node=peer, text=f"{peer}: rail {numbers}")
