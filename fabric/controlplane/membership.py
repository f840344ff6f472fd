"""Being a node among others: join, lease, the pushed view, and the connections to every peer.

Of two nodes the one with the higher number dials: one control connection and two data connections, each
through the handshake of WIRE.md §5; a joining node dials the registry. Data sockets go to the engine, which
asks back when one is down.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from fabric import errors, limits
from fabric.controlplane.calls import ControlConnection
from fabric.controlplane.death import OUTCOME_UNKNOWN
from fabric.controlplane.node_calls import plain
from fabric.controlplane.options import read_secret
from fabric.dataplane.framing import FrameStream
from fabric.registry.cluster import Registry
from fabric.registry.records import EndpointRecord, NodeRecord, View, view_from
from fabric.registry.store import RegistryStore

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon
    from fabric.links.handshake import NodeInfo, PeerInfo

log = logging.getLogger("fabricd.membership")

CONTROL, DATA_GROUPS = 255, (0, 1)
DIAL_S = 3.0
BACKOFF_S = (0.05, 2.0)
JOIN_WAIT_S = 10.0  #: how long a start waits for the registry before it serves without


@dataclass(eq=False)
class Peer:
    """What this node has towards another one. `epoch_sent` is the newest view it was given."""

    number: int
    control: ControlConnection | None = None
    dialing: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    epoch_sent: int = 0
    is_sending_view: bool = False


class Membership:
    """Belongs to the daemon's loop."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._context = daemon.context
        self._store: RegistryStore | None = None
        self._peers: dict[int, Peer] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listening: socket.socket | None = None
        self._incarnation = time.time_ns()  # of this daemon and its engine: new after each restart
        self._joined = asyncio.Event()
        self._secret = b""
        self._is_pushing = False
        self.registry_number = 0

    # ---------------------------------------------------------------- life
    async def start(self) -> None:
        """Become the registry or join it; accept other nodes when told to listen."""
        options = self._daemon.options
        if options.listen is not None or options.join is not None:
            self._secret = read_secret(options.secret_file)
        self._daemon.gateway.on_link_down = self._on_link_down
        if options.join is None:
            self._found()
        else:
            self._spawn(self._keep_joined(options.join))
            if self._context.number == 0:
                await self._wait_for_join()
        self._daemon.gateway.restore_flows(self._daemon.flows)
        item = self._daemon.loaded.items.get("listen/tcp")
        if item is not None:
            self._listening = socket.socket(fileno=os.dup(item[1]))
            self._listening.setblocking(False)
            asyncio.get_running_loop().add_reader(self._listening.fileno(), self._accept)

    async def stop(self) -> None:
        """Leave the cluster (so that nobody waits for the lease) and close every connection."""
        registry = self.peer(self.registry_number)
        if registry is not None and self._daemon.registry.local is None:
            try:
                fields = {"number": self._context.number, "incarnation": self._context.incarnation}
                await registry.request("leave", fields, limits.CLOSE_S)
            except errors.FabricError as error:
                log.info("left without the registry's answer", extra={"reason": str(error)})
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening.fileno())
            self._listening.close()
        for task in (*self._tasks, *(t for p in self._peers.values() for t in p.dialing.values())):
            task.cancel()
        for peer in self._peers.values():
            if peer.control is not None:
                peer.control.close()
        if self._store is not None:
            self._store.close()

    def peer(self, number: int) -> ControlConnection | None:
        """Return the control connection to a node, if it is up."""
        known = self._peers.get(number)
        return known.control if known and known.control and not known.control.is_closed else None

    def node_is(self, number: int, incarnation: int) -> bool:
        """Tell whether a node is a member, in this incarnation, as far as the newest view says."""
        node = self._daemon.registry.view.node(number)
        return node is not None and node.incarnation == incarnation and node.state != "dead"

    def peers(self) -> list[int]:
        """Return the numbers of the connected nodes."""
        return [number for number in self._peers if self.peer(number) is not None]

    # ---------------------------------------------------------------- registry node
    def _found(self) -> None:
        self._store = RegistryStore(self._context.state_dir / "registry.db")
        registry = Registry(self._store, time.monotonic())
        self._daemon.registry.local = registry
        number = registry.join(self._record(), self._daemon.endpoints.all(), time.monotonic())
        self._take_number(number)
        self.registry_number = number
        registry.on_change = self._on_registry_change
        self._push_view()

    def _on_registry_change(self) -> None:
        """Push the newest view once, after the calls that are changing it now."""
        if not self._is_pushing:
            self._is_pushing = True
            asyncio.get_running_loop().call_soon(self._push_view)

    def _push_view(self) -> None:
        self._is_pushing = False
        registry = self._daemon.registry.local
        assert registry is not None
        view = registry.view()
        self._daemon.on_view(view)
        for peer in self._peers.values():
            self._send_view(peer)

    def _send_view(self, peer: Peer) -> None:
        if not peer.is_sending_view and peer.control is not None:
            peer.is_sending_view = True
            self._spawn(self._send_views(peer))

    async def _send_views(self, peer: Peer) -> None:
        """Send the newest view until the peer has it; what changes meanwhile is sent together."""
        registry = self._daemon.registry.local
        assert registry is not None
        try:
            while peer.control is not None and (view := registry.view()).epoch > peer.epoch_sent:
                await peer.control.request("endpoints", {"view": plain(view)})
                peer.epoch_sent = view.epoch
        except errors.FabricError as error:
            log.info("view not pushed", extra={"node": peer.number, "reason": str(error)})
        finally:
            peer.is_sending_view = False

    def serve(
        self, op: str, fields: dict[str, Any], connection: ControlConnection | None
    ) -> dict[str, Any]:
        """Serve `join`, `lease` and `leave` on the registry node."""
        registry = self._daemon.registry.local
        if registry is None:
            raise errors.ConfigError(
                "this node is not the registry; join the first node of the cluster"
            )
        now = time.monotonic()
        if op == "lease":
            registry.lease(fields["number"], fields["incarnation"], now)
            return {}
        if op == "leave":
            registry.leave(fields["number"], fields["incarnation"])
            return {}
        endpoints = msgspec.convert(fields["endpoints"], list[EndpointRecord])
        node = msgspec.convert(fields["node"], NodeRecord)
        known = next((n for n in registry.view().nodes if n.name == node.name), None)
        was_dead = (
            known is not None and known.state == "dead" and known.incarnation == node.incarnation
        )
        number = registry.join(node, endpoints, now)
        if connection is not None:
            self._bind(number, connection)
        view = registry.view()
        self._peers[
            number
        ].epoch_sent = 0  # the joined node sets its number before it can use a view
        return {
            "number": number,
            "registry": self._context.number,
            "view": plain(view),
            "was_dead": was_dead,
        }

    def tick(self, now_s: float) -> None:
        """Once a second: end leases (registry) or prolong ours."""
        registry = self._daemon.registry.local
        if registry is not None:
            registry.lease(self._context.number, self._context.incarnation, now_s)
            registry.tick(now_s)
        elif self._joined.is_set():
            self._spawn(self._prolong())

    # ---------------------------------------------------------------- joined node
    async def _keep_joined(self, address: tuple[str, int]) -> None:
        """Be connected to the registry and joined, again after every loss."""
        pause = BACKOFF_S[0]
        while True:
            try:
                connection, _ = await self._dial_control(address)
                run = self._spawn(connection.run())
                await self._join(connection)
                pause = BACKOFF_S[0]
                await asyncio.wait([run])
            except (errors.FabricError, OSError) as error:
                extra = {"address": f"{address[0]}:{address[1]}", "reason": str(error)}
                log.info("registry not joined", extra=extra)
            self._joined.clear()
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF_S[1])

    async def _join(self, connection: ControlConnection) -> None:
        node = plain(self._record())
        answer = await connection.request(
            "join", {"node": node, "endpoints": plain(self._daemon.endpoints.all())}
        )
        if answer.get("was_dead"):
            self._fence()
        self._take_number(answer["number"])
        self.registry_number = answer["registry"]
        self._bind(answer["registry"], connection)
        self._daemon.registry.request = self._request_registry
        self._daemon.on_view(view_from(answer["view"]))
        self._joined.set()
        self._dial_data(answer["registry"])
        log.info("joined", extra={"number": answer["number"], "registry": answer["registry"]})

    async def _wait_for_join(self) -> None:
        try:
            async with asyncio.timeout(JOIN_WAIT_S):
                await self._joined.wait()
        except TimeoutError:
            host, port = self._daemon.options.join or ("", 0)
            self._context.events.add("registry not reached yet", address=f"{host}:{port}")

    async def _request_registry(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        return await self._daemon.calls.call(self.registry_number, op, fields)

    async def _prolong(self) -> None:
        connection = self.peer(self.registry_number)
        if connection is None:
            return
        try:
            fields = {"number": self._context.number, "incarnation": self._context.incarnation}
            await connection.request("lease", fields, limits.LEASE_MS / 1000)
        except errors.StaleHandleError:
            await self._join(connection)
        except errors.FabricError as error:
            log.info("lease not prolonged", extra={"reason": str(error)})

    def _fence(self) -> None:
        """We were declared dead while we slept: everything remote has been settled without us.

        A new incarnation makes new sessions, so that nothing of the old ones is taken for the present.
        """
        self._incarnation = time.time_ns()
        for number in list(self._peers):
            self._daemon.gateway.close_session(number)
        self._context.events.add("lease ended; joining again", number=self._context.number)
        for out in list(self._daemon.flows.outs.values()):
            if out.target_node != self._context.number:
                self._spawn(self._daemon.wiring.lose(out.flow, 0, OUTCOME_UNKNOWN))
        for half in list(self._daemon.flows.ins.values()):
            if half.producer_node != self._context.number:
                self._spawn(
                    self._daemon.wiring.serve_flow_in_close({"flow": half.flow, "drain": False})
                )

    # ---------------------------------------------------------------- peers
    def on_view(self, view: View) -> None:
        """Dial the nodes that are ours to dial, forget the dead."""
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
                self._dial_data(node.number)

    def _forget(self, number: int) -> None:
        peer = self._peers.pop(number, None)
        if peer is not None:
            for task in peer.dialing.values():
                task.cancel()
            if peer.control is not None:
                peer.control.close()
        self._daemon.gateway.close_session(number)

    def _bind(self, number: int, connection: ControlConnection) -> None:
        peer = self._peers.setdefault(number, Peer(number))
        old, peer.control, peer.epoch_sent = peer.control, connection, 0
        connection.name = f"node {number}"
        if old is not None and old is not connection:
            old.close()
        if self._daemon.registry.local is not None:
            asyncio.get_running_loop().call_soon(self._send_view, peer)
        self._daemon.reconciler.look()

    def _dial_data(self, number: int) -> None:
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
                    connection, _ = await self._dial_control(address)
                    self._spawn(connection.run())
                    self._bind(number, connection)
                else:
                    sock, info = await self._connect(address, group)
                    self._take_data(number, sock, info)
                return
            except (errors.FabricError, OSError) as error:
                log.info(
                    "peer not reached", extra={"node": number, "group": group, "reason": str(error)}
                )
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF_S[1])

    def _address_of(self, number: int) -> tuple[str, int] | None:
        if number == self.registry_number and self._daemon.options.join is not None:
            return self._daemon.options.join
        node = self._daemon.registry.view.node(number)
        return (
            (node.host, node.port)
            if node is not None and node.state != "dead" and node.port
            else None
        )

    async def _dial_control(self, address: tuple[str, int]) -> tuple[ControlConnection, PeerInfo]:
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
                    sock.bind(
                        (self._daemon.options.listen[0], 0)
                    )  # the rail that this node was told to use
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

        return NodeInfo(self._context.name, self._context.number, self._incarnation, group)

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
        self._spawn(self._serve_connection(sock))

    async def _serve_connection(self, sock: socket.socket) -> None:
        from fabric.links import handshake

        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock, info = await handshake.accept(sock, self._local(CONTROL), self._secret)
        except errors.FabricError as error:
            self._context.events.add("node refused", reason=str(error))
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
            self._bind(info.number, connection)
        await connection.run()

    def _take_data(self, number: int, sock: socket.socket, info: PeerInfo) -> None:
        """Give a proven data socket to the engine, in the session of both present incarnations."""
        node = self._daemon.registry.view.node(number)
        if node is None or node.name != info.node or node.state == "dead":
            sock.close()
            raise errors.StaleHandleError(f"node {info.node!r} is not a member now", node=number)
        self._daemon.gateway.open_session(number, info.session, info.incarnation)
        self._daemon.gateway.add_connection(number, sock.detach(), info.group)

    def _on_link_down(self, number: int, group: int, reason: str) -> None:
        if number < self._context.number or number == self.registry_number:
            self._dial(number, group)

    # ---------------------------------------------------------------- parts
    def listens_on(self) -> tuple[str, int] | None:
        """Return the address where other nodes connect, with the port that was really taken."""
        item = self._daemon.loaded.items.get("listen/tcp")
        if item is None:
            return None
        with socket.socket(fileno=os.dup(item[1])) as bound:
            host, port = bound.getsockname()[:2]
        return host, port

    def _record(self) -> NodeRecord:
        host, port = self.listens_on() or ("", 0)
        return NodeRecord(
            number=self._context.number,
            name=self._context.name,
            incarnation=self._context.incarnation,
            host=host,
            port=port,
        )

    def _take_number(self, number: int) -> None:
        if self._context.number != number:
            self._context.number = number
            record = {
                "incarnation": self._context.incarnation,
                "keeper": self._daemon.keeper_pid,
                "number": number,
            }
            self._context.keeper.put("node", record)

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, errors.FabricError):
            log.info("membership call failed", extra={"reason": str(error)})
        elif error is not None:
            log.error("membership failed", exc_info=error)
