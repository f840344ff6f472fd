"""The rails to each peer: which addresses join the two nodes, how dialling them goes, which connections are up.

A rail is one address of the node that accepts; the node that dials comes from its own address in the same network.
Belongs to the daemon's loop; `PeerLinks` dials, the engine moves bytes and judges health. Tables are bounded: rails of
a peer by RAILS_PER_PEER_MAX, peers by NODES_MAX.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fabric import errors, limits
from fabric.abc.link import GROUP_CONTROL
from fabric.controlplane.rail_dial import Dial
from fabric.links import addresses
from fabric.links.addresses import LocalAddress
from fabric.links.dial import Target
from fabric.links.rail_link import TCP, missing
from fabric.registry.records import NodeRecord, RailRecord

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

STEADY_S = 1.0  #: a connection that was lost sooner is not dialled again without a pause
CARRIED_BYTES = 4096  #: unless it had carried this: a peer that closes each takes less
SHOWN_FRESH_S = 0.2  #: what listings say of interfaces may be this old
_LISTENING = ("listen/tcp", *(f"listen/tcp/{n}" for n in range(1, limits.RAILS_PER_PEER_MAX)))
TELL_AFTER = 3  #: failures in a row, then a rail is told of as not reached


def rail_of(group: int) -> int:
    """Return the rail of a combined group number."""
    return group // 2


def groups_of(rail: int) -> tuple[int, int]:
    """Return the combined numbers of a rail's two connections."""
    return rail * 2, rail * 2 + 1


