"""The lanes of a node: one shared segment per (port pair, class), made at first use and told to both sides."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fabric import errors, limits, steps
from fabric.controlplane import descriptors
from fabric.controlplane.context import Context
from fabric.controlplane.ports import Port, PortTable

CLASSES = ("control", "token", "embedding", "bulk")


@dataclass(eq=False)
class Lane:
    """One lane pair; `ports` ascending, side = index. `told`: which sides have confirmed it."""

    lane: int
    klass: int
    ports: tuple[int, int]
    told: set[int] = field(default_factory=set)
    fd: int = -1

    def side(self, port: int) -> int:
        """Return the side of a port: 0 for the smaller id."""
        return self.ports.index(port)

    def peer(self, port: int) -> int:
        """Return the port on the other side."""
        return self.ports[1 - self.side(port)]


class LaneTable:
    """All lanes by number and by (ports, class). `add_to_gateway` and `remove_from_gateway` reach the engine."""

    def __init__(self, context: Context, ports: PortTable) -> None:
        self._context = context
        self._ports = ports
        self._lanes: dict[int, Lane] = {}
        self._making: dict[tuple[int, int, int], asyncio.Task[Lane]] = {}
        self.add_to_gateway: Callable[[Lane, Port], None] = lambda lane, peer: None
        self.remove_from_gateway: Callable[[int], None] = lambda lane: None

    def get(self, number: int) -> Lane | None:
        """Return a lane by number."""
        return self._lanes.get(number)

    def of(self, port: int) -> list[Lane]:
        """Return every lane of a port."""
        return [lane for lane in self._lanes.values() if port in lane.ports]

    def all(self) -> list[Lane]:
        """Return every lane."""
        return list(self._lanes.values())

    async def ensure(self, one: Port, other: Port, klass: str) -> Lane:
        """Return the lane between two living ports, known to both; raises when a side cannot take it."""
        low, high = sorted((one, other), key=lambda p: p.port)
        key = (low.port, high.port, CLASSES.index(klass))
        task = self._making.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._make(low, high, key[2]))
            self._making[key] = task
            task.add_done_callback(lambda done: self._making.pop(key, None))
        return await asyncio.shield(task)

    async def drop(self, lane: Lane) -> None:
        """Take a lane away from both sides (those alive) and forget it."""
        if self._lanes.pop(lane.lane, None) is None:
            return
        for number in lane.ports:
            port = self._ports.get(number)
            if port is None or not port.is_alive:
                continue
            if port.kind == "gateway":
                self.remove_from_gateway(lane.lane)
                continue
            try:
                await port.push("lane_drop", {"lane": lane.lane})
            except errors.FabricError as error:
                self._context.events.add(
                    "lane not dropped",
                    lane=lane.lane,
                    port=port.port,
                    port_name=port.name,
                    reason=str(error),
                )
        self._context.keeper.drop(f"lane/{lane.lane}")
        os.close(lane.fd)

    def restore(self, items: dict[str, tuple[dict[str, Any], int]]) -> None:
        """Take back what the keeper held."""
        for key, (value, fd) in items.items():
            if key.startswith("lane/") and fd >= 0:
                number = value["lane"]
                self._lanes[number] = Lane(
                    number, value["klass"], tuple(value["ports"]), set(value["told"]), fd
                )

    async def _make(self, low: Port, high: Port, klass: int) -> Lane:
        lane = next(
            (
                x
                for x in self._lanes.values()
                if x.ports == (low.port, high.port) and x.klass == klass
            ),
            None,
        )
        if lane is None:
            lane = self._create(low, high, klass)
        pushes = [
            self._tell(lane, port, peer)
            for port, peer in ((low, high), (high, low))
            if port.port not in lane.told
        ]
        await asyncio.gather(*pushes)
        if pushes:
            self._keep(lane)
        return lane

    def _create(self, low: Port, high: Port, klass: int) -> Lane:
        for port in (low, high):
            if len(self.of(port.port)) >= limits.LANES_PER_PORT_MAX:
                raise errors.CapacityError(
                    f"{port.name} has LANES_PER_PORT_MAX ({limits.LANES_PER_PORT_MAX}) lanes",
                    limit="LANES_PER_PORT_MAX",
                )
        number = self._free_number(low, high)
        lane = Lane(number, klass, (low.port, high.port))
        (lane.fd,) = descriptors.make(
            f"a lane between {low.name!r} and {high.name!r}",
            lambda: int(
                self._context.native.create_lane_pair(
                    klass, low.port, low.incarnation, high.port, high.incarnation
                )
            ),
        )
        self._lanes[number] = lane
        self._keep(lane, lane.fd)
        steps.at("lane.kept")
        return lane

    def _free_number(self, low: Port, high: Port) -> int:
        """A number whose doorbell bit (number mod LANES_PER_PORT_MAX) no other lane of either port has."""
        size = limits.LANES_PER_PORT_MAX
        taken = {lane.lane % size for port in (low, high) for lane in self.of(port.port)}
        for _ in range(2 * size):
            number = self._context.numbers.take("lane")
            if number % size not in taken:
                return number
        raise errors.CapacityError(
            "no doorbell bit is free for one more lane", limit="LANES_PER_PORT_MAX"
        )

    async def _tell(self, lane: Lane, port: Port, peer: Port) -> None:
        if port.kind == "gateway":
            self.add_to_gateway(lane, peer)
        else:
            fields = {
                "lane": lane.lane,
                "klass": lane.klass,
                "side": lane.side(port.port),
                "peer_port": peer.port,
                "peer_incarnation": peer.incarnation,
            }
            await port.push("lane", fields, (lane.fd, peer.doorbell_fd, peer.event_fd))
        lane.told.add(port.port)
        steps.at("lane.told")

    def _keep(self, lane: Lane, fd: int = -1) -> None:
        value = {
            "lane": lane.lane,
            "klass": lane.klass,
            "ports": list(lane.ports),
            "told": sorted(lane.told),
        }
        self._context.keeper.put(f"lane/{lane.lane}", value, fd)
