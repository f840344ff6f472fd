"""Take one consistent cut of all nodes and have it compared: freeze everywhere, inspect, thaw.

Every node thaws by itself after a deadline, so an auditor that dies freezes nobody for long.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any

import msgspec

from fabric import errors, limits
from fabric.controlplane.audit import compare

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

log = logging.getLogger("fabricd.audit")

THAW_AFTER_S = 1.5  #: a node thaws by itself when nobody did


class Auditor:
    """Belongs to the daemon's loop; one audit at a time."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._lock = asyncio.Lock()
        self._frozen: list[int] = []  #: our own descriptors: a port may be forgotten meanwhile
        self._overruns: dict[int, int] = {}
        self._snapshot = b""
        self._safety: asyncio.TimerHandle | None = None

    async def run(self) -> dict[str, Any]:
        """Audit the cluster; `verdict` is balanced, unbalanced or indeterminate (no consistent cut)."""
        async with self._lock:
            reason = ""
            for attempt in range(limits.AUDIT_TRIES):
                if attempt:
                    await asyncio.sleep(0.1 * attempt)
                started = time.monotonic()
                try:
                    snapshots = await self._cut()
                    archived = await self._daemon.registry.archived()
                except errors.FabricError as error:
                    reason = str(error)
                    continue
                view = self._daemon.registry.view
                names = {c.number: c.name for c in view.channels}
                report = compare(snapshots, [msgspec.to_builtins(a) for a in archived], names)
                if not report["balanced"] and any(s["unsettled"] for s in snapshots):
                    reason = "deaths and ended flows are being settled, which the cut tore apart"
                    continue
                return self._answer(report, time.monotonic() - started)
            return {
                "verdict": "indeterminate",
                "reason": reason,
                "duration_ms": 0.0,
                "differences": [],
                "channels": [],
                "balanced": False,
            }

    @staticmethod
    def _answer(report: dict[str, Any], took_s: float) -> dict[str, Any]:
        rows = []
        for name, counts in report["channels"].items():
            rows.append(
                {
                    "name": name,
                    "accepted": counts["accepted"],
                    "delivered": counts["delivered"],
                    "dropped": sum(counts["dropped"].values()),
                    "failed": sum(counts["failed"].values()),
                    "in_flight": counts["in_flight"],
                    "dropped_by_reason": counts["dropped"],
                    "failed_by_reason": counts["failed"],
                }
            )
        return {
            "verdict": "balanced" if report["balanced"] else "unbalanced",
            "balanced": report["balanced"],
            "reason": "",
            "duration_ms": round(took_s * 1000, 2),
            "differences": report["differences"],
            "channels": rows,
        }

    async def _cut(self) -> list[dict[str, Any]]:
        """Freeze every node, then look, then let them go, whatever happened."""
        nodes = [n.number for n in self._daemon.registry.view.nodes if n.state != "dead"]
        calls = self._daemon.calls
        try:
            await asyncio.gather(*(calls.call(n, "freeze", {}, 2.0) for n in nodes))
            return list(await asyncio.gather(*(self._fetch(n) for n in nodes)))
        finally:
            thawed = await asyncio.gather(
                *(calls.call(n, "thaw", {}, 2.0) for n in nodes), return_exceptions=True
            )
            for result in thawed:
                if isinstance(result, Exception):
                    log.warning("a node thaws by itself", extra={"reason": str(result)})

    async def _fetch(self, node: int) -> dict[str, Any]:
        data = b""
        while True:
            part = await self._daemon.calls.call(node, "inspect", {"offset": len(data)}, 2.0)
            data += part["data"]
            if len(data) >= part["total"]:
                found: dict[str, Any] = decode_snapshot(data)
                return found

    # ---------------------------------------------------------------- served on every node
    async def serve(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Serve freeze, inspect and thaw."""
        if op == "freeze":
            await self._freeze()
            return {}
        if op == "inspect":
            if fields["offset"] == 0:
                self._snapshot = encode_snapshot(self._look())
                self._check_cut()
            part = self._snapshot[fields["offset"] : fields["offset"] + limits.AUDIT_PART_BYTES]
            return {"data": part, "total": len(self._snapshot)}
        self._thaw()
        return {}

    async def _freeze(self) -> None:
        """Freeze every local port; raises when one stays inside an operation past the deadline."""
        native = self._daemon.context.native
        self._thaw()
        loop = asyncio.get_running_loop()
        self._safety = loop.call_later(THAW_AFTER_S, self._thaw)
        deadline_ns = time.monotonic_ns() + int(limits.AUDIT_FREEZE_S * 1e9)
        frozen = []
        self._overruns = self._count_overruns()
        for port in self._daemon.ports:
            if port.is_alive:
                self._frozen.append(os.dup(port.state_fd))
                state_fd = os.dup(port.state_fd)
                frozen.append(
                    loop.run_in_executor(None, _freeze_port, native, state_fd, deadline_ns)
                )
        for stopped in await asyncio.gather(*frozen):
            if not stopped:
                raise errors.DeadlineExceeded(
                    "a process stayed inside an operation; the cut would not be consistent"
                )

    def _count_overruns(self) -> dict[int, int]:
        """Return, by port, how many operations went on in a freeze: none may while a cut is looked at."""
        count = self._daemon.context.native.freeze_overruns
        return {port.port: count(port.state_fd) for port in self._daemon.ports if port.is_alive}

    def _check_cut(self) -> None:
        """Raise when a port went on before everything was looked at: what was seen is no cut."""
        now = self._count_overruns()
        went_on = [port for port in now if now[port] != self._overruns.get(port)]
        if self._safety is None or went_on:
            raise errors.DeadlineExceeded(
                "the processes of a node went on before the audit had looked at them all"
            )

    def _thaw(self) -> None:
        if self._safety is not None:
            self._safety.cancel()
            self._safety = None
        frozen, self._frozen = self._frozen, []
        for state_fd in frozen:
            try:
                self._daemon.context.native.thaw(state_fd)
            finally:
                os.close(state_fd)

    def _look(self) -> dict[str, Any]:
        native = self._daemon.context.native
        ports = []
        for port in self._daemon.ports:
            try:
                seen = native.inspect_state(port.state_fd)
            except errors.FabricError as error:
                seen = {
                    "port": port.port,
                    "flows": [],
                    "held": [],
                    "ledgers": [],
                    "error": str(error),
                }
            ports.append({**seen, "is_alive": port.is_alive})
        lanes = []
        for lane in self._daemon.lanes.all():
            directions = []
            for direction in (0, 1):
                try:
                    directions.append(native.inspect_lane(lane.fd, direction))
                except errors.FabricError as error:
                    directions.append({"error": str(error)})
            lanes.append({"lane": lane.lane, "ports": list(lane.ports), "directions": directions})
        unsettled = self._daemon.death.unsettled_count + self._daemon.wiring.leaving_count
        unsettled += self._daemon.closing.unsettled_count
        return {
            "node": self._daemon.context.name,
            "unsettled": unsettled,
            "ports": ports,
            "lanes": lanes,
        }


def _freeze_port(native: Any, state_fd: int, deadline_ns: int) -> bool:
    """Freeze one port, in a thread; closes the descriptor. Late, when its thaw may be over, nothing is frozen."""
    try:
        return time.monotonic_ns() < deadline_ns and bool(native.freeze(state_fd, deadline_ns))
    finally:
        os.close(state_fd)


def encode_snapshot(snapshot: dict[str, Any]) -> bytes:
    """Return a snapshot as bytes; the ledgers' (end, reason) keys become lists."""
    plain = dict(snapshot)
    plain["ports"] = [
        {
            **port,
            "ledgers": [
                {**row, "counts": [[*key, n] for key, n in row["counts"].items()]}
                for row in port["ledgers"]
            ],
        }
        for port in snapshot["ports"]
    ]
    return msgspec.msgpack.encode(plain)


def decode_snapshot(data: bytes) -> dict[str, Any]:
    """Rebuild a snapshot from its bytes."""
    snapshot: dict[str, Any] = msgspec.msgpack.decode(data)
    for port in snapshot["ports"]:
        for row in port["ledgers"]:
            row["counts"] = {(end, reason): n for end, reason, n in row["counts"]}
    return snapshot
