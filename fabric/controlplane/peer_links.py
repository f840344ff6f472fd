"""The connections of a node to its peers: dialled, accepted, proven, dialled again.

Of two nodes the one with the higher number dials: one control connection and two data connections, each
through the handshake of WIRE.md §5; a joining node dials the registry. Data sockets go to the engine, which
asks back when one is down.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fabric import errors, limits, steps
from fabric.abc.link import PLAIN_CHUNKS
from fabric.controlplane.calls import ControlConnection
from fabric.controlplane.incarnations import next_incarnation
from fabric.controlplane.options import read_secret
from fabric.dataplane.framing import FrameStream
from fabric.registry.records import View

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon
    from fabric.links.handshake import NodeInfo, PeerInfo

log = logging.getLogger("fabricd.peers")

CONTROL, DATA_GROUPS = 255, (0, 1)
DIAL_S = 3.0
BACKOFF_S = (0.05, 2.0)


@dataclass(eq=False)
class Peer:
    """What this node has towards another one. `epoch_sent` is the newest view it was given."""

    number: int
    control: ControlConnection | None = None
    dialing: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    epoch_sent: int = 0
    is_sending_view: bool = False


class PeerLinks:
    """Belongs to the daemon's loop. `on_bound(peer)` is told of each new control connection."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._context = daemon.context
        self._peers: dict[int, Peer] = {}
        self._early: dict[
            int, tuple[str, ControlConnection]
        ] = {}  # of nodes that no view has named yet
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listening: socket.socket | None = None
        # Of this daemon and its engine: new after each restart.
        self._incarnation = next_incarnation(daemon.context.state_dir)
        self._secret = b""
        self.registry_number = 0
        self.on_bound: Callable[[Peer], None] = lambda peer: None

    def start(self) -> None:
        """Read the secret; data connections that go down are dialled again from now on."""
        options = self._daemon.options
        if options.listen is not None or options.join is not None:
            self._secret = read_secret(options.secret_file)
        self._daemon.gateway.on_link_down = self._on_link_down

    def accept(self) -> None:
        """Accept other nodes from now on, when this node was told to listen."""
        item = self._daemon.loaded.items.get("listen/tcp")
        if item is not None:
            self._listening = socket.socket(fileno=os.dup(item[1]))
            self._listening.setblocking(False)
            asyncio.get_running_loop().add_reader(self._listening.fileno(), self._accept)

    def stop(self) -> None:
        """Accept and dial no more, close every control connection."""
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening.fileno())
            self._listening.close()
        for task in (*self._tasks, *(t for p in self._peers.values() for t in p.dialing.values())):
            task.cancel()
        for peer in self._peers.values():
            if peer.control is not None:
                peer.control.close()

    def all(self) -> list[Peer]:
        """Return every peer that was ever reached and is not dead."""
        return list(self._peers.values())

    def peer(self, number: int) -> ControlConnection | None:
        """Return the control connection to a node, if it is up."""
        known = self._peers.get(number)
        return known.control if known and known.control and not known.control.is_closed else None

    def peers(self) -> list[int]:
        """Return the numbers of the connected nodes."""
        return [number for number in self._peers if self.peer(number) is not None]

    def renew(self) -> None:
        """Take a new incarnation: what belongs to the sessions of the old one is refused everywhere."""
        self._incarnation = next_incarnation(self._context.state_dir)
        steps.at("node.session.renewed")
        for number in list(self._peers):
            self._daemon.gateway.close_session(number)

    def listens_on(self) -> tuple[str, int] | None:
        """Return the address where other nodes connect, with the port that was really taken."""
        item = self._daemon.loaded.items.get("listen/tcp")
        if item is None:
            return None
        with socket.socket(fileno=os.dup(item[1])) as bound:
            host, port = bound.getsockname()[:2]
        return host, port

    # ---------------------------------------------------------------- dialling
    def on_view(self, view: View) -> None:
        """Dial the nodes that are ours to dial, forget the dead.

        Before the join says who the registry is, nobody is dialled: the registry's connection is the join's own, and
        two of them would close each other again and again.
        """
        self._bind_early(view)
        if not self.registry_number:
            return
        for node in view.nodes:
            if node.number == self._context.number:
                continue
            if node.state == "dead":
                self._forget(node.number)
            elif (
                0 < node.number < self._context.number
                and node.number != self.registry_number
                and node.port
            ):
                self._dial(node.number, CONTROL)
                self.dial_data(node.number)

    def _bind_early(self, view: View) -> None:
        """Bind the connections of nodes that dialled before the first view named them: they will not dial again."""
        for number, (name, connection) in list(self._early.items()):
            node = view.node(number)
            if node is not None:
                del self._early[number]
                if node.name == name and not connection.is_closed:
                    self.bind(number, connection)

    def _forget(self, number: int) -> None:
        peer = self._peers.pop(number, None)
        if peer is not None:
            for task in peer.dialing.values():
                task.cancel()
            if peer.control is not None:
                peer.control.close()
        self._daemon.gateway.close_session(number)

    def bind(self, number: int, connection: ControlConnection) -> Peer:
        """Take a control connection as the one to a node; an older one is closed."""
        peer = self._peers.setdefault(number, Peer(number))
        old, peer.control, peer.epoch_sent = peer.control, connection, 0
        connection.name = f"node {number}"
        if old is not None and old is not connection:
            old.close()
        self.on_bound(peer)
        self._daemon.reconciler.look()
        return peer

    def dial_data(self, number: int) -> None:
        """Have both data connections to a node."""
        for group in DATA_GROUPS:
            self._dial(number, group)

    def _dial(self, number: int, group: int) -> None:
        """Connect (again), in the background, until it is up or the node is dead."""
        peer = self._peers.setdefault(number, Peer(number))
        task = peer.dialing.get(group)
        if (task is not None and not task.done()) or (group == CONTROL and self.peer(number)):
            return
        if group != CONTROL and (number, group) in self._daemon.gateway.up:
            return
        peer.dialing[group] = asyncio.get_running_loop().create_task(
            self._dial_until_up(number, group)
        )

    async def _dial_until_up(self, number: int, group: int) -> None:
        pause = BACKOFF_S[0]
        while (address := self._address_of(number)) is not None:
            try:
                if group == CONTROL:
                    connection, _ = await self.dial_control(address)
                    self.spawn(self._run_control(number, connection))
                    self.bind(number, connection)
                else:
                    used = self._incarnation
                    sock, info = await self._connect(address, group)
                    if used != self._incarnation:
                        sock.close()  # proven for a session that was given up meanwhile
                        continue
                    self._take_data(number, sock, info)
                    # A new session closes what an older one had: the other group may be needed again.
                    asyncio.get_running_loop().call_soon(self.dial_data, number)
                return
            except (errors.FabricError, OSError) as error:
                log.info(
                    "peer not reached", extra={"node": number, "group": group, "reason": str(error)}
                )
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF_S[1])

    async def _run_control(self, number: int, connection: ControlConnection) -> None:
        """Serve a control connection that we dialled, and dial it again when it is lost."""
        await connection.run()
        if number in self._peers:
            self._dial(number, CONTROL)

    def _address_of(self, number: int) -> tuple[str, int] | None:
        if number == self.registry_number and self._daemon.options.join is not None:
            return self._daemon.options.join
        node = self._daemon.registry.view.node(number)
        return (
            (node.host, node.port)
            if node is not None and node.state != "dead" and node.port
            else None
        )

    async def dial_control(self, address: tuple[str, int]) -> tuple[ControlConnection, PeerInfo]:
        """Connect for control; the caller runs the connection."""
        sock, info = await self._connect(address, CONTROL)
        stream = FrameStream(sock)
        return ControlConnection(stream, self._daemon.calls.serve_peer, f"node {info.node}"), info

    async def _connect(
        self, address: tuple[str, int], group: int
    ) -> tuple[socket.socket, PeerInfo]:
        from fabric.links import handshake

        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(DIAL_S):
                if self._daemon.options.listen is not None and family == socket.AF_INET:
                    # The rail that this node was told to use.
                    sock.bind((self._daemon.options.listen[0], 0))
                await loop.sock_connect(sock, address)
        except TimeoutError as error:
            sock.close()
            raise errors.DeadlineExceeded(f"{address[0]}:{address[1]} does not answer") from error
        except BaseException:
            sock.close()
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return await handshake.connect(sock, self._local(group), self._secret)

    def _local(self, group: int) -> NodeInfo:
        from fabric.links.handshake import NodeInfo

        features = 0 if self._daemon.options.checksums else PLAIN_CHUNKS
        return NodeInfo(
            self._context.name, self._context.number, self._incarnation, group, features
        )

    # ---------------------------------------------------------------- accepting
    def _accept(self) -> None:
        assert self._listening is not None
        try:
            sock, address = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            log.error("cannot accept a node", extra={"reason": str(error)})
            return
        if len(self._tasks) > 4 * limits.NODES_MAX:
            log.warning(
                "too many connections at once; one is refused", extra={"address": str(address)}
            )
            sock.close()
            return
        self.spawn(self._serve_connection(sock))

    async def _serve_connection(self, sock: socket.socket) -> None:
        from fabric.links import handshake

        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        used = self._incarnation
        try:
            sock, info = await handshake.accept(sock, self._local(CONTROL), self._secret)
        except errors.FabricError as error:
            self._context.events.add("node refused", reason=str(error))
            return
        if used != self._incarnation and info.group != CONTROL:
            sock.close()  # proven for a session that was given up meanwhile; it is dialled again
            return
        if info.group != CONTROL:
            try:
                self._take_data(info.number, sock, info)
            except errors.FabricError as error:
                self._context.events.add(
                    "data connection refused", node=info.number, reason=str(error)
                )
            return
        connection = ControlConnection(
            FrameStream(sock), self._daemon.calls.serve_peer, f"node {info.node}"
        )
        node = self._daemon.registry.view.node(info.number)
        if node is not None and node.name == info.node:
            self.bind(info.number, connection)
        elif node is None and info.number:
            self._early[info.number] = (info.node, connection)
        await connection.run()
        if self._early.get(info.number) == (info.node, connection):
            del self._early[info.number]

    def _take_data(self, number: int, sock: socket.socket, info: PeerInfo) -> None:
        """Give a proven data socket to the engine, in the session of both present incarnations."""
        from fabric.links import congestion

        node = self._daemon.registry.view.node(number)
        if node is None or node.name != info.node or node.state == "dead":
            sock.close()
            raise errors.StaleHandleError(f"node {info.node!r} is not a member now", node=number)
        try:
            self._daemon.gateway.open_session(number, info.session, info.incarnation)
        except errors.FabricError:
            sock.close()
            raise
        congestion.choose(sock, self._daemon.options.tcp_congestion)
        self._daemon.gateway.add_connection(number, sock.detach(), info.group, info.features)

    def _on_link_down(self, number: int, group: int, reason: str) -> None:
        if number < self._context.number or number == self.registry_number:
            self._dial(number, group)

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, errors.FabricError):
            log.info("peer call failed", extra={"reason": str(error)})
        elif error is not None:
            log.error("peer failed", exc_info=error)
