"""Measure one edge of the running fabric: an end on each of two nodes, transient channels between, and nothing after.

The node that is asked holds it together. However it ends, both ends are told to leave and the channels to go; if this
node dies, the ends leave at their time limit and the channels with them.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Awaitable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fabric import errors, limits
from fabric.messages.raw import BYTES
from fabric.registry.records import ChannelRecord, NodeRecord
from fabric.worker.probe_plan import (
    ARRAY,
    BATCHED,
    LOANED,
    ONE_WAY,
    TRIPS,
    Budget,
    plan,
    taken,
)

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon

PREFIX = "fabric.bench"
CLASSES = {"out": "token", "back": "token", "bulk": "bulk"}  # channel → traffic class
_GROUPS = {TRIPS: "latency", ONE_WAY: "rate", BATCHED: "rate", LOANED: "bulk", ARRAY: "bulk"}
_LOOK_S = 0.1
_STOP_S = (
    2 * limits.PROBE_SETTLE_S + limits.DRAIN_S
)  # a node may take this long to take an end away


class EdgeBench:
    """Belongs to the daemon's loop; any number at once, each with a name of its own."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._running: set[str] = set()

    async def run(self, source: str, target: str, budget: Budget) -> dict[str, Any]:
        """Measure from node `source` to node `target`, which may be one; returns the report.

        Raises
        ------
        ConfigError
            There is no such node, or the budget is outside its bounds or has no room for any step.
        PathBrokenError
            A node is suspect or dead, or the two have no link.
        PeerLostError, DeadlineExceeded, CapacityError
            An end or a node died on the way, or could not start.
        """
        if not taken(plan(budget.check())):
            raise errors.ConfigError("no step fits in this budget: give more", key="--bytes")
        ends = {"near": self._node(source), "far": self._node(target)}
        name = self._free_name()
        self._running.add(name)
        held = _Held(self._daemon, name, ends, budget)
        try:
            return await held.measure()
        finally:
            # A caller that has gone, Ctrl-C or kill -9, cancels this call, and must not cancel the cleaning up.
            task = asyncio.get_running_loop().create_task(self._take_away(held))
            await asyncio.shield(task)

    async def _take_away(self, held: _Held) -> None:
        try:
            await held.take_away()
        finally:
            self._running.discard(held.name)

    def _node(self, name: str) -> NodeRecord:
        nodes = {node.name: node for node in self._daemon.registry.view.nodes}
        found = nodes.get(name)
        if found is None:
            near = difflib.get_close_matches(name, nodes, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(nodes))}"
            raise errors.ConfigError(f"there is no node {name!r}; {hint}", node=name)
        if found.state != "alive":
            said = "suspect: nothing was heard of it lately" if found.state == "silent" else "dead"
            raise errors.PathBrokenError(
                f"node {name!r} is {said}; wait until fabricctl node ls shows it as serving",
                node=name,
                state=found.state,
            )
        return found

    def _free_name(self) -> str:
        """Return the first name that neither runs nor has channels left: names repeat, so metrics get few labels."""
        known = {channel.name for channel in self._daemon.registry.view.channels}
        number = 0
        while True:
            name = f"{PREFIX}.{self._daemon.context.number}.{number}"
            if name not in self._running and f"{name}.out" not in known:
                return name
            number += 1


