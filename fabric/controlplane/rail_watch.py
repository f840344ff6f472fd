"""What makes a rail bad before its connections break: the interface, the engine's judgement, an unanswered request.

Belongs to the daemon's loop. Rails of an interface that is gone are given up at once. The control connection is moved
to another rail by the node that dials it, so that a node is not taken for dead while one rail works.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fabric import errors, limits
from fabric.abc.link import GROUP_CONTROL
from fabric.controlplane.rail_changes import WELL
from fabric.controlplane.rails import rail_of
from fabric.links.dial import is_stalled, nudge

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon
    from fabric.controlplane.peer_links import PeerLinks
    from fabric.paths.discovery.netlink import LinkChange, LinkWatcher


OFTEN_S = 10.0  #: after an interface went, its return is looked for often for so long


class RailWatch:
    """One per daemon."""

    def __init__(self, daemon: Daemon, links: PeerLinks) -> None:
        self._daemon = daemon
        self._links = links
        self._watcher: LinkWatcher | None = None
        self._again: asyncio.TimerHandle | None = None
        self._often_until = 0.0
        self.moves = 0  #: of control connections to another rail, as asked for by this node

    def start(self) -> None:
        """Watch interfaces and rails. Where the kernel does not tell of interfaces, connections are judged alone."""
        from fabric.paths.discovery.netlink import LinkWatcher

        self._daemon.gateway.on_rail.append(self._on_rail)
        self._watcher = LinkWatcher(self._on_interface)
        try:
            self._watcher.start(asyncio.get_running_loop())
        except errors.BrokenError as error:
            self._daemon.context.events.add("interfaces not watched", reason=str(error))
        self._look()

    def stop(self) -> None:
        """Watch no more. Idempotent."""
        if self._watcher is not None:
            self._watcher.close()
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def look_at_control(self, number: int, sent_s: float) -> None:
        """What was sent to a node at `sent_s`, of the loop's clock, is not answered: is it the path?"""
        connection = self._links.peer(number)
        ago_s = asyncio.get_running_loop().time() - sent_s
        if connection is not None and is_stalled(connection.socket, ago_s):
            self.move_control(number, "its path is silent")

    def move_control(self, number: int, reason: str) -> None:
        """Have the control connection to a node on another rail, where one carries and this node is who dials."""
        if self._links.peer(number) is None or not self._links.dials(number):
            return
        rails = self._links.rails_of(number)
        rail = self._links.rails.control_rail(number, rails)
        has_other = self._links.rails.has_other(number, len(rails), rail)
        if has_other and self._links.dial_other_rail(number):
            self.moves += 1
            name = self._links.rails.name_of(number)
            self._daemon.context.events.add(
                "control moves", severity="info", node=name, rail=rail, reason=reason
            )

    def _on_rail(self, number: int, event: dict[str, Any]) -> None:
        """Leave a rail of which the engine thinks badly."""
        rails = self._links.rails_of(number)
        rail = self._links.rails.control_rail(number, rails)
        if event["to"] not in WELL and event["rail"] == rail:
            self.move_control(number, f"{event['to']}: {event.get('reason', '')}")

    def _on_interface(self, change: LinkChange) -> None:
        self._look()

    def _look(self) -> None:
        """What went over an interface that is gone is lost now, not when its silence shows.

        The kernel tells at once of the first interface that changes, of the others up to a second later: while one is
        down, the rest are looked at again and again.
        """
        rails = self._links.rails
        found = rails.look_at_interfaces()
        lost = {(n, rail_of(g)): interface for n, g, interface in found.gone if g != GROUP_CONTROL}
        for (number, rail), interface in sorted(lost.items()):
            self._daemon.gateway.lose_rail(number, rail, f"interface {interface} is down")
        for number, group, interface in found.gone:
            connection = self._links.peer(number) if group == GROUP_CONTROL else None
            if connection is not None:
                connection.is_lost = True
                self.move_control(number, f"interface {interface} is down")
        for target in found.back:
            nudge(target)
        loop = asyncio.get_running_loop()
        if lost or found.back:
            self._often_until = loop.time() + OFTEN_S
        if found.is_down and self._again is None:
            pause_ms = limits.RAIL_LOOK_MS[loop.time() > self._often_until]
            self._again = loop.call_later(pause_ms / 1000, self._look_again)

    def _look_again(self) -> None:
        self._again = None
        self._look()
