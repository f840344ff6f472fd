"""Being a node among others: found or join the cluster, keep the lease, push and take views.

The connections themselves are `PeerLinks`. On the first node this owns the registry; on the others it joins
again after every loss, and fences what was remote when the lease had ended meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec

from fabric import errors, limits, steps
from fabric.controlplane.calls import ControlConnection
from fabric.controlplane.death import OUTCOME_UNKNOWN
from fabric.controlplane.node_calls import plain
from fabric.controlplane.peer_links import Peer, PeerLinks
from fabric.paths.choice import offered_links
from fabric.registry.cluster import Registry
from fabric.registry.records import EndpointRecord, NodeRecord, View, view_from
from fabric.registry.store import RegistryStore

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

log = logging.getLogger("fabricd.membership")

BACKOFF_S = (0.05, 2.0)  #: first and longest pause before the registry is looked for again
LEASE_LOOKS = 2  #: a lease is prolonged every so many looks: twice within `limits.SUSPECT_MS`
REGISTRY_WAIT_S = 4.0  #: a request outlives a restart of the registry: its watchdog and start
REGISTRY_RETRY_S = 0.1
JOIN_WAIT_S = 10.0  #: how long a start waits for the registry before it serves without


class Membership:
    """Belongs to the daemon's loop."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._context = daemon.context
        self._store: RegistryStore | None = None
        self.links = PeerLinks(daemon)
        self._joined = asyncio.Event()
        self.trouble = ""  #: why the registry has not been joined, while that is so
        self._is_pushing = False

    # ---------------------------------------------------------------- life
    async def start(self) -> None:
        """Become the registry or join it; accept other nodes when told to listen."""
        options = self._daemon.options
        self.links.on_bound = self._on_bound
        self.links.start()
        if options.join is None:
            self._found()
        else:
            self.links.spawn(self._keep_joined(options.join))
            if self._context.number == 0:
                await self._wait_for_join()
        self._daemon.gateway.restore_flows(self._daemon.flows)
        self.links.accept()

    async def stop(self) -> None:
        """Leave the cluster (so that nobody waits for the lease) and close every connection."""
        registry = self.peer(self.registry_number)
        if registry is not None and self._daemon.registry.local is None:
            try:
                fields = {"number": self._context.number, "incarnation": self._context.incarnation}
                await registry.request("leave", fields, limits.CLOSE_S)
            except errors.FabricError as error:
                log.info("left without the registry's answer", extra={"reason": str(error)})
        self.links.stop()
        if self._store is not None:
            self._store.close()

    @property
    def registry_number(self) -> int:
        """Number of the node that is the registry; 0 before this node has joined."""
        return self.links.registry_number

    def peer(self, number: int) -> ControlConnection | None:
        """Return the control connection to a node, if it is up."""
        return self.links.peer(number)

    def node_is(self, number: int, incarnation: int) -> bool:
        """Tell whether a node is a member, in this incarnation, as far as the newest view says.

        A daemon that was started again and has no view yet must not take anybody for gone.
        """
        view = self._daemon.registry.view
        if not view.nodes:
            return True
        node = view.node(number)
        return node is not None and node.incarnation == incarnation and node.state != "dead"

    # ---------------------------------------------------------------- registry node
    def _found(self) -> None:
        self._store = RegistryStore(self._context.state_dir / "registry.db")
        registry = Registry(self._store, time.monotonic())
        self._daemon.registry.local = registry
        number = registry.join(self._record(), self._daemon.endpoints.published(), time.monotonic())
        self._take_number(number)
        self.links.registry_number = number
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
        for peer in self.links.all():
            self._send_view(peer)

    def on_view(self, view: View) -> None:
        """Connect to the nodes that are ours to dial, forget the dead."""
        self.links.on_view(view)

    def _on_bound(self, peer: Peer) -> None:
        if self._daemon.registry.local is not None:
            asyncio.get_running_loop().call_soon(self._send_view, peer)
        elif peer.number == self.registry_number and self._joined.is_set():
            self.links.spawn(self._prolong())  # the last one may have been lost with its rail

    def _send_view(self, peer: Peer) -> None:
        if peer.control is not None and peer.sending_view is not peer.control:
            peer.sending_view = peer.control
            self.links.spawn(self._send_views(peer, peer.control))

    async def _send_views(self, peer: Peer, connection: ControlConnection) -> None:
        """Send the newest view until the peer has it; what changes meanwhile is sent together."""
        registry = self._daemon.registry.local
        assert registry is not None
        try:
            while peer.control is connection and (view := registry.view()).epoch > peer.epoch_sent:
                await connection.request("endpoints", {"view": plain(view)})
                if peer.control is connection:
                    peer.epoch_sent = view.epoch
        except errors.FabricError as error:
            log.info("view not pushed", extra={"node": peer.number, "reason": str(error)})
        finally:
            if peer.sending_view is connection:
                peer.sending_view = None

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
        steps.at("node.join.admitted")
        if connection is not None:
            self.links.bind(number, connection)  # views follow, after this answer
        view = registry.view()
        return {
            "number": number,
            "registry": self._context.number,
            "view": plain(view),
            "was_dead": was_dead,
        }

    def tick(self, now_s: float, looks: int) -> None:
        """Judge leases (registry), or prolong ours every second look of `limits.LIVENESS_MS`."""
        registry = self._daemon.registry.local
        if registry is not None:
            registry.lease(self._context.number, self._context.incarnation, now_s)
            for number in self.links.rails.unheard():
                registry.excuse(number, now_s)
            registry.tick(now_s)
        elif self._joined.is_set() and looks % LEASE_LOOKS == 0:
            self.links.spawn(self._prolong())

    def pardon(self, now_s: float) -> None:
        """This daemon stood still: what it did not hear meanwhile says nothing about the others."""
        if self._daemon.registry.local is not None:
            self._daemon.registry.local.pardon(now_s)

    # ---------------------------------------------------------------- joined node
    async def _keep_joined(self, address: tuple[str, int]) -> None:
        """Be connected to the registry and joined, again after every loss."""
        pause = BACKOFF_S[0]
        while True:
            connection = None
            try:
                connection, _ = await self.links.dial_control(self.registry_number)
                self.links.spawn(connection.run())
                await self._join(connection)
                pause = BACKOFF_S[0]
                await self.links.until_lost(self.registry_number)
            except (errors.FabricError, OSError) as error:
                extra = {"address": f"{address[0]}:{address[1]}", "reason": str(error)}
                log.info("registry not joined", extra=extra)
                self.trouble = f"registry {extra['address']} not joined: {error}"
                if connection is not None:
                    connection.close()
            self._joined.clear()
            await self.links.pause_before_registry(pause)
            pause = min(pause * 2, BACKOFF_S[1])

    async def _join(self, connection: ControlConnection) -> None:
        node = plain(self._record())
        answer = await connection.request(
            "join", {"node": node, "endpoints": plain(self._daemon.endpoints.published())}
        )
        if answer.get("was_dead"):
            self._fence()
        self._take_number(answer["number"])
        steps.at("node.join.numbered")
        self.links.registry_number = answer["registry"]
        self.links.bind(answer["registry"], connection)
        self._daemon.registry.request = self._request_registry
        self._daemon.on_view(view_from(answer["view"]))
        self.links.on_view(
            self._daemon.registry.view
        )  # one pushed before this answer dialled nobody
        steps.at("node.join.viewed")
        self._joined.set()
        self.trouble = ""
        self.links.dial_data(answer["registry"])
        log.info("joined", extra={"number": answer["number"], "registry": answer["registry"]})

    async def _wait_for_join(self) -> None:
        try:
            async with asyncio.timeout(JOIN_WAIT_S):
                await self._joined.wait()
        except TimeoutError:
            host, port = self._daemon.options.join or ("", 0)
            self._context.events.add("registry not reached yet", address=f"{host}:{port}")

    async def _request_registry(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Ask the registry; its calls may be repeated, so a registry that is being restarted is waited for."""
        deadline = time.monotonic() + REGISTRY_WAIT_S
        while True:
            try:
                return await self._daemon.calls.call(self.registry_number, op, fields)
            except errors.BrokenError:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(REGISTRY_RETRY_S)

    async def _prolong(self) -> None:
        connection = self.peer(self.registry_number)
        if connection is None:
            return
        loop = asyncio.get_running_loop()
        look = loop.call_later(
            limits.CONTROL_LOOK_MS / 1000,
            self.links.watch.look_at_control,
            self.registry_number,
            loop.time(),
        )
        try:
            fields = {"number": self._context.number, "incarnation": self._context.incarnation}
            await connection.request("lease", fields, limits.LEASE_MS / 1000)
            steps.at("node.lease.prolonged")
        except errors.StaleHandleError:
            await self._join(connection)
        except errors.FabricError as error:
            log.info("lease not prolonged", extra={"reason": str(error)})
        finally:
            look.cancel()

    def _fence(self) -> None:
        """We were declared dead while we slept: everything remote has been settled without us.

        A new incarnation makes new sessions, so that nothing of the old ones is taken for the present.
        """
        self.links.renew()
        steps.at("node.fenced")
        self._context.events.add("lease ended; joining again", number=self._context.number)
        for out in list(self._daemon.flows.outs.values()):
            if out.target_node != self._context.number:
                self.links.spawn(self._daemon.wiring.lose(out.flow, 0, OUTCOME_UNKNOWN))
        for half in list(self._daemon.flows.ins.values()):
            if half.producer_node != self._context.number:
                self.links.spawn(
                    self._daemon.wiring.serve_flow_in_close({"flow": half.flow, "drain": False})
                )

    # ---------------------------------------------------------------- parts
    def _record(self) -> NodeRecord:
        rails = self.links.rails.own()
        host, port = (rails[0].host, rails[0].port) if rails else ("", 0)
        return NodeRecord(
            number=self._context.number,
            name=self._context.name,
            incarnation=self._context.incarnation,
            host=host,
            port=port,
            links=offered_links(self._daemon.options.links),
            links_wanted=self._daemon.options.links,
            rails=rails,
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
