"""Watch the machine's network interfaces: who comes up, goes down, is gone or changes, as the kernel tells it.

One raw rtnetlink socket, read by an asyncio loop. `LinkTable` is pure: it takes messages and returns changes;
`LinkWatcher` does the IO. When the kernel had to drop messages (ENOBUFS) the whole table is asked for anew, so no
interface's state is lost: several changes of one become one, and a change of an address alone may be missed.
Callbacks run in the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fabric import errors, limits
from fabric.paths.discovery import rtnetlink


class LinkState(enum.StrEnum):
    """What became of an interface."""

    up = "up"  #: it can carry traffic
    down = "down"  #: it is there and carries nothing: switched off, or without carrier
    gone = "gone"  #: it is no more (removed, renamed, moved to another network namespace)
    changed = "changed"  #: an address or its MTU is another; whether it carries is as it was


@dataclass(frozen=True, slots=True)
class LinkChange:
    """One change of one interface.

    Attributes
    ----------
    interface : str
        Its name.
    index : int
        The kernel's number of it, which a rename keeps.
    state : LinkState
        What it is now, or `changed`.
    reason : str
        In words: ``no carrier``, ``address 10.0.0.1 is gone``.
    """

    interface: str
    index: int
    state: LinkState
    reason: str


@dataclass(frozen=True, slots=True)
class _Known:
    name: str
    is_on: bool
    is_running: bool
    mtu: int

    @property
    def state(self) -> LinkState:
        return LinkState.up if self.is_on and self.is_running else LinkState.down

    @property
    def reason(self) -> str:
        if self.state is LinkState.up:
            return "carries traffic"
        return "no carrier" if self.is_on else "switched off"


class LinkTable:
    """The interfaces as the messages so far tell of them. Pure: bytes in, changes out."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._addresses: set[tuple[int, bytes]] = set()
        self._seen: set[int] | None = None
        self.must_ask_again = (
            False  #: messages were dropped, or the table changed while it was read
        )
        self.error = 0  #: the kernel refused a request: its errno

    def interfaces(self) -> dict[str, LinkState]:
        """Return the interfaces that are known, by name."""
        return {known.name: known.state for known in self._known.values()}

    def indexes(self) -> dict[str, int]:
        """Return the kernel's numbers of the interfaces that are known, by name."""
        return {known.name: index for index, known in self._known.items()}

    @property
    def is_being_read(self) -> bool:
        """Tell whether the end of a whole table has yet to come."""
        return self._seen is not None

    def begin(self) -> None:
        """Expect a whole table: interfaces that it does not name are gone at its end."""
        self._seen = set()
        self.must_ask_again = False

    def apply(self, data: bytes) -> list[LinkChange]:
        """Return what the messages of one datagram change, in their order.

        What is cut short or of an unknown type is passed over.
        """
        changes: list[LinkChange] = []
        for kind, flags, body in rtnetlink.messages(data):
            if flags & rtnetlink.NLM_F_DUMP_INTR or kind == rtnetlink.NLMSG_OVERRUN:
                self.must_ask_again = True
            if kind in (rtnetlink.RTM_NEWLINK, rtnetlink.RTM_DELLINK):
                changes += self._link(kind, body)
            elif kind in (rtnetlink.RTM_NEWADDR, rtnetlink.RTM_DELADDR):
                changes += self._address(kind, body)
            elif kind == rtnetlink.NLMSG_ERROR:
                self._refused(body)
            elif kind == rtnetlink.NLMSG_DONE:
                changes += self._end()
        return changes

    def _link(self, kind: int, body: bytes) -> Iterator[LinkChange]:
        if len(body) < rtnetlink.LINK.size:
            return
        family, _, index, flags, _ = rtnetlink.LINK.unpack_from(body)
        if family != socket.AF_UNSPEC:  # a bridge speaks of its ports, which stay what they are
            return
        if kind == rtnetlink.RTM_DELLINK:
            yield from self._gone(index, "removed")
            return
        if self._seen is not None:
            self._seen.add(index)
        known = self._known.get(index)
        fields = dict(rtnetlink.attributes(body[rtnetlink.LINK.size :]))
        name = fields.get(rtnetlink.IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
        mtu = int.from_bytes(fields.get(rtnetlink.IFLA_MTU, b"")[:4], sys.byteorder)
        now = _Known(
            name or (known.name if known else f"if{index}"),
            bool(flags & rtnetlink.IFF_UP),
            bool(flags & rtnetlink.IFF_RUNNING),
            mtu or (known.mtu if known else 0),
        )
        self._known[index] = now
        yield from _difference(index, known, now)

    def _gone(self, index: int, reason: str) -> Iterator[LinkChange]:
        known = self._known.pop(index, None)
        self._addresses = {own for own in self._addresses if own[0] != index}
        if known is not None:
            yield LinkChange(known.name, index, LinkState.gone, reason)

    def _address(self, kind: int, body: bytes) -> Iterator[LinkChange]:
        if len(body) < rtnetlink.ADDRESS.size:
            return
        _, _, flags, _, index = rtnetlink.ADDRESS.unpack_from(body)
        known = self._known.get(index)
        fields = dict(rtnetlink.attributes(body[rtnetlink.ADDRESS.size :]))
        raw = fields.get(rtnetlink.IFA_LOCAL) or fields.get(rtnetlink.IFA_ADDRESS, b"")
        if known is None or len(raw) not in (4, 16) or flags & rtnetlink.IFA_F_TENTATIVE:
            return
        if kind == rtnetlink.RTM_NEWADDR:
            if (index, raw) in self._addresses:  # its lifetime is another, no more
                return
            self._addresses.add((index, raw))
        else:
            self._addresses.discard((index, raw))
        verb = "is new" if kind == rtnetlink.RTM_NEWADDR else "is gone"
        address = ipaddress.ip_address(raw)
        yield LinkChange(known.name, index, LinkState.changed, f"address {address} {verb}")

    def _refused(self, body: bytes) -> None:
        code = int.from_bytes(body[:4], sys.byteorder, signed=True)
        if code:  # 0 would be an acknowledgement
            self.error = -code
            self._seen = None

    def _end(self) -> Iterator[LinkChange]:
        seen, self._seen = self._seen, None
        if seen is None or self.must_ask_again:  # what an incomplete table lacks may still be there
            return
        for index in sorted(self._known.keys() - seen):
            yield from self._gone(index, "no longer there")


def _difference(index: int, before: _Known | None, now: _Known) -> Iterator[LinkChange]:
    if before is not None and before.name != now.name:
        yield LinkChange(before.name, index, LinkState.gone, f"renamed to {now.name}")
        before = None
    if before is None or before.state is not now.state:
        yield LinkChange(now.name, index, now.state, now.reason)
    if before is not None and before.mtu != now.mtu:
        reason = f"MTU {now.mtu} instead of {before.mtu}"
        yield LinkChange(now.name, index, LinkState.changed, reason)


class LinkWatcher:
    """Tell a callback of every change of this network namespace's interfaces.

    Parameters
    ----------
    on_change : callable
        Takes a `LinkChange`; called in the loop's thread, in the order in which things happened. What it raises
        goes to the loop's exception handler; later changes are still told.
    """

    def __init__(self, on_change: Callable[[LinkChange], None]) -> None:
        self._on_change = on_change
        self._table = LinkTable()
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = 0  # sequence number of the last request

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Learn how things stand, then watch. What changes after this returns is told; what was before is not.

        Raises
        ------
        BrokenError
            The kernel gives no such socket, or did not answer within `limits.NETLINK_ANSWER_S`.
        """
        if self._socket is not None:
            return
        try:
            self._socket = _open_socket()
            self._learn(self._socket)
        except OSError as error:
            self.close()
            raise errors.BrokenError(
                f"changes of network interfaces cannot be watched: {error.strerror or error};"
                " rails are then judged by their connections alone"
            ) from error
        self._loop = loop
        loop.add_reader(self._socket, self._read)

    def interfaces(self) -> dict[str, LinkState]:
        """Return the interfaces as they are now known, by name: `up` or `down`."""
        return self._table.interfaces()

    def close(self) -> None:
        """Watch no more. May be called twice, and from the callback."""
        watched, self._socket = self._socket, None
        if watched is None:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(watched)
        watched.close()

    def _learn(self, watched: socket.socket) -> None:
        """Read the first table; nothing of it is news."""
        watched.settimeout(limits.NETLINK_ANSWER_S)
        self._ask(watched)
        while self._table.is_being_read:
            self._take(watched)
        watched.setblocking(False)

    def _take(self, watched: socket.socket) -> list[LinkChange]:
        """Read one datagram; return what it changes."""
        data, (sender, _) = watched.recvfrom(limits.NETLINK_DATAGRAM_BYTES)
        changes = (
            self._table.apply(data) if sender == 0 else []
        )  # else: some process, not the kernel
        if self._table.error:
            raise OSError(self._table.error, os.strerror(self._table.error))
        if self._table.must_ask_again and not self._table.is_being_read:
            self._ask(watched)
        return changes

    def _ask(self, watched: socket.socket) -> None:
        """Request the whole table."""
        self._table.begin()
        self._asked += 1
        body = rtnetlink.LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        watched.send(rtnetlink.request(rtnetlink.RTM_GETLINK, body, self._asked))

    def _read(self) -> None:
        """Take what the kernel has said, until it has said all."""
        for _ in range(limits.NETLINK_READS_MAX):  # then the loop gets its turn
            watched = self._socket
            if watched is None:
                return
            try:
                changes = self._take(watched)
            except BlockingIOError:
                return
            except OSError as error:
                self._lost(watched, error)
                return
            self._tell(changes)

    def _lost(self, watched: socket.socket, error: OSError) -> None:
        """Ask for the whole table where messages were dropped; give up on any other error."""
        if error.errno == errno.ENOBUFS:
            self._table.must_ask_again = True
            if not self._table.is_being_read:  # else at its end: one table is read out at a time
                self._ask(watched)
            return
        self.close()
        if self._loop is not None:
            message = "network interfaces are no longer watched"
            self._loop.call_exception_handler({"message": message, "exception": error})

    def _tell(self, changes: list[LinkChange]) -> None:
        for change in changes:
            if self._socket is None:
                return
            try:
                self._on_change(change)
            except (
                Exception
            ) as error:  # what the owner of the callback did wrong must not stop the watch
                if self._loop is not None:
                    message = f"the callback failed on {change}"
                    self._loop.call_exception_handler({"message": message, "exception": error})


def present() -> dict[str, tuple[int, LinkState]]:
    """Return the interfaces of this network namespace as they are now: number and state by name.

    Raises
    ------
    BrokenError
        The kernel does not tell.
    """
    asked = LinkWatcher(lambda change: None)
    try:
        with _open_socket() as opened:
            asked._learn(opened)
    except OSError as error:
        raise errors.BrokenError(
            f"the network interfaces cannot be read: {error.strerror or error}"
        ) from error
    indexes = asked._table.indexes()
    return {name: (indexes[name], state) for name, state in asked._table.interfaces().items()}


def _open_socket() -> socket.socket:
    watched = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        with contextlib.suppress(OSError):
            watched.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limits.NETLINK_BUFFER_BYTES)
        watched.bind((0, rtnetlink.GROUPS))
    except OSError:
        watched.close()
        raise
    os.set_inheritable(watched.fileno(), False)
    return watched
