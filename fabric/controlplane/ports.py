"""The ports of a node: their shared state, their connection, their life.

Each port's descriptors are in the keeper under `port/<id>/…`, so that a restarted daemon finds them. A port
ends only when its process does (pidfd), never because its connection is lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fabric import errors, limits, steps
from fabric.controlplane import descriptors
from fabric.controlplane.calls import ControlConnection
from fabric.controlplane.context import Context
from fabric.controlplane.incarnations import Reserved

log = logging.getLogger("fabricd.ports")

_HEARTBEAT_OFFSET = 32  # StateHead.heartbeat_ns, layout.hpp


@dataclass(eq=False)
class Port:
    """One attached process (or the gateway). `owner` is the supervisor's tag of a module or stage host.

    `senders` are the endpoints it was given that send, until their counts are archived: what else its ledgers name,
    which it writes itself, is not its own.
    """

    port: int
    incarnation: int
    name: str
    pid: int
    tenant: int
    kind: str = "client"
    owner: str = ""
    state_fd: int = -1
    doorbell_fd: int = -1
    event_fd: int = -1
    pid_fd: int = -1
    is_alive: bool = True
    is_suspect: bool = False
    senders: list[int] = field(default_factory=list)
    connection: ControlConnection | None = None
    connected: asyncio.Event = field(default_factory=asyncio.Event)

    def record(self) -> dict[str, Any]:
        """Return what the keeper remembers."""
        keys = (
            "port",
            "incarnation",
            "name",
            "pid",
            "tenant",
            "kind",
            "owner",
            "is_alive",
            "senders",
        )
        return {key: getattr(self, key) for key in keys}

    async def push(
        self, op: str, fields: dict[str, Any], fds: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Push to the process, waiting for it to be back when its connection was lost.

        Raises
        ------
        PeerLostError, DeadlineExceeded
            The process is gone, or did not do it in time.
        """
        try:
            async with asyncio.timeout(limits.PUSH_S):
                await self.connected.wait()
        except TimeoutError as error:
            raise errors.DeadlineExceeded(
                f"{self.name} has no control connection", op=op, port=self.port
            ) from error
        if not self.is_alive or self.connection is None:
            raise errors.PeerLostError(f"{self.name} is gone", port=self.port)
        return await self.connection.push(op, fields, fds)

    def connect(self, connection: ControlConnection) -> None:
        """Take a (new) control connection; an older one is closed."""
        old, self.connection = self.connection, connection
        if old is not None and old is not connection:
            old.close()
        self.connected.set()

    def disconnect(self, connection: ControlConnection) -> None:
        """Note that `connection` is gone."""
        if self.connection is connection:
            self.connection = None
            self.connected.clear()

    def heartbeat_ns(self) -> int:
        """Return when the port's native thread last wrote its heartbeat (CLOCK_MONOTONIC); 0 before the first."""
        (beat,) = struct.unpack("<Q", os.pread(self.state_fd, 8, _HEARTBEAT_OFFSET))
        return int(beat)

    def heartbeat_age_ns(self) -> int:
        """Return nanoseconds since the last heartbeat; 0 before the first."""
        beat = self.heartbeat_ns()
        return time.monotonic_ns() - beat if beat else 0


class PortTable:
    """All local ports by id. `on_death(port)` is called once per process that ended."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ports: dict[int, Port] = {}
        self._incarnations = Reserved(context.state_dir)
        self.on_death: Callable[[Port], None] = lambda port: None

    def __iter__(self) -> Any:
        return iter(list(self._ports.values()))

    def __len__(self) -> int:
        return len(self._ports)

    def get(self, number: int) -> Port | None:
        """Return a port by id, dead ones until they are forgotten."""
        return self._ports.get(number)

    def create(self, name: str, pid: int, tenant: int, kind: str, owner: str, pid_fd: int) -> Port:
        """Make a port's shared state, keep it, watch its process; takes `pid_fd` (-1 for the gateway)."""
        if len(self._ports) >= limits.PORTS_PER_NODE_MAX:
            raise errors.CapacityError(
                f"this node has PORTS_PER_NODE_MAX ({limits.PORTS_PER_NODE_MAX}) ports",
                limit="PORTS_PER_NODE_MAX",
            )
        native = self._context.native
        number = self._context.take_port()
        incarnation = self._incarnations.take()
        port = Port(number, incarnation, name, pid, tenant, kind, owner, pid_fd=pid_fd)
        port.state_fd, port.doorbell_fd, port.event_fd = descriptors.make(
            f"a port for {name!r}",
            lambda: int(native.create_state(number, incarnation, tenant)),
            lambda: int(native.create_doorbell()),
            lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
        )
        for part in ("state", "doorbell", "event", "pid"):
            fd = getattr(port, f"{part}_fd")
            if fd >= 0:
                self._context.keeper.put(f"port/{number}/{part}", {}, fd)
        steps.at("attach.port.parts")
        self.keep(port)
        steps.at("attach.port.kept")
        self.add(port)
        return port

    def keep(self, port: Port) -> None:
        """Write the port's record to the keeper."""
        self._context.keeper.put(f"port/{port.port}/record", port.record())

    def add(self, port: Port) -> None:
        """Take a port (new or handed back) and watch its process."""
        self._ports[port.port] = port
        if port.pid_fd >= 0 and port.is_alive:
            asyncio.get_running_loop().add_reader(port.pid_fd, self._on_exit, port)

    def end(self, port: Port) -> None:
        """Treat a port as dead (its process ended, or it said bye and its process is done with it)."""
        if not port.is_alive:
            return
        port.is_alive = False
        if port.pid_fd >= 0:
            asyncio.get_running_loop().remove_reader(port.pid_fd)
        if port.connection is not None:
            port.connection.close()
            port.connection = None
        port.connected.set()  # waiting pushes look again and find it dead
        self.keep(port)
        self.on_death(port)

    def forget(self, port: Port) -> None:
        """Drop everything of a port whose ends are settled."""
        self._ports.pop(port.port, None)
        self._context.keeper.drop(f"port/{port.port}/")
        for part in ("state_fd", "doorbell_fd", "event_fd", "pid_fd"):
            fd = getattr(port, part)
            if fd >= 0:
                os.close(fd)
                setattr(port, part, -1)

    def _on_exit(self, port: Port) -> None:
        self._context.events.add("process ended", port=port.port, port_name=port.name, pid=port.pid)
        self.end(port)


def restore_ports(items: dict[str, tuple[dict[str, Any], int]]) -> list[Port]:
    """Rebuild ports from what the keeper handed back."""
    ports = []
    for key, (value, _) in items.items():
        if key.startswith("port/") and key.endswith("/record"):
            port = Port(**{**value, "is_alive": True})
            port.is_alive = value["is_alive"]
            for part in ("state", "doorbell", "event", "pid"):
                setattr(port, f"{part}_fd", items.get(f"port/{port.port}/{part}", ({}, -1))[1])
            ports.append(port)
    return [p for p in ports if min(p.state_fd, p.doorbell_fd, p.event_fd) >= 0]
