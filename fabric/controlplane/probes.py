"""The ends of measurements that run on this node: started, watched and taken away, whatever becomes of who asked.

A probe ends when it is told to, when the node that asked for it is gone, when this daemon is started again, and at its
time limit at the latest. When `probe_stop` answers, its process, port and log are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric import errors, limits, steps
from fabric.controlplane.logs import tail
from fabric.controlplane.modules import Process

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

#: what the node that measures asks of the two of the edge
CALLS = frozenset({"probe_start", "probe_run", "probe_watch", "probe_stop"})
_CLASSES = {"near": "fabric.worker.probe:Near", "far": "fabric.worker.probe:Far"}
_GRACE_S = 1.0  # to leave in order; it holds nothing that is worth more
_POLL_S = 0.02


class Probes:
    """Belongs to the daemon's loop."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._limits: dict[str, asyncio.TimerHandle] = {}
        self._stops: dict[str, asyncio.Task[None]] = {}

    def resume(self) -> None:
        """Take away what the last daemon had started."""
        for process in self._daemon.modules.all("probe"):
            self._begin_stop(process)

    async def serve(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Serve one call of `CALLS`."""
        name = fields["name"]
        if op == "probe_stop":
            await self._stop(name)
            return {}
        try:
            if op == "probe_start":
                await self._start(fields)
                return {}
            if op == "probe_watch":
                raise await self._ended(self._process(name))
            return await self._run(self._process(name), fields["limit_s"])
        except asyncio.CancelledError:  # who asked is gone, and its connection with it
            process = self._daemon.modules.find("probe", name)
            if process is not None:
                self._begin_stop(process)
            raise

    # ---------------------------------------------------------------- life
    async def _start(self, fields: dict[str, Any]) -> None:
        """Start a probe and wait until it is ready.

        Raises
        ------
        CapacityError
            `PROBES_MAX` run here already.
        DeadlineExceeded, PeerLostError
            It was not ready in time, or ended before; with what it printed last.
        """
        running = self._daemon.modules.all("probe")
        if len(running) >= limits.PROBES_MAX:
            raise errors.CapacityError(
                f"PROBES_MAX ({limits.PROBES_MAX}) ends of measurements run on node"
                f" {self._daemon.context.name!r}; wait for one to finish",
                limit="PROBES_MAX",
            )
        # The daemon's share of an edge within one node is counted by one end.
        daemon_pid = os.getpid() if fields["counts_daemon"] else 0
        config = {**fields["config"], "daemon_pid": daemon_pid}
        name = fields["name"]
        process = self._daemon.modules.start_probe(name, _CLASSES[fields["role"]], config)
        loop = asyncio.get_running_loop()
        self._limits[name] = loop.call_later(fields["limit_s"], self._begin_stop, process)
        steps.at("probe.started")
        try:
            async with asyncio.timeout(limits.BENCH_START_S):
                await self._either(process.ready, process)
        except TimeoutError as error:
            raise errors.DeadlineExceeded(
                f"{name} was not ready within {limits.BENCH_START_S:g} s", limit="BENCH_START_S"
            ) from error

    async def _run(self, process: Process, limit_s: float) -> dict[str, Any]:
        """Have the near end measure; returns its report."""
        port = self._daemon.ports.get(process.port)
        if port is None or port.connection is None:
            raise self._lost(process)
        try:
            answer = await port.connection.push("probe_run", {}, (), limit_s)
        except errors.PeerLostError as error:
            with contextlib.suppress(
                TimeoutError
            ):  # its exit comes behind the end of its connection
                async with asyncio.timeout(_GRACE_S):
                    await process.ended.wait()
            raise self._lost(process) from error
        return {key: answer[key] for key in ("steps", "load", "used")}

    async def _ended(self, process: Process) -> errors.FabricError:
        """Return, once a probe has ended, what it died of."""
        await process.ended.wait()
        return self._lost(process)

    async def _either(self, event: asyncio.Event, process: Process) -> None:
        """Wait for `event`; raises when the process ends first."""
        waits = [asyncio.ensure_future(e.wait()) for e in (event, process.ended)]
        try:
            await asyncio.wait(waits, return_when="FIRST_COMPLETED")
        finally:
            for wait in waits:
                wait.cancel()
        if not event.is_set():
            raise self._lost(process)

    def _begin_stop(self, process: Process) -> asyncio.Task[None]:
        """Stop a probe, once, whoever asks and however often."""
        task = self._stops.get(process.name)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._take_away(process))
            self._stops[process.name] = task
            task.add_done_callback(lambda _: self._stops.pop(process.name, None))
        return task

    async def _stop(self, name: str) -> None:
        process = self._daemon.modules.find("probe", name)
        if process is not None:
            await asyncio.shield(self._begin_stop(process))

    async def _take_away(self, process: Process) -> None:
        """End the process, then wait until nothing of its port is left."""
        timer = self._limits.pop(process.name, None)
        if timer is not None:
            timer.cancel()
        await self._daemon.modules.stop(process, _GRACE_S)
        steps.at("probe.ended")
        deadline = time.monotonic() + limits.PROBE_SETTLE_S
        while any(p.owner == process.tag for p in self._daemon.ports):
            if time.monotonic() > deadline:
                break  # a registry out of reach holds it up; its death goes on being settled
            await asyncio.sleep(_POLL_S)
        self._log_of(process).unlink(missing_ok=True)

    # ---------------------------------------------------------------- parts
    def _process(self, name: str) -> Process:
        process = self._daemon.modules.find("probe", name)
        if process is None:
            raise errors.PeerLostError(f"{name} has ended", probe=name)
        return process

    def _log_of(self, process: Process) -> Path:
        return self._daemon.modules.log_path("probe", process.name)

    def _lost(self, process: Process) -> errors.FabricError:
        path, node = self._log_of(process), self._daemon.context.name
        last = (tail(path, 1) if path.exists() else []) or ["it printed nothing"]
        return errors.PeerLostError(
            f"{process.name} on node {node!r} ended before the measurement was over: {last[0]}",
            probe=process.name,
            node=node,
        )
