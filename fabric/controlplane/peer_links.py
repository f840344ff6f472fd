"""The connections of a node to its peers: dialled, accepted, proven, dialled again.

Of two nodes the one with the higher number dials: one control connection, and two data connections for each rail,
each through the handshake of WIRE.md §5; a joining node dials the registry. Data sockets go to the engine, which
asks back when one is down. The control connection moves to another rail when its own is silent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fabric import errors, limits, steps
from fabric.abc.link import GPU_FRAMES, GROUP_PROBE, PLAIN_CHUNKS, UCX_FRAMES
from fabric.controlplane.calls import ControlConnection
from fabric.controlplane.gpu_rails import GpuRails
from fabric.controlplane.incarnations import next_incarnation
from fabric.controlplane.options import read_secret
from fabric.controlplane.rail_dial import attempt_s, handshake_s, pause_s
from fabric.controlplane.rail_watch import RailWatch
from fabric.controlplane.rails import Rails, ends_of, groups_of, rail_of
from fabric.controlplane.ucx_rails import UcxRails, offer_accepting, offer_dialling
from fabric.dataplane.framing import FrameStream
from fabric.links.dial import dial, give_up_after
from fabric.links.rail_link import TCP, is_gpu, is_ucx
from fabric.registry.records import RailRecord, View

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon
    from fabric.links.handshake import NodeInfo, PeerInfo

log = logging.getLogger("fabricd.peers")

CONTROL = 255


@dataclass(eq=False)
class Peer:
    """What this node has towards another one. `epoch_sent` is the newest view it was given."""

    number: int
    control: ControlConnection | None = None
    dialing: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    epoch_sent: int = 0
    sending_view: ControlConnection | None = None  #: over which a view is on its way


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
        self._listening: list[socket.socket] = []
        self.rails = Rails(daemon)
        self.watch = RailWatch(daemon, self)
        self._ucx = UcxRails()
        self._gpu = GpuRails()
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
        self._daemon.gateway.on_closed = self.rails.close_session
        if options.listen is not None or options.join is not None:
            self.watch.start()

    def accept(self) -> None:
        """Accept other nodes from now on, on every rail that this node was told to listen on."""
        for fd in self.rails.listening_fds():
            sock = socket.socket(fileno=os.dup(fd))
            sock.setblocking(False)
            self._listening.append(sock)
            asyncio.get_running_loop().add_reader(sock.fileno(), self._accept, sock)

    def stop(self) -> None:
        """Accept and dial no more, close every control connection."""
        self.watch.stop()
        for sock in self._listening:
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()
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
        """Return the address of the first rail, with the port that was really taken."""
        return next(iter(self.rails.listening()), None)

    def rails_to(self, number: int, size_bytes: int = 0) -> list[dict[str, Any]]:
        """Return a row for each rail to a node; the engine's prediction is for `size_bytes` (0: its own choice)."""
        is_dialled = self.dials(number)
        rails = self.rails_of(number) if is_dialled else self.rails.own()
        return self.rails.rows(number, rails, is_dialled, size_bytes)

    async def dial_probe(self, number: int, rail: int) -> socket.socket:
        """Connect for a measurement of one rail, between the addresses of its data connections; raises as `dial`."""
        from fabric.links import congestion, handshake

        target = self.rails.targets(self.rails_of(number))[rail]
        sock = await dial(target, limits.PATH_PROBE_WAIT_S)
        congestion.choose(sock, self._daemon.options.tcp_congestion, is_scheduled=True)
        sock, _ = await handshake.connect(sock, self._local(GROUP_PROBE), self._secret)
        return sock

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
            elif node.number == self.registry_number and self.peer(node.number):
                self.dial_data(node.number)  # it may have come back with other rails

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
        self.rails.forget(number)
        self._daemon.gateway.close_session(number)

    def bind(self, number: int, connection: ControlConnection) -> Peer:
        """Take a control connection as the one to a node.

        An older one is closed; one to the same life of that node only when what is under way on it has ended.
        """
        peer = self._peers.setdefault(number, Peer(number))
        old, peer.control, peer.epoch_sent = peer.control, connection, 0
        connection.name = f"node {number}"
        if old is not None and old is not connection:
            same = old.incarnation == connection.incarnation and not old.is_lost
            old.retire() if same else old.close()
        self.rails.connected(number, CONTROL, ends_of(connection.socket))
        self.on_bound(peer)
        self._daemon.reconciler.look()
        return peer

    def dial_data(self, number: int) -> None:
        """Have both data connections of every rail to a node whose link is here."""
        for rail, record in enumerate(self.rails_of(number)):
            if self.rails.can_use(number, rail, record.link):
                for group in groups_of(rail):
                    self._dial(number, group)

    def rails_of(self, number: int) -> tuple[RailRecord, ...]:
        """Return the addresses to dial a node at."""
        return self.rails.addresses_of(number, self.registry_number)

    def dials(self, number: int) -> bool:
        """Tell whether this node, and not the other one, dials the connections between the two."""
        return number < self._context.number or number == self.registry_number

    def _dial(self, number: int, group: int, instead_of: ControlConnection | None = None) -> None:
        """Connect (again), in the background, until it is up or the node is dead."""
        peer = self._peers.setdefault(number, Peer(number))
        task = peer.dialing.get(group)
        if task is not None and not task.done():
            return
        if group == CONTROL and self.peer(number) not in (None, instead_of):
            return
        if group != CONTROL and (number, group) in self._daemon.gateway.up:
            return
        peer.dialing[group] = asyncio.get_running_loop().create_task(
            self._dial_until_up(number, group, instead_of)
        )

    async def _dial_until_up(
        self, number: int, group: int, instead_of: ControlConnection | None
    ) -> None:
        # The first one that is lost soon is dialled at once; a peer that closes each is not asked without end.
        short = self.rails.dial_of(number, group).short
        if short > 1:
            await self.rails.pause(pause_s(short - 1, self.rails.is_cut_off(number)))
        while rails := self.rails_of(number):
            if group == CONTROL and self.peer(number) not in (None, instead_of):
                return
            if group != CONTROL and rail_of(group) >= len(rails):
                return  # it has fewer rails now
            try:
                if group == CONTROL:
                    connection, _ = await self.dial_control(number, instead_of)
                    self.spawn(self._run_control(number, connection))
                    self.bind(number, connection)
                elif not await self._dial_once(number, group, rails):
                    continue
                return
            except (errors.FabricError, OSError) as error:
                if group != CONTROL:
                    self.rails.failed(number, group, error, len(rails))
                log.info(
                    "peer not reached", extra={"node": number, "group": group, "reason": str(error)}
                )
            failures = self.rails.dial_of(number, group).failures
            await self.rails.pause(pause_s(failures, self.rails.is_cut_off(number)))

    async def _dial_once(self, number: int, group: int, rails: Sequence[RailRecord]) -> bool:
        """Make one data connection; False when it was proven for a session that was given up meanwhile."""
        used = self._incarnation
        sock, info = await self._connect(number, group, rails, rail_of(group))
        if used != self._incarnation:
            sock.close()
            return False
        await self._take_data(number, sock, info)
        # A new session closes what an older one had: the other groups may be needed again.
        asyncio.get_running_loop().call_soon(self.dial_data, number)
        return True

    async def _run_control(self, number: int, connection: ControlConnection) -> None:
        """Serve a control connection that we dialled, and dial it again when it is lost."""
        await connection.run()
        if number in self._peers and number != self.registry_number:  # that one is joined again
            self._dial(number, CONTROL)

    async def dial_control(
        self, number: int, instead_of: ControlConnection | None = None
    ) -> tuple[ControlConnection, PeerInfo]:
        """Connect for control over the healthiest rail, the next one after a failure; the caller runs what it gets."""
        rails = self.rails_of(number)
        avoid = self.rails.control_rail(number, rails) if instead_of is not None else -1
        dialled = self.rails.dial_of(number, CONTROL)
        rail = self.rails.ranked(number, len(rails), avoid)[dialled.failures % len(rails)]
        try:
            sock, info = await self._connect(number, CONTROL, rails, rail)
        except (errors.FabricError, OSError) as error:
            self.rails.failed(number, CONTROL, error, len(rails))
            raise
        if (rails[rail].host, rails[rail].port) == self._daemon.options.join:
            self.rails.reached = ends_of(sock).far
        return self._control_over(sock, info, len(rails)), info

    def _control_over(self, sock: socket.socket, info: PeerInfo, rails: int) -> ControlConnection:
        if rails > 1:  # where there is no other, it may as well wait
            give_up_after(sock, limits.CONTROL_SILENT_MS / 1000)
        stream = FrameStream(sock)
        connection = ControlConnection(stream, self._daemon.calls.serve_peer, f"node {info.node}")
        connection.incarnation = info.incarnation
        return connection

    async def _connect(
        self, number: int, group: int, rails: Sequence[RailRecord], rail: int
    ) -> tuple[socket.socket, PeerInfo]:
        from fabric.links import handshake

        dialled = self.rails.dial_of(number, group)
        began_s = asyncio.get_running_loop().time()
        is_cut_off = self.rails.is_cut_off(number)
        sock = await dial(
            self.rails.target(rails, rail, dialled), attempt_s(dialled, len(rails), is_cut_off)
        )
        took_s = asyncio.get_running_loop().time() - began_s
        within_s = handshake_s(dialled, len(rails))
        link = rails[rail].link if group != CONTROL else TCP
        mine = self._local(group, link)
        sock, info = await handshake.connect(sock, mine, self._secret, within_s=within_s)
        dialled.took_s = max(took_s, 1e-6)
        if is_ucx(link) and not info.features & UCX_FRAMES:
            sock.close()
            raise errors.PathBrokenError(f"node {info.node!r} has no UCX for its rail now")
        if is_gpu(link) and not info.features & GPU_FRAMES:
            sock.close()
            raise errors.PathBrokenError(f"node {info.node!r} has no {link} for its rail now")
        return sock, info

    def dial_other_rail(self, number: int) -> bool:
        """Have the control connection to a node on another rail than now; False when that is being done already.

        The old one ends by itself, once the new one is up.
        """
        old = self.peer(number)
        task = self._peers[number].dialing.get(CONTROL) if old is not None else None
        if old is None or (task is not None and not task.done()):
            return False
        self._dial(number, CONTROL, instead_of=old)
        return True

    async def pause_before_registry(self, longest_s: float) -> None:
        """Wait before the registry is dialled again; of several rails the next may do at once."""
        number = self.registry_number
        failures = self.rails.dial_of(number, CONTROL).failures
        pause = pause_s(failures, self.rails.is_cut_off(number))
        await self.rails.pause(
            min(pause, longest_s) if len(self.rails_of(number)) > 1 else longest_s
        )

    async def until_lost(self, number: int) -> None:
        """Wait until there is no control connection to a node."""
        while (connection := self.peer(number)) is not None:
            await connection.ended.wait()

    def _local(self, group: int, link: str = TCP) -> NodeInfo:
        from fabric.links.handshake import NodeInfo

        features = offer_dialling(link, 0 if self._daemon.options.checksums else PLAIN_CHUNKS)
        return NodeInfo(
            self._context.name, self._context.number, self._incarnation, group, features
        )

    # ---------------------------------------------------------------- accepting
    def _accept(self, listening: socket.socket) -> None:
        try:
            sock, address = listening.accept()
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
            mine = self._local(CONTROL)
            offered = offer_accepting(self.rails.listening_links(), mine.features)
            mine = replace(mine, features=offered)
            sock, info = await handshake.accept(sock, mine, self._secret)
        except errors.FabricError as error:
            self._context.events.add("node refused", reason=str(error))
            return
        if info.group == GROUP_PROBE:
            await self._daemon.control.paths.probes.accept(sock)
            return
        if used != self._incarnation and info.group != CONTROL:
            sock.close()  # proven for a session that was given up meanwhile; it is dialled again
            return
        if info.group != CONTROL:
            try:
                await self._take_data(info.number, sock, info)
            except errors.FabricError as error:
                self._context.events.add(
                    "data connection refused", node=info.number, reason=str(error)
                )
            return
        connection = self._control_over(sock, info, len(self._listening))
        node = self._daemon.registry.view.node(info.number)
        if node is not None and node.name == info.node:
            self.bind(info.number, connection)
        elif node is None and info.number:
            self._early[info.number] = (info.node, connection)
        await connection.run()
        if self._early.get(info.number) == (info.node, connection):
            del self._early[info.number]

    async def _take_data(self, number: int, sock: socket.socket, info: PeerInfo) -> None:
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
        ends = ends_of(sock)
        if info.features & UCX_FRAMES:
            link = await self._ucx.make(
                sock, info.session, self._link_of(number, info.group), ends.local
            )
            self._daemon.gateway.add_link(number, info.session, link, info.group)
        elif info.features & GPU_FRAMES:
            link = await self._gpu.make(sock, info.session, self._link_of(number, info.group))
            self._daemon.gateway.add_link(number, info.session, link, info.group)
        else:
            wanted = self._daemon.options.tcp_congestion
            congestion.choose(sock, wanted, is_scheduled=info.group % 2 == 1)
            self._daemon.gateway.add_connection(number, sock.detach(), info.group, info.features)
        self.rails.connected(number, info.group, ends)

    def _link_of(self, number: int, group: int) -> str:
        rails = self.rails_of(number) if self.dials(number) else self.rails.own()
        return rails[rail_of(group)].link if rail_of(group) < len(rails) else TCP

    def _on_link_down(self, number: int, group: int, reason: str) -> None:
        self.rails.disconnected(number, group, self._daemon.gateway.carried.get((number, group), 0))
        if self.dials(number):
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
