"""The attach server: processes of this machine become ports, declare channels, open endpoints, get segments.

Identity comes from the socket (SO_PEERCRED, SO_PEERPIDFD), never from what the process says. One task reads a
connection; requests are served as tasks of their own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fabric import errors, limits, steps
from fabric.controlplane import descriptors
from fabric.controlplane.calls import Answer, ControlConnection
from fabric.controlplane.context import Context
from fabric.controlplane.declaration import channel_from
from fabric.controlplane.endpoints import EndpointTable, open_answer, schema_answer
from fabric.controlplane.ports import Port, PortTable
from fabric.controlplane.segments import SegmentTable
from fabric.controlplane.shared_memory import SharedMemories
from fabric.dataplane.framing import FrameStream
from fabric.registry.client import RegistryClient
from fabric.registry.records import EndpointRecord

log = logging.getLogger("fabricd.attach")

PROTOCOL_VERSION = 1
_SO_PEERPIDFD = 77


def peer_of(sock: socket.socket) -> tuple[int, int, int]:
    """Return pid, uid and a pidfd of the process at the other end; raises `PeerLostError` when it is gone."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        (pid_fd,) = struct.unpack("i", sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))
    except OSError:
        try:
            pid_fd = os.pidfd_open(
                pid
            )  # a kernel before 6.5: the pid could be reused in between, unlikely
        except OSError as error:
            raise errors.PeerLostError(f"process {pid} is gone", pid=pid) from error
    os.set_inheritable(pid_fd, False)
    return pid, uid, pid_fd