class _Held:
    """One measurement while it lasts."""

    def __init__(
        self, daemon: Daemon, name: str, ends: dict[str, NodeRecord], budget: Budget
    ) -> None:
        self._daemon = daemon
        self.name = name
        self._ends = ends
        self._budget = budget
        self._channels = {way: f"{name}.{way}" for way in CLASSES}
        self._numbers: dict[int, str] = {}

    async def measure(self) -> dict[str, Any]:
        await self._check_path()
        for way, channel in self._channels.items():
            record = ChannelRecord(
                name=channel,
                type_name=BYTES.schema.name,
                schema=BYTES.schema.text,
                type=BYTES.schema.type_id,
                klass=CLASSES[way],
                is_transient=True,
            )
            self._numbers[(await self._daemon.registry.declare(record)).number] = way
        await _all(self._start(role) for role in self._ends)
        return await self._unless_lost(self._figures())

    async def take_away(self) -> None:
        """End both ends wherever they are reached, then the channels."""
        stops = [self._call(role, "probe_stop", _STOP_S) for role in self._ends]
        for error in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(error, BaseException):
                self._daemon.context.events.add("probe not reached", reason=str(error))
        try:
            await self._daemon.registry.release(self._channels.values())
        except errors.FabricError as error:  # the registry drops them by itself, later
            self._daemon.context.events.add("channels not released", reason=str(error))

    # ---------------------------------------------------------------- parts
    async def _check_path(self) -> None:
        if self._is_one_node:
            return
        near, far = self._ends["near"], self._ends["far"]
        links = (await self._summary("near"))["links"]
        link = next((row for row in links if row["target"] == far.name), None)
        if link is None or link["state"] != "up":
            reason = (link or {}).get("reason") or "they are not connected"
            raise errors.PathBrokenError(
                f"there is no path from node {near.name!r} to node {far.name!r}: {reason};"
                " see the links of fabricctl topology",
                source=near.name,
                target=far.name,
            )

    async def _start(self, role: str) -> None:
        await self._call(
            role,
            "probe_start",
            limits.BENCH_START_S + limits.CONTROL_CALL_S,
            role=role,
            counts_daemon=role == "near" or not self._is_one_node,
            limit_s=self._limit_s(),
            config={"budget": asdict(self._budget), "channels": self._channels},
        )

    async def _figures(self) -> dict[str, Any]:
        limit_s = self._limit_s()
        report = await self._call("near", "probe_run", limit_s + 1.0, limit_s=limit_s)
        rows = zip(plan(self._budget), report["steps"], strict=True)
        return {
            "source": self._ends["near"].name,
            "target": self._ends["far"].name,
            "budget": asdict(self._budget),
            "used": report["used"],
            "steps": [{"group": self._group(step.run), **row} for step, row in rows],
            "path": await self._paths(),
            "load": [
                {"node": self._ends[role].name, "end": role, **report["load"][role]}
                for role in (("near",) if self._is_one_node else self._ends)
            ],
        }

    async def _paths(self) -> list[dict[str, Any]]:
        """Return how the channels' flows went, while they are there."""
        rows = []
        for role, other in (("near", "far"), ("far", "near")):
            part = await self._summary(role)
            target = self._ends[other].name
            links: list[dict[str, Any]] = part["links"]
            link = next((row for row in links if row["target"] == target), {})
            rows += [
                {
                    "channel": self._numbers[flow["channel"]],
                    "source": self._ends[role].name,
                    "target": target,
                    **{key: flow[key] for key in ("path", "path_preferred", "path_reason")},
                    "checksums": link.get("checksums"),
                    "rtt_us": link.get("rtt_us"),
                }
                for flow in part["flows"]
                if flow["channel"] in self._numbers and flow["source"] == self._probe(role)
            ]
        return rows

    async def _unless_lost(self, figures: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        """Return the figures, or raise what ended first: an end, or a node."""
        asked = asyncio.ensure_future(figures)
        watches = [
            asyncio.ensure_future(self._call("far", "probe_watch", self._limit_s())),
            asyncio.ensure_future(self._until_node_lost()),
        ]
        try:
            await asyncio.wait([asked, *watches], return_when="FIRST_COMPLETED")
            ended = next(task for task in (asked, *watches) if task.done())
            return ended.result()
        finally:
            for task in (asked, *watches):
                task.cancel()
            await asyncio.gather(asked, *watches, return_exceptions=True)

    async def _until_node_lost(self) -> dict[str, Any]:
        while True:
            for node in self._ends.values():
                now = self._daemon.registry.view.node(node.number)
                if now is None or now.state == "dead" or now.incarnation != node.incarnation:
                    raise errors.PeerLostError(
                        f"node {node.name!r} was lost during the measurement", node=node.name
                    )
            await asyncio.sleep(_LOOK_S)

    async def _call(self, role: str, op: str, timeout_s: float, /, **fields: Any) -> dict[str, Any]:
        node = self._ends[role].number
        return await self._daemon.calls.call(
            node, op, {"name": self._probe(role), **fields}, timeout_s
        )

    async def _summary(self, role: str) -> dict[str, Any]:
        return await self._daemon.calls.call(self._ends[role].number, "summary", {})

    @property
    def _is_one_node(self) -> bool:
        return self._ends["near"].number == self._ends["far"].number

    def _group(self, run: str) -> str:
        """Return the group of the bench that has this row."""
        return _GROUPS[run] if self._is_one_node else "tcp"

    def _probe(self, role: str) -> str:
        return f"{self.name.removeprefix('fabric.')}.{role}"

    def _limit_s(self) -> float:
        """Return after how long an end leaves by itself."""
        return self._budget.seconds + 2 * limits.BENCH_START_S


async def _all(calls: Iterable[Awaitable[None]]) -> None:
    """Wait for all of them, then raise the first error: none is left under way."""
    for found in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(found, BaseException):
            raise found
