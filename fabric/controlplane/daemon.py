"""The daemon of one node: puts the parts together, restores them from the keeper, serves, stops.

Runs under the keeper as `python -m fabric.controlplane.daemon … --keeper-fd N`. One event loop; one timer of 1 Hz.
Killed at any point, its successor finds everything in the keeper; processes keep their lanes meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from typing import Any

from fabric import errors, limits, steps
from fabric.controlplane import logs, ports
from fabric.controlplane.attach import AttachServer
from fabric.controlplane.broken_lanes import BrokenLanes
from fabric.controlplane.closing import ClosingHandler
from fabric.controlplane.context import Context, Numbers
from fabric.controlplane.control import Control
from fabric.controlplane.death import OUTCOME_UNKNOWN, DeathHandler
from fabric.controlplane.describer import Describer
from fabric.controlplane.endpoints import EndpointTable
from fabric.controlplane.flows import FlowTable, OutFlow
from fabric.controlplane.gateway import NodeGateway
from fabric.controlplane.keeper import REFUSED, RESTART
from fabric.controlplane.keeper_client import KeeperLink, Loaded
from fabric.controlplane.lanes import LaneTable
from fabric.controlplane.liveness import Liveness
from fabric.controlplane.membership import Membership
from fabric.controlplane.metrics import Metrics
from fabric.controlplane.modules import ModuleTable, Process
from fabric.controlplane.node_calls import NodeCalls
from fabric.controlplane.node_paths import NodePaths
from fabric.controlplane.observer import Observer
from fabric.controlplane.options import Options, parse
from fabric.controlplane.plan_apply import PlanApplier
from fabric.controlplane.plan_node import PlanNode
from fabric.controlplane.ports import Port, PortTable
from fabric.controlplane.probes import Probes
from fabric.controlplane.reconcile import Reconciler
from fabric.controlplane.retiring import FlowRetirer
from fabric.controlplane.scaling import Scaling
from fabric.controlplane.segments import SegmentTable
from fabric.controlplane.senders import SenderRetirer
from fabric.controlplane.shared_memory import SharedMemories
from fabric.controlplane.stages import StageTable
from fabric.controlplane.suspects import Suspects
from fabric.controlplane.view_change import compare
from fabric.controlplane.wiring import Wiring
from fabric.paths import explain
from fabric.registry.client import RegistryClient
from fabric.registry.records import EndpointRecord, View

log = logging.getLogger("fabricd.daemon")

#: What need not be prompt is looked at every so many looks of `limits.LIVENESS_MS`; the keeper's SIGN_S.
TICK_LOOKS = 4


class Daemon:
    """One node's parts. `start` makes it serve, `stop` ends it in order."""

    def __init__(self, options: Options, keeper: KeeperLink, loaded: Loaded, native: Any) -> None:
        node = loaded.items["node"][0]
        self.options = options
        self.loaded = loaded
        self.started_at = time.monotonic()
        self.context = Context(
            options.name,
            node["incarnation"],
            options.state,
            options.socket,
            keeper,
            native,
            Numbers(options.state / "counters.json"),
            number=node.get("number", 0),
        )
        self.keeper_pid = node.get("keeper", 0)
        self.registry = RegistryClient()
        self.ports = PortTable(self.context)
        self.segments = SegmentTable(self.context, options.arena_bytes)
        self.lanes = LaneTable(self.context, self.ports)
        self.endpoints = EndpointTable(self.context)
        self.flows = FlowTable(self.context)
        self.liveness = Liveness(self.context, self.ports)
        self.suspects = Suspects(self.context, self.ports, self.flows)
        self.wiring = Wiring(self.context, self.ports, self.lanes, self.endpoints, self.flows)
        self.reconciler = Reconciler(
            lambda: self.registry.view, self.ports, self.endpoints, self.flows, self.wiring
        )
        self.death = DeathHandler(self.context, self.ports, self.lanes, self.segments, self.wiring)
        self.closing = ClosingHandler(self.context, self.ports, self.lanes, self.flows, self.wiring)
        self.gateway = NodeGateway(self.context, self.ports, self.lanes, self.segments)
        self.modules = ModuleTable(self.context, self.ports)
        self.shared = SharedMemories(self.context, self.modules, options.cache_bytes)
        self.attach = AttachServer(
            self.context, self.ports, self.segments, self.endpoints, self.registry, self.shared
        )
        self.senders = SenderRetirer(
            self.context, self.ports, self.endpoints, self.flows, self.registry
        )
        self.scaling = Scaling(self.context, self.modules)
        self.probes = Probes(self)
        self.stages = StageTable(
            self.context, self.ports, self.flows, self.endpoints, self.registry, self.modules
        )
        self.paths = NodePaths(self.context)
        self.membership = Membership(self)
        self.retiring = FlowRetirer(self.context, self.ports, self.flows, self.wiring)
        self.calls = NodeCalls(self)
        self.describer = Describer()
        self.observer = Observer(self)
        self.metrics = Metrics(self)
        self.plan_node = PlanNode(self)
        self.plans = PlanApplier(self)
        self.control = Control(self)
        self.is_stopping = False
        self._is_handing_over = False
        self._half_made: list[OutFlow] = []
        self._stopped = asyncio.Event()
        self._server: Any = None
        self._ticker: asyncio.Task[None] | None = None
        self._connect_parts()

    def _connect_parts(self) -> None:
        self.registry.on_archived = self.observer.settle
        self.wiring.gateway = self.gateway
        self.wiring.node_is = lambda node, incarnation: self.membership.node_is(node, incarnation)
        self.wiring.call = self.calls.call
        self.wiring.lose_for_dead = self.death.lose
        self.wiring.opened_out = self.suspects.look_out
        self.wiring.opened_in = self.suspects.look_in
        self.suspects.call = self.calls.call
        self.suspects.node_is = self.wiring.node_is
        self.scaling.withdraw = self._withdraw
        self.liveness.on_change = self._on_suspicion
        self.liveness.on_left = self.ports.end
        self.liveness.is_held = self.modules.is_held
        self.ports.on_death = self._on_death
        self.lanes.add_to_gateway = self.gateway.add_lane
        self.lanes.remove_from_gateway = self.gateway.remove_lane
        self.segments.name_of = self._name_of
        self.segments.on_dropped = self.gateway.forget_segment
        self.attach.room = self.senders.room
        self.attach.sender_accepted = lambda e: self.death.accepted(e, self.registry)
        parts = (self.context, self.lanes, self.flows, self.wiring)
        broken_lanes = BrokenLanes(*parts, self._name_of)
        broken_lanes.settled = self.reconciler.look
        self.attach.lane_broken = broken_lanes.report
        self.attach.opened = self._on_opened
        self.attach.closed = self._on_closed
        self.attach.reported = self._on_reported
        self.attach.owner_of = self.modules.owner_of
        self.attach.route_ask = self.stages.routes.ask
        self.wiring.route_row = self.stages.routes.table.row
        self.stages.routes.flows_settled = self.reconciler.settled
        self.stages.routes.codecs.rate_to = self._rate_to
        self.wiring.closed_out = self.retiring.soon
        self.endpoints.transform_of = self.stages.transform_of
        self.endpoints.generation_of = self.stages.generation_of
        self.gateway.is_flow = lambda flow: flow in self.flows.outs or flow in self.flows.ins
        self.context.keeper.on_exit = self.modules.on_exit
        self.context.keeper.on_lost = self._on_keeper_lost

    def rails_of(self, number: int, size_bytes: int = 0) -> list[dict[str, Any]]:
        """Return a row for each rail to a node; the engine's prediction is for `size_bytes` (0: its own choice)."""
        return self.membership.links.rails_to(number, size_bytes)

    def _rate_to(self, number: int) -> float:
        """Return what the rails to a node carry together now, in bytes/s; 0 where none was measured."""
        rows = explain.carrying(self.rails_of(number))
        return sum(float(r.get("rate_now") or r["rate"]) for r in rows if explain.is_measured(r))

    # ---------------------------------------------------------------- life
    def uptime_s(self) -> float:
        """Return seconds since this daemon (not the node) was started."""
        return round(time.monotonic() - self.started_at, 1)

    async def start(self) -> None:
        """Restore, join the cluster, serve processes and the control API."""
        self.context.keeper.start()
        self.observer.start()
        self._restore()
        steps.at("daemon.restored")
        await self.membership.start()
        listening = socket.socket(fileno=os.dup(self.loaded.items["listen/unix"][1]))
        self.attach.start(listening)
        self._ticker = asyncio.get_running_loop().create_task(self._tick())
        from fabric.controlplane.api import server

        self._server = await server.serve(self.control, self.options.socket + ".ctl")
        await self.metrics.start()
        await self.modules.restore(self.loaded)
        self.scaling.restore(self.loaded.items)
        self.stages.restore(self.loaded)
        self.probes.resume()
        self._settle_restored()
        steps.at("daemon.settling")
        self.plan_node.resume()
        self.context.keeper.ready()
        log.info(
            "serving",
            extra={
                "node": self.context.name,
                "number": self.context.number,
                "socket": self.options.socket,
            },
        )

    async def run(self) -> int:
        """Serve until the keeper says stop (0, the node ends) or SIGTERM or SIGINT (RESTART, a successor comes)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        self.context.keeper.on_stop = self._stopped.set
        await self.start()
        await self._stopped.wait()
        if self._is_handing_over:
            await self.hand_over()
            return RESTART
        await self.stop()
        return 0

    def _on_signal(self) -> None:
        if os.getppid() != self.keeper_pid:
            self._on_keeper_lost()  # the signal of the keeper's death
        self._is_handing_over = True
        self._stopped.set()

    async def hand_over(self) -> None:
        """End this daemon only: the keeper has everything, modules run on, a successor goes on."""
        self.is_stopping = True
        steps.at("daemon.handing_over")
        log.info("handing over to a successor", extra={"node": self.context.name})
        if self._ticker is not None:
            self._ticker.cancel()
        self._stop_parts()
        if self._server is not None:
            await self._server.close(0.1)
        self.gateway.stop()
        self.context.keeper.close()

    async def stop(self) -> None:
        """Drain and end modules and stage hosts, leave the cluster, close everything."""
        self.is_stopping = True
        log.info("stopping", extra={"node": self.context.name})
        if self._ticker is not None:
            self._ticker.cancel()
        await self.modules.stop_all(limits.DRAIN_S)
        await self.membership.stop()
        self._stop_parts()
        await self.metrics.stop()
        if self._server is not None:
            await self._server.close(0.5)
        self.gateway.stop()
        self.context.keeper.close()

    def _stop_parts(self) -> None:
        for part in (
            self.plans,
            self.reconciler,
            self.retiring,
            self.suspects,
            self.death,
            self.closing,
            self.senders,
            self.attach,
        ):
            part.stop()

    def _restore(self) -> None:
        items = self.loaded.items
        self.segments.restore(items)
        self.shared.restore(items)
        self.lanes.restore(items)
        self.endpoints.restore(items)
        self.flows.restore(items)
        # Found before anybody can resume: what is begun from then on is this daemon's own.
        self._half_made = [out for out in self.flows.outs.values() if _is_half_made(out)]
        for port in ports.restore_ports(items):
            self.ports.add(port)
        self.gateway.restore()
        if len(self.ports):
            self.context.events.add(
                "daemon restarted", ports=len(self.ports), flows=len(self.flows.outs)
            )

    def _settle_restored(self) -> None:
        """Begin again what the last daemon had begun: dead ports, half-made flows."""
        for port in self.ports:
            if not port.is_alive:
                self._on_death(port)
        self.death.drop_unread()
        for out in self._half_made:
            self._spawn(self.wiring.give_up(out))
        for half in list(self.flows.ins.values()):
            if self.endpoints.get(half.endpoint) is None:
                self.closing.begin(half.endpoint)
        self.senders.restore()
        self.suspects.restore(self.loaded.items)
        self.reconciler.look()

    # ---------------------------------------------------------------- what happened
    def _on_suspicion(self, port: Port) -> None:
        self.ports.keep(port)
        self.suspects.port_changed(port)

    def _on_death(self, port: Port) -> None:
        if not self.is_stopping:
            self.modules.on_port_gone(port)
            self.stages.on_port_gone(port)
        self.death.begin(port, self.endpoints, self.flows, self.registry)

    async def _withdraw(self, process: Process) -> None:
        """Take the receivers of a process that is to leave out of the view; it still ends what it was sent."""
        gone = [e.endpoint for e in self.endpoints.of(process.port) if e.role == "receiver"]
        self.endpoints.withdraw(gone)
        try:
            await self.registry.close(gone)
        except errors.FabricError as error:
            self.context.events.add(
                "receivers not withdrawn", process=process.tag, reason=str(error)
            )

    def _name_of(self, port: int) -> str:
        known = self.ports.get(port)
        return known.name if known is not None else f"port {port}"

    def _on_opened(self, record: EndpointRecord) -> None:
        self._spawn(self._report_open(record))

    async def _report_open(self, record: EndpointRecord) -> None:
        try:
            await self.registry.open(record)
        except errors.FabricError as error:
            # A registry out of reach gets all endpoints when this node joins again.
            self.context.events.add(
                "endpoint not reported", endpoint=record.endpoint, reason=str(error)
            )

    def _on_closed(self, record: EndpointRecord) -> None:
        self.endpoints.remove(record)
        self._spawn(self._report_closed(record))

    async def _report_closed(self, record: EndpointRecord) -> None:
        for out in [f for f in self.flows.outs.values() if f.endpoint == record.endpoint]:
            try:
                await self.wiring.close(out.flow)
            except errors.FabricError as error:  # it left meanwhile: its flows are settled with it
                log.info(
                    "sender not told to close a flow",
                    extra={"flow": out.flow, "reason": str(error)},
                )
        try:
            await self.registry.close([record.endpoint])
        except errors.FabricError as error:
            self.context.events.add(
                "closed endpoint not reported", endpoint=record.endpoint, reason=str(error)
            )
        self.senders.closed(record)
        if record.role == "receiver" and not record.reply_endpoint:
            self.closing.begin(record.endpoint)

    def _on_reported(self, port: Port, what: str) -> None:
        self.modules.on_reported(port, what)
        self.stages.on_reported(port, what)
        if what == "resumed":
            for record in self.endpoints.of(port.port):
                if record.role == "sender":
                    self.reconciler.look_at(record.endpoint)

    def on_view(self, view: View) -> None:
        """Take a newer view: lose what was on dead nodes, then compare the senders that it concerns.

        One in which this node is dead tells what others believed while they did not hear of it: what runs here goes on
        as it was, and joining again brings the next one.
        """
        if view.epoch <= self.registry.view.epoch or self._is_dead_in(view):
            return
        change = compare(self.registry.view, view)
        self.registry.view = view
        steps.at("view.taken")
        self.paths.on_view(view)
        if change.has_records:
            self.gateway.weigh(view.channels)
        alive = {n.number: n.incarnation for n in view.nodes if n.state != "dead"}
        outs, ins = self.flows.outs.values(), self.flows.ins.values()
        for out in [o for o in outs if alive.get(o.target_node) != o.target_incarnation]:
            if not self.wiring.is_losing(out.flow):
                self._spawn(self.wiring.lose(out.flow, 0, OUTCOME_UNKNOWN))
        for half in [i for i in ins if alive.get(i.producer_node) != i.producer_incarnation]:
            self._spawn(self.wiring.serve_flow_in_close({"flow": half.flow}))
        self.suspects.nodes_are({n.number for n in view.nodes if n.state == "silent"})
        steps.at("view.losses.begun")
        self.membership.on_view(view)
        self.endpoints.take_credit(view, change)
        self.stages.on_view(view, change)
        self.reconciler.look(change)
        self.plans.look()

    def _on_keeper_lost(self) -> None:
        """Without a keeper nothing may stay: remove the sockets and go."""
        log.error("the keeper is gone")
        for path in (self.options.socket, self.options.socket + ".ctl"):
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue
        os._exit(1)

    # ---------------------------------------------------------------- the one timer
    async def _tick(self) -> None:
        looks = 0
        self.liveness.look(time.monotonic_ns())  # from here on a pause of this daemon shows
        while True:
            await asyncio.sleep(limits.LIVENESS_MS / 1000)
            looks += 1
            try:
                if not self.liveness.look(time.monotonic_ns()):
                    self.context.keeper.alive()  # it may have waited for a sign all that time
                    self.membership.pardon(time.monotonic())
                self.membership.tick(time.monotonic(), looks)
                if looks % TICK_LOOKS == 0:
                    self.context.keeper.alive()
                    self.observer.tick()
                    if any(out.state == "closing" for out in self.flows.outs.values()):
                        self.retiring.soon()  # by itself: it may wait for a node that is away
            except (errors.FabricError, OSError):
                log.exception("tick failed")

    def _is_dead_in(self, view: View) -> bool:
        own = self.context.number
        return any(n.number == own and n.state == "dead" for n in view.nodes)

    def _spawn(self, coroutine: Any) -> None:
        self.calls.background(coroutine)


def _is_half_made(out: OutFlow) -> bool:
    """Tell whether a flow's opening or closing was cut off by the end of the last daemon."""
    is_begun = out.state in ("opening", "offered") and not out.is_reply
    return is_begun or (out.state == "closing" and not out.is_told)


def main(argv: list[str]) -> int:
    """Run the daemon; the last two arguments are `--keeper-fd N`."""
    keeper_fd = int(argv[-1])
    options = parse(argv[:-2])
    logs.configure(options.state / "logs" / "fabricd.log", options.log_level)
    try:
        from fabric import _native

        return asyncio.run(_run(options, keeper_fd, _native))
    except (errors.ConfigError, errors.BusyError, errors.StorageError) as error:
        print(f"fabricd: {error}", file=sys.stderr)
        return REFUSED
    except Exception:
        log.exception("the daemon failed")
        return 1


async def _run(options: Options, keeper_fd: int, native: Any) -> int:
    keeper = KeeperLink(keeper_fd)
    daemon = Daemon(options, keeper, keeper.load(), native)
    return await daemon.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