@dataclass(frozen=True, slots=True)
class Ends:
    """Both addresses of a connection that is up, and the peer's port."""

    local: str
    remote: str
    port: int = 0

    @property
    def far(self) -> tuple[str, int]:
        """The peer's address with its port."""
        return self.remote, self.port


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at the interfaces found.

    Parameters
    ----------
    gone : list of (node, group, interface)
        Connections whose interface is down or no more.
    back : list of Target
        Peers beyond an interface that came back.
    is_down : bool
        An interface of ours is down: worth another look soon, since the kernel may tell late of its return.
    """

    gone: list[tuple[int, int, str]] = field(default_factory=list)
    back: list[Target] = field(default_factory=list)
    is_down: bool = False


def with_join(
    rails: tuple[RailRecord, ...], join: tuple[str, int], reached: tuple[str, int] | None
) -> tuple[RailRecord, ...]:
    """Return the addresses of the registry as this node can dial them.

    Where the address that the operator gave, and the one that it `reached`, are none of those that the registry knows
    itself by, it stands behind a forwarding: then what the operator gave is its first rail.
    """
    known = {(rail.host, rail.port) for rail in rails}
    if known & {join, reached}:
        return rails
    return (RailRecord(host=join[0], port=join[1]), *rails[1:])


class Rails:
    """What this node knows of its rails."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._dials: dict[tuple[int, int], Dial] = {}
        self._ends: dict[tuple[int, int], Ends] = {}  # of the connections that are up
        self._last: dict[tuple[int, int], Ends] = {}  # of those, and of those that were
        self._usable: set[str] = set()  # own addresses, at the last look
        self._down: set[str] = set()  # those of interfaces that are down
        self._missed: set[tuple[int, int]] = set()  # (node, rail) told of as not reached
        self._shown: tuple[LocalAddress, ...] = ()
        self._shown_s = -SHOWN_FRESH_S
        self._changed = asyncio.Event()  # an interface came or went: try at once
        self.losses: collections.Counter[tuple[int, int]] = collections.Counter()  #: (node, rail)
        self.reached: tuple[str, int] | None = None  #: the registry's address, as connected

    # ---------------------------------------------------------------- own addresses
    def listening(self) -> list[tuple[str, int]]:
        """Return the addresses that this node listens on, the first rail first."""
        found = []
        for fd in self.listening_fds():
            with socket.socket(fileno=os.dup(fd)) as bound:
                host, port = bound.getsockname()[:2]
                found.append((host, port))
        return found

    def listening_fds(self) -> list[int]:
        """Return the keeper's listening sockets, the first rail's first."""
        items = self._daemon.loaded.items
        return [items[name][1] for name in _LISTENING if name in items]

    def listening_links(self) -> list[str]:
        """Return the link of each of them."""
        items = self._daemon.loaded.items
        return [items[name][0].get("link", TCP) for name in _LISTENING if name in items]

    def own(self) -> tuple[RailRecord, ...]:
        """Return this node's rails as others are told of them."""
        found = addresses.local_addresses()
        each = zip(self.listening(), self.listening_links(), strict=True)
        return tuple(self._record(*address, found, link) for address, link in each)

    @staticmethod
    def _record(host: str, port: int, found: Sequence[LocalAddress], link: str = TCP) -> RailRecord:
        owner = addresses.owner_of(host, found)
        if owner is None:
            return RailRecord(host=host, port=port, link=link)
        speed = addresses.bits_per_second(owner.interface, owner.index)
        return RailRecord(
            host=host, port=port, interface=owner.interface, bits_per_second=speed, link=link
        )

    # ---------------------------------------------------------------- a peer's
    def addresses_of(self, number: int, registry: int) -> tuple[RailRecord, ...]:
        """Return the addresses to dial a node at; empty when it is dead, unknown or listens nowhere."""
        node = self._daemon.registry.view.node(number)
        join = self._daemon.options.join
        if join is not None and number == registry:
            rails = node.addresses() if node is not None else ()
            return with_join(rails, join, self.reached)[: limits.RAILS_PER_PEER_MAX]
        if node is None or node.state == "dead":
            return ()
        return node.addresses()[: limits.RAILS_PER_PEER_MAX]

    def targets(self, rails: Sequence[RailRecord]) -> list[Target]:
        """Return for each rail where to connect, and from where."""
        found = addresses.local_addresses()
        near = zip(rails, self._near(rails, found), strict=True)
        return [_target(rail, local, found) for rail, local in near]

    def _near(
        self, rails: Sequence[RailRecord], found: Sequence[LocalAddress]
    ) -> list[LocalAddress | None]:
        own = [addresses.owner_of(host, found) for host, _ in self.listening()]
        return addresses.pair([a for a in own if a is not None], found, [r.host for r in rails])

    def target(self, rails: Sequence[RailRecord], rail: int, dial: Dial) -> Target:
        """Return where to connect to one rail.

        One that never was up is tried without its interface every second time: its peer may answer over another one.

        Raises
        ------
        PathBrokenError
            The interface is down. Asking the network in vain now would delay the answer when it is back.
        """
        found = addresses.local_addresses()
        local = self._near(rails, found)[rail]
        target = _target(rails[rail], local, found)
        if local is not None and not local.is_usable and target.device:
            raise errors.PathBrokenError(
                f"interface {local.interface} is down", interface=local.interface
            )
        return replace(target, device="") if not dial.took_s and dial.failures % 2 else target

    def ranked(self, number: int, count: int, avoid: int = -1) -> list[int]:
        """Return the rails of a peer, those first on which its engine is heard; `avoid` last."""
        states = {row["rail"]: row for row in self._daemon.gateway.rails(number)}

        def order(rail: int) -> tuple[bool, bool, int, int]:
            row = states.get(rail, {})
            is_well = self.is_up(number, rail) and row.get("state", "up") == "up"
            return rail == avoid, not is_well, int(row.get("base_ns", 0)), rail

        return sorted(range(count), key=order)

    def has_other(self, number: int, count: int, avoid: int) -> bool:
        """Tell whether another rail than `avoid` carries now."""
        states = {row["rail"]: row["state"] for row in self._daemon.gateway.rails(number)}
        others = (rail for rail in range(count) if rail != avoid and self.is_up(number, rail))
        return any(states.get(rail, "up") == "up" for rail in others)

    # ---------------------------------------------------------------- connections
    def is_up(self, number: int, rail: int) -> bool:
        """Tell whether both connections of a rail are up."""
        return all((number, group) in self._daemon.gateway.up for group in groups_of(rail))

    def is_cut_off(self, number: int) -> bool:
        """Tell whether no data connection leads to a node."""
        return not any(node == number for node, _ in self._daemon.gateway.up)

    def control_rail(self, number: int, rails: Sequence[RailRecord]) -> int:
        """Return the rail that the control connection which this node dialled goes over."""
        ends = self._ends.get((number, GROUP_CONTROL))
        far = ends.far if ends is not None else None
        return next((n for n, rail in enumerate(rails) if (rail.host, rail.port) == far), 0)

    def dial_of(self, number: int, group: int) -> Dial:
        """Return how dialling one connection goes."""
        return self._dials.setdefault((number, group), Dial())

    def failed(self, number: int, group: int, error: BaseException, count: int) -> None:
        """Note an attempt that failed; of several rails, tell once of one that is not reached."""
        dial = self.dial_of(number, group)
        dial.failures += 1
        dial.error = str(error)
        key = number, rail_of(group)
        is_new = group != GROUP_CONTROL and dial.failures >= TELL_AFTER and key not in self._missed
        if is_new and count > 1:
            self._missed.add(key)
            self._tell("rail not reached", *key, severity="warning", reason=dial.error)

    def connected(self, number: int, group: int, ends: Ends) -> None:
        """Note a connection that is up, dialled or accepted."""
        self._ends[number, group] = self._last[number, group] = ends
        dial = self.dial_of(number, group)
        dial.failures, dial.error, dial.since_s = 0, "", time.monotonic()
        key = number, rail_of(group)
        if group != GROUP_CONTROL and key in self._missed and self.is_up(*key):
            self._missed.discard(key)
            self._tell("rail reached", *key, severity="info", local=ends.local)

    def disconnected(self, number: int, group: int, carried: int = 0) -> None:
        """Note a data connection that is lost, and the bytes that it had carried.

        One that worked is dialled again at once, however short it lasted: a path that damages frames costs many.
        """
        self._ends.pop((number, group), None)
        dial = self.dial_of(number, group)
        has_worked = carried >= CARRIED_BYTES or time.monotonic() - dial.since_s >= STEADY_S
        dial.short = 0 if has_worked else dial.short + 1
        self.losses[number, rail_of(group)] += 1

    def can_use(self, number: int, rail: int, link: str) -> bool:
        """Tell whether a peer's rail has a link that is here; of one that is left out, tell once why."""
        wanted = self._daemon.options.links
        why = missing(link)
        if not why and wanted and link.partition("+")[0] not in wanted:
            why = f"{link.partition('+')[0]} is not among --links {','.join(wanted)}"
        dial = self.dial_of(number, groups_of(rail)[0])
        if why and dial.error != why:
            dial.error = why
            self._tell("rail left out", number, rail, severity="info", link=link, reason=why)
        return not why

    def forget(self, number: int) -> None:
        """Forget a node that is gone."""
        self._dials = {key: kept for key, kept in self._dials.items() if key[0] != number}
        self._ends = {key: kept for key, kept in self._ends.items() if key[0] != number}
        self._last = {key: kept for key, kept in self._last.items() if key[0] != number}
        self._missed = {key for key in self._missed if key[0] != number}
        for key in [key for key in self.losses if key[0] == number]:
            del self.losses[key]

    def close_session(self, number: int) -> None:
        """Its data connections are closed: a new session begins."""
        for key in [k for k in self._ends if k[0] == number and k[1] != GROUP_CONTROL]:
            del self._ends[key]

    def _tell(self, kind: str, number: int, rail: int, **fields: Any) -> None:
        name = self.name_of(number)
        self._daemon.context.events.add(kind, node=name, rail=rail, **fields)

    # ---------------------------------------------------------------- interfaces
    async def pause(self, seconds: float) -> None:
        """Wait before the next attempt; shorter when an interface comes or goes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def look_at_interfaces(self) -> Look:
        """Compare the interfaces with what connections use; when one comes back, dialling goes on at once."""
        found = addresses.local_addresses()
        now = {a.address: a for a in found}
        usable = {a.address for a in found if a.is_usable}
        came, self._usable = usable - self._usable, usable
        self._down = now.keys() - usable
        if not found:
            return Look()
        gone = [
            (number, group, _interface(ends.local, found))
            for (number, group), ends in self._ends.items()
            if not self._stays(ends, found)
        ]
        back = {
            Target(ends.remote, ends.port or 9, ends.local, now[ends.local].interface)
            for ends in self._last.values()
            if ends.local in came and addresses.owner_of(ends.remote, found) is None
        }
        own = {*(host for host, _ in self.listening()), *(e.local for e in self._last.values())}
        is_down = any(a in now and a not in usable for a in own)
        if came:
            self._changed.set()
            self._changed = asyncio.Event()
        return Look(gone, sorted(back, key=str), is_down)

    def unheard(self) -> set[int]:
        """Return the nodes that cannot be heard of now, because each interface to them that this node used is down."""
        reached: dict[int, list[bool]] = {}
        for (number, group), ends in self._last.items():
            if group != GROUP_CONTROL:
                reached.setdefault(number, []).append(ends.local not in self._down)
        return {number for number, found in reached.items() if not any(found)}

    @staticmethod
    def _stays(ends: Ends, found: Sequence[LocalAddress]) -> bool:
        """Tell whether a connection has its interface, needs none (on this machine), or is not known by it (IPv6)."""
        if addresses.number_of(ends.local) is None:
            return True
        owner = addresses.owner_of(ends.local, found)
        is_there = owner is not None and owner.is_usable
        return is_there or addresses.owner_of(ends.remote, found) is not None

    # ---------------------------------------------------------------- shown
    def rows(
        self, number: int, rails: Sequence[RailRecord], is_dialled: bool, size_bytes: int = 0
    ) -> list[dict[str, Any]]:
        """Return one row for each rail of a peer; `rails` are the addresses of the node that accepts."""
        scores = {row["rail"]: row for row in self._daemon.gateway.rails(number, size_bytes)}
        if time.monotonic() - self._shown_s > SHOWN_FRESH_S:  # a listing asks for every peer
            self._shown, self._shown_s = addresses.local_addresses(), time.monotonic()
        found = self._shown
        node = self._daemon.registry.view.node(number)
        return [
            {
                "state": "down",
                **scores.get(rail, {}),
                **self._row(number, rail, record, is_dialled),
                **self._interfaces(number, rail, found, node),
            }
            for rail, record in enumerate(rails)
        ]

    def _row(self, number: int, rail: int, record: RailRecord, is_dialled: bool) -> dict[str, Any]:
        dials = [self.dial_of(number, group) for group in groups_of(rail)]
        connections = sum((number, group) in self._daemon.gateway.up for group in groups_of(rail))
        waiting = "dialling" if is_dialled else "awaited"
        return {
            "rail": rail,
            "link": record.link,
            "address": f"{record.host}:{record.port}",
            "connections": connections,
            "dial": "up" if connections == 2 else waiting,
            "dial_failures": max(dial.failures for dial in dials),
            "last_error": next((dial.error for dial in dials if dial.error), ""),
            "losses": self.losses[number, rail],
        }

    def _interfaces(
        self, number: int, rail: int, found: Sequence[LocalAddress], node: NodeRecord | None
    ) -> dict[str, Any]:
        ends = next((e for g in groups_of(rail) if (e := self._ends.get((number, g)))), None)
        if ends is None:
            return {"local": "", "remote": "", "interface": "", "peer_interface": "",
                    "bits_per_second": 0, "peer_bits_per_second": 0}  # fmt: skip
        own = self._record(ends.local, 0, found)
        known = node.addresses() if node is not None else ()
        there = next((r for r in known if r.host == ends.remote), RailRecord(host="", port=0))
        return {
            "local": ends.local,
            "remote": ends.remote,
            "interface": own.interface,
            "peer_interface": there.interface,
            "bits_per_second": own.bits_per_second,
            "peer_bits_per_second": there.bits_per_second,
        }

    def name_of(self, number: int) -> str:
        """Return the name of a node; its number where no view has named it."""
        node = self._daemon.registry.view.node(number)
        return node.name if node is not None else str(number)


def _target(rail: RailRecord, local: LocalAddress | None, found: Sequence[LocalAddress]) -> Target:
    if local is None:
        return Target(rail.host, rail.port)
    device = addresses.device_for(local, rail.host, found)
    return Target(rail.host, rail.port, local.address, device)


def _interface(address: str, found: Sequence[LocalAddress]) -> str:
    owner = addresses.owner_of(address, found)
    return owner.interface if owner is not None else f"of {address}"


def ends_of(sock: socket.socket) -> Ends:
    """Return both addresses of a connected socket; empty ones when it is broken already."""
    try:
        return Ends(sock.getsockname()[0], *sock.getpeername()[:2])
    except OSError:
        return Ends("", "")