class AttachServer:
    """Accepts on the keeper's listening socket.

    `owner_of(token)` names the supervised process a token was given to; `opened`, `closed` and `reported` tell the
    rest of the daemon what a process did.
    """

    def __init__(
        self,
        context: Context,
        ports: PortTable,
        segments: SegmentTable,
        endpoints: EndpointTable,
        registry: RegistryClient,
        shared: SharedMemories,
    ) -> None:
        self._context = context
        self._ports = ports
        self._segments = segments
        self._shared = shared
        self._endpoints = endpoints
        self._registry = registry
        self._socket: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._port_of: dict[ControlConnection, Port] = {}
        self.owner_of: Callable[[str], tuple[str, str] | None] = lambda token: None
        self.opened: Callable[[EndpointRecord], None] = lambda record: None
        self.closed: Callable[[EndpointRecord], None] = lambda record: None
        self.reported: Callable[[Port, str], None] = lambda port, what: None
        self.room: Callable[[Port], Awaitable[None]]
        self.lane_broken: Callable[[Port, dict[str, Any]], Awaitable[None]]
        self.route_ask: Callable[[Port, dict[str, Any]], Any] = lambda port, fields: None
        self.sender_accepted: Callable[[int], Awaitable[int | None]]

    def start(self, listening: socket.socket) -> None:
        """Accept from now on."""
        listening.setblocking(False)
        self._socket = listening
        asyncio.get_running_loop().add_reader(listening.fileno(), self._accept)

    def stop(self) -> None:
        """Accept no more and close every connection."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket = None
        for task in self._tasks:
            task.cancel()

    def _accept(self) -> None:
        assert self._socket is not None
        try:
            sock, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            self._pause(str(error))
            return
        if descriptors.room_left(sock.fileno()) < -limits.DESCRIPTORS_RESERVED // 2:
            sock.close()  # not even enough to say no
            self._pause("almost every descriptor is in use")
            return
        task = asyncio.get_running_loop().create_task(self._serve_connection(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _pause(self, reason: str) -> None:
        """Accept nobody for a moment: who is refused by the kernel stays readable, and would keep this loop busy."""
        log.error("cannot accept a process", extra={"reason": reason})
        listening = self._socket
        assert listening is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening.fileno())
        loop.call_later(limits.ACCEPT_RETRY_S, self._accept_again, listening)

    def _accept_again(self, listening: socket.socket) -> None:
        if self._socket is listening:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._accept)

    async def _serve_connection(self, sock: socket.socket) -> None:
        try:
            pid, uid, pid_fd = peer_of(sock)
        except (errors.PeerLostError, OSError) as error:
            log.info("a process left while connecting", extra={"reason": str(error)})
            sock.close()
            return
        identity = (pid, uid, pid_fd)
        if uid not in (os.getuid(), 0):
            log.warning("refused a process of another user", extra={"pid": pid, "uid": uid})
            sock.close()
            os.close(pid_fd)
            return
        connection = ControlConnection(
            FrameStream(sock),
            lambda c, op, fields: self._serve(c, identity, op, fields),
            f"process {pid}",
        )
        try:
            await connection.run()
        finally:
            os.close(pid_fd)
            port = self._port_of.pop(connection, None)
            if port is not None:
                port.disconnect(connection)

    # ---------------------------------------------------------------- requests
    async def _serve(
        self,
        connection: ControlConnection,
        identity: tuple[int, int, int],
        op: str,
        fields: dict[str, Any],
    ) -> Answer:
        if op == "hello":
            return self._hello(connection, identity, fields)
        if op == "resume":
            return self._resume(connection, identity, fields)
        port = self._port_of.get(connection)
        if port is None or not port.is_alive:
            raise errors.ClosedError(f"{op} before hello", op=op)
        if op == "declare":
            await self._registry.declare(await channel_from(fields))
            return {}
        if op == "open":
            return await self._open(port, fields)
        if op == "close":
            return await self._close(port, fields)
        if op == "route_ask":
            return dict(await self.route_ask(port, fields))
        if op == "schema":
            channels = self._registry.view.channels
            return dict(schema_answer(channels, fields["channel"], fields["type"]))
        if op == "shared_open":
            return self._shared.serve(port, fields)
        if op == "sender_accepted":
            accepted = await self.sender_accepted(int(fields["endpoint"]))
            return {"is_settled": accepted is not None, "accepted": accepted or 0}
        if op == "lane_broken":
            await self.lane_broken(port, fields)
            return {}
        if op in ("ready", "stopped"):
            self.reported(port, op)
            return {}
        if op == "bye":
            asyncio.get_running_loop().call_soon(
                self._until_quiet, port, time.monotonic() + limits.BYE_S
            )
            return {}
        return self._serve_segment(port, op, fields)

    def _until_quiet(self, port: Port, deadline_s: float) -> None:
        """End a port that said bye once its native thread has stopped: until then the process may still write."""
        if not port.is_alive:
            return
        if (
            time.monotonic() >= deadline_s
            or port.heartbeat_age_ns() > 3 * limits.HEARTBEAT_MS * 1_000_000
        ):
            self._ports.end(port)
        else:
            asyncio.get_running_loop().call_later(0.05, self._until_quiet, port, deadline_s)

    def _hello(
        self, connection: ControlConnection, identity: tuple[int, int, int], fields: dict[str, Any]
    ) -> Answer:
        pid, uid, pid_fd = identity
        self._check_version(fields)
        if self._context.number == 0:
            raise errors.BusyError(
                "this node has not joined its cluster yet; try again", node=self._context.name
            )
        if connection in self._port_of:
            raise errors.BusyError("this connection has said hello before")
        name = str(fields.get("name") or f"pid-{pid}")
        if len(name.encode()) > limits.NAME_BYTES_MAX:
            raise errors.CapacityError(
                f"the name has {len(name.encode())} bytes, NAME_BYTES_MAX is {limits.NAME_BYTES_MAX}",
                limit="NAME_BYTES_MAX",
            )
        kind, owner = "client", ""
        if fields.get("token"):
            found = self.owner_of(str(fields["token"]))
            if found is None:
                raise errors.ConfigError(
                    "the token is not of this daemon; module hosts are started by fabricd"
                )
            kind, owner = found
        port = self._ports.create(name, pid, uid, kind, owner, os.dup(pid_fd))
        self._port_of[connection] = port
        port.connect(connection)
        connection.name = name
        steps.at("attach.hello.kept")
        self.reported(port, "attached")
        log.info("attached", extra={"port": port.port, "port_name": name, "pid": pid})
        answer = {
            "port": port.port,
            "incarnation": port.incarnation,
            "node": self._context.name,
            "number": self._context.number,
            "heartbeat_ms": self._context.heartbeat_ms,
        }
        return answer, (port.state_fd, port.doorbell_fd, port.event_fd)

    def _resume(
        self, connection: ControlConnection, identity: tuple[int, int, int], fields: dict[str, Any]
    ) -> Answer:
        self._check_version(fields)
        port = self._ports.get(fields["port"])
        if (
            port is None
            or not port.is_alive
            or port.incarnation != fields["incarnation"]
            or port.pid != identity[0]
        ):
            raise errors.StaleHandleError(
                "this port is not known any more; attach anew", port=fields["port"]
            )
        self._port_of[connection] = port
        port.connect(connection)
        connection.name = port.name
        steps.at("attach.resumed")
        self._close_unknown(port, fields.get("endpoints"))
        self.reported(port, "resumed")
        log.info("resumed", extra={"port": port.port, "port_name": port.name, "pid": port.pid})
        return {}

    def _close_unknown(self, port: Port, known: list[int] | None) -> None:
        """Close what was opened for a process that never got the answer: nobody would ever read there."""
        for record in self._endpoints.of(port.port):
            if known is not None and record.endpoint not in known:
                log.info("endpoint unknown to its process", extra={"endpoint": record.endpoint})
                self.closed(record)

    async def _open(self, port: Port, fields: dict[str, Any]) -> Answer:
        # Between transforms other types may travel; what a stage accepts was checked when it was attached.
        is_inner = port.kind == "stage" and bool(fields.get("stage"))
        channel = await self._registry.settle(
            fields["channel"],
            "" if is_inner else fields.get("schema") or "",
            fields.get("reply_schema") or "",
            is_last=fields["role"] == "receiver" and port.kind != "stage",
            role=fields["role"],
        )
        if fields["role"] != "receiver":
            await self.room(port)
        if not port.is_alive:
            raise errors.ClosedError("the port is closed")
        steps.at("attach.open.settled")
        record = self._endpoints.add(port, channel, fields)
        # The answer leaves first: the process must know its endpoint before flows for it arrive.
        asyncio.get_running_loop().call_soon(self.opened, record)
        return open_answer(record, channel)

    async def _close(self, port: Port, fields: dict[str, Any]) -> Answer:
        record = self._endpoints.get(fields["endpoint"])
        if record is None:
            return {}
        if record.port != port.port:
            raise errors.StaleHandleError("this endpoint is not yours", endpoint=fields["endpoint"])
        self.closed(record)
        return {}

    def _serve_segment(self, port: Port, op: str, fields: dict[str, Any]) -> Answer:
        if op == "segment_new":
            made = self._segments.create(
                port, fields["slot_bytes"], fields["slot_count"], int(fields.get("group") or 0)
            )
            return {"segment": made.segment, "keep_bytes": self._segments.keep_bytes}, (made.fd,)
        if op == "segment_seal":
            # A lease that others may write stays unsealed; its head and locks say who may, now.
            publish = self._segments.publish if fields.get("writable") else self._segments.seal
            publish(port, fields["segment"])
            return {}
        if op == "segment_get":
            segment = self._segments.readable(port.tenant, fields["segment"])
            fd = self._segments.open_readable(segment)
            asyncio.get_running_loop().call_soon(
                os.close, fd
            )  # the answer, sent before, has its own
            return {}, (fd,)
        if op == "segment_drop":
            self._segments.drop(port, fields["segment"])
            return {}
        raise errors.PeerProtocolError(f"unknown request {op!r}", op=op)

    @staticmethod
    def _check_version(fields: dict[str, Any]) -> None:
        if fields.get("v") != PROTOCOL_VERSION:
            raise errors.PeerProtocolError(
                f"attach protocol {fields.get('v')!r}, this daemon speaks {PROTOCOL_VERSION}: install the same version"
            )
