"""The metrics of a node: gather what is exported, and serve it on loopback (`fabricd --metrics HOST:PORT|off`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabric import __version__
from fabric.controlplane.audit import REASON_NAMES

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon
    from fabric.telemetry.http import MetricsServer


class Metrics:
    """One per daemon; the library is imported when the first metrics are made."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._server: MetricsServer | None = None

    @property
    def address(self) -> str | None:
        """HOST:PORT, or None when metrics are not served."""
        return self._server.address if self._server else None

    async def start(self) -> None:
        """Serve as the options say. An address that cannot be had is an event, and the node serves without."""
        from fabric import errors
        from fabric.telemetry.http import MetricsServer
        from fabric.telemetry.prometheus import CONTENT_TYPE

        address = self._daemon.options.metrics
        if address is None:
            return
        server = MetricsServer(self.text, CONTENT_TYPE)
        try:
            await server.start(*address)
        except errors.FabricError as error:
            self._daemon.context.events.add("metrics not served", reason=str(error))
            return
        self._server = server

    async def stop(self) -> None:
        """Serve no more. Idempotent."""
        if self._server is not None:
            await self._server.close()
            self._server = None

    def text(self) -> bytes:
        """Return the metrics as they are now, in Prometheus' text format."""
        from fabric.telemetry.prometheus import Readings, exposition

        daemon = self._daemon
        observer = daemon.observer
        return exposition(
            Readings(
                sample=observer.fresh(),
                totals=observer.totals,
                reasons=REASON_NAMES,
                version=__version__,
                uptime_s=daemon.uptime_s(),
                credit=self._credit(),
                engine=daemon.gateway.stats(),
                peers=self._peers(),
                restarts={
                    (kind, process.name): process.life.restarts
                    for kind in ("module", "stage")
                    for process in daemon.modules.all(kind)
                },
                archived=observer.archived,
                limits=observer.limits,
                rails=daemon.control.paths.all_rows(),
                rail_changes=daemon.control.paths.changes.entered,
                events=daemon.context.events.by_kind,
                events_lost=daemon.context.events.lost,
                downgrades=daemon.paths.downgrades,
                joins=daemon.shared.join_counters(),
                caches=daemon.shared.cache_counters(),
            )
        )

    def _credit(self) -> dict[int, tuple[int, int]]:
        sums: dict[int, tuple[int, int]] = {}
        for out in self._daemon.flows.outs.values():
            if out.state == "open":
                messages, size = sums.get(out.channel, (0, 0))
                sums[out.channel] = messages + out.messages, size + out.bytes
        return sums

    def _peers(self) -> dict[int, str]:
        daemon = self._daemon
        names = {}
        for number in daemon.membership.links.peers():
            node = daemon.registry.view.node(number)
            session = daemon.gateway.session_of(number)
            if session is not None:
                names[session] = node.name if node else str(number)
        return names
