"""A control plane in one process: attach, declare, open, lanes and flows, without daemon or keeper.

`LocalFabric` speaks the attach protocol on a unix socket, so ports of this process and of others attach to it as to a
daemon. It has no registry, supervisor, audit or second node; a lost process is noticed by its connection. It is the
reference against which the client is tested; `restart` drops every connection as a restarting daemon does.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from fabric import _native, errors, limits
from fabric.dataplane.framing import FrameSocket, close_fds
from fabric.messages import Schema, require_compatible
from fabric.registry.declare import unknown_channel
from fabric.testing.local_wiring import (
    LocalChannel,
    LocalEndpoint,
    LocalFlow,
    LocalPort,
    LocalWiring,
)

log = logging.getLogger("fabric.testing")


class LocalFabric(LocalWiring):
    """A node without a daemon; use with ``with``.

    Attributes
    ----------
    path : str
        Socket to give to `fabric.attach`.
    routes : dict
        Channel name → ``decide(fields, flows) -> (flow, ttl_s)``, the answer to `route_ask`.
    arena_bytes : int
        What all segments together may take.
    ports, channels, endpoints, flows, segments : dict
        What exists, for tests to look at.
    """

    def __init__(self, node: int = 1) -> None:
        self._node = node
        self._folder = tempfile.mkdtemp(prefix="fab-", dir="/tmp")
        self.path = os.path.join(self._folder, "a.sock")
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._wiring = threading.Lock()
        self.ports: dict[int, LocalPort] = {}
        self.channels: dict[str, LocalChannel] = {}
        self.endpoints: dict[int, LocalEndpoint] = {}
        self.flows: dict[int, LocalFlow] = {}
        self.lanes: dict[
            tuple[int, int, int], tuple[int, int]
        ] = {}  # (low, high, class) → (lane, fd)
        self.segments: dict[int, int] = {}  # segment → fd
        self.arena_bytes = limits.ARENA_BYTES_PER_TENANT_MAX
        self.routes: dict[str, Callable[[dict[str, Any], list[int]], tuple[int, float]]] = {}
        self.is_ready: set[str] = set()
        self.asked: list[str] = []
        self._is_closed = False
        self._server: socket.socket | None = None
        self.listen()

    # ---- life

    def listen(self) -> None:
        """Begin to accept."""
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        server.bind(self.path)
        server.listen(64)
        self._server = server
        threading.Thread(
            target=self._accept, args=(server,), name="local-accept", daemon=True
        ).start()

    def stop_listening(self) -> None:
        """Drop the socket and every connection, keeping all state: the daemon is away."""
        server, self._server = self._server, None
        if server is not None:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
        for port in list(self.ports.values()):
            if port.frames is not None:
                port.frames.shutdown()

    def restart(self) -> None:
        """Be away for a moment, as a daemon that the keeper starts again."""
        self.stop_listening()
        self.listen()

    def close(self) -> None:
        """End everything; attached ports lose their connection. Idempotent."""
        self._is_closed = True
        self.stop_listening()
        for port in list(self.ports.values()):
            for done, answers in list(port.pushes.values()):
                answers.append({"error": errors.ClosedError("this local fabric closes").to_wire()})
                done.set()
        with self._wiring, self._lock:  # what is being wired still uses lanes and descriptors
            for port in self.ports.values():
                port.is_alive = False
                self._close_fds(port)
            close_fds([fd for _, fd in self.lanes.values()])
            close_fds(self.segments.values())
            self.ports.clear()
            self.lanes.clear()
            self.segments.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> LocalFabric:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lose(self, name: str, handed_upto: int | None = None) -> None:
        """Treat the port called `name` as dead: its peers lose its flows.

        `handed_upto` overrides what its state segment says was handed over.
        """
        port = next(p for p in self.ports.values() if p.name == name)
        self._forget_port(port, handed_upto)

    def push_to(self, name: str, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Push to the port called `name` and return its answer."""
        port = next(p for p in self.ports.values() if p.name == name)
        return self._push(port, op, fields)

    # ---- connections

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            threading.Thread(
                target=self._serve, args=(FrameSocket(sock),), name="local-serve", daemon=True
            ).start()

    def _serve(self, frames: FrameSocket) -> None:
        port: LocalPort | None = None
        try:
            fields, _ = frames.receive(limits.ATTACH_S)
            port = self._hello(frames, fields)
            while port is not None and not self._is_closed:
                try:
                    fields, _ = frames.receive(limits.DEFAULT_DEADLINE_S)
                except errors.DeadlineExceeded:
                    continue
                self._take(port, frames, fields)
        except errors.FabricError as error:
            log.debug("connection ended: %s", error)
        finally:
            frames.close()
            if port is not None and port.frames is frames:
                port.frames = None

    def _hello(self, frames: FrameSocket, fields: dict[str, Any]) -> LocalPort | None:
        if fields["op"] == "resume":
            port = self.ports.get(fields["port"])
            if port is None or not port.is_alive or port.incarnation != fields["incarnation"]:
                stale = errors.StaleHandleError("this node does not know that port; attach anew")
                frames.send({"re": fields["id"], "error": stale.to_wire()})
                return None
            port.frames = frames
            frames.send({"re": fields["id"]})
            for endpoint in [e for e in self.endpoints.values() if e.port is port]:
                if endpoint.endpoint not in fields["endpoints"]:
                    self._ask_close(port, {"endpoint": endpoint.endpoint}, [])
            return port
        with self._lock:
            number, incarnation = self._number(), time.time_ns()
            state = _native.create_state(number, incarnation, os.getuid())
            fds = [
                state,
                _native.create_doorbell(),
                os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
            ]
            port = LocalPort(number, incarnation, fields["name"], fds, frames)
            self.ports[number] = port
        answer = {"port": number, "incarnation": incarnation, "node": "local", "number": self._node}
        frames.send({"re": fields["id"], **answer, "heartbeat_ms": limits.HEARTBEAT_MS}, fds)
        return port

    def _take(self, port: LocalPort, frames: FrameSocket, fields: dict[str, Any]) -> None:
        if "done" in fields:
            waiting = port.pushes.get(fields["done"])
            if waiting is not None:
                waiting[1].append(fields)
                waiting[0].set()
            return
        op = fields["op"]
        self.asked.append(op)
        fds: list[int] = []
        try:
            answer = getattr(self, f"_ask_{op}")(port, fields, fds)
        except errors.FabricError as error:
            answer = {"error": error.to_wire()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            wrong = errors.PeerProtocolError(
                f"{op}: a field is missing or of the wrong kind ({error!r})"
            )
            answer = {"error": wrong.to_wire()}
        frames.send({"re": fields["id"], **(answer or {})}, fds)
        if op == "open":
            endpoint = self.endpoints[answer["endpoint"]] if "endpoint" in answer else None
            if endpoint is not None:
                threading.Thread(
                    target=self._wire, args=(endpoint,), name="local-wire", daemon=True
                ).start()

    def _push(
        self, port: LocalPort, op: str, fields: dict[str, Any], fds: Sequence[int] = ()
    ) -> dict[str, Any]:
        number = next(self._numbers)
        done = threading.Event()
        answers: list[dict[str, Any]] = []
        port.pushes[number] = (done, answers)
        try:
            if self._is_closed:  # set before `close` looks at `pushes`, read after we are in there
                raise errors.ClosedError("this local fabric was closed")
            frames = port.frames
            if frames is None:
                raise errors.PeerLostError(f"{port.name} has no connection")
            frames.send({"op": op, "push": number, **fields}, fds)
            if not done.wait(limits.PUSH_S):
                raise errors.DeadlineExceeded(
                    f"{port.name} did not do {op} within {limits.PUSH_S:g} s", op=op
                )
        finally:
            del port.pushes[number]
        if "error" in answers[0]:
            raise errors.from_wire(answers[0]["error"])
        return answers[0]

    def _number(self) -> int:
        return self._node << 32 | next(self._numbers)

    # ---- requests

    def _ask_declare(
        self, port: LocalPort, fields: dict[str, Any], fds: list[int]
    ) -> dict[str, Any]:
        asked = {k: v for k, v in fields.items() if k not in ("op", "id", "channel")}
        Schema.parse(asked["schema"])
        with self._lock:
            known = self.channels.get(fields["channel"])
            if known is None:
                self.channels[fields["channel"]] = LocalChannel(
                    fields["channel"], len(self.channels) + 1, asked
                )
                return {}
        self._same_type(known, asked)
        for key, value in asked.items():
            if known.fields.get(key) != value:
                raise errors.ConfigError(
                    f"channel {known.name!r} is declared with {key} {known.fields.get(key)!r}"
                )
        return {}

    def _same_type(self, channel: LocalChannel, fields: dict[str, Any]) -> None:
        for key in ("schema", "reply_schema"):
            if fields.get(key):
                require_compatible(
                    channel.name, Schema.parse(channel.fields[key]), Schema.parse(fields[key])
                )

    def _ask_open(self, port: LocalPort, fields: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        channel = self.channels.get(fields["channel"])
        if channel is None:
            raise unknown_channel(fields["channel"], self.channels)
        declared = channel.fields
        is_request = declared["pattern"] in ("request", "scatter")
        if is_request != (fields["role"] in ("requester", "responder")):
            raise errors.ConfigError(f"channel {channel.name!r} has pattern {declared['pattern']}")
        self._same_type(channel, fields)
        endpoint = LocalEndpoint(
            self._number(), fields["role"], channel, port, self._number() if is_request else 0,
            fields.get("messages", limits.CREDIT_MESSAGES), fields.get("bytes", limits.CREDIT_BYTES),
        )  # fmt: skip
        with self._lock:
            self.endpoints[endpoint.endpoint] = endpoint
            for key in ("schema", "reply_schema"):
                if fields.get(key):
                    channel.schemas[Schema.parse(fields[key]).type_id] = fields[key]
        answer = {
            "endpoint": endpoint.endpoint, "channel": channel.number, "type": Schema.parse(declared["schema"]).type_id,
            "pattern": declared["pattern"], "delivery": declared["delivery"], "klass": declared["klass"],
            "route": declared.get("route"), "schema": declared["schema"], "overflow": declared["overflow"],
        }  # fmt: skip
        return {**answer, "reply_endpoint": endpoint.reply} if is_request else answer

    def _ask_schema(
        self, port: LocalPort, fields: dict[str, Any], fds: list[int]
    ) -> dict[str, Any]:
        return {"schema": self.channels[fields["channel"]].schemas[fields["type"]]}

    def _ask_close(self, port: LocalPort, fields: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        endpoint = self.endpoints.pop(fields["endpoint"], None)
        if endpoint is not None:
            threading.Thread(target=self._settle_closed, args=(endpoint,), daemon=True).start()
        return {}

    def _ask_segment_new(
        self, port: LocalPort, fields: dict[str, Any], fds: list[int]
    ) -> dict[str, Any]:
        self._check_quota(fields["slot_bytes"], fields["slot_count"])
        segment = next(self._numbers)
        fd = _native.create_segment(
            segment,
            port.port,
            port.incarnation,
            os.getuid(),
            fields["slot_bytes"],
            fields["slot_count"],
        )
        self.segments[segment] = fd
        fds.append(fd)
        return {"segment": segment}

    def _check_quota(self, slot_bytes: int, slot_count: int) -> None:
        used = sum(os.fstat(fd).st_size for fd in list(self.segments.values()))
        if used + slot_bytes * slot_count > self.arena_bytes:
            raise errors.CapacityError(
                f"a slot of {slot_bytes} bytes: {used} of {self.arena_bytes} bytes of arenas are in use",
                limit="ARENA_BYTES_PER_TENANT_MAX", size_bytes=slot_bytes, limit_bytes=self.arena_bytes,
            )  # fmt: skip

    def _ask_segment_seal(
        self, port: LocalPort, fields: dict[str, Any], fds: list[int]
    ) -> dict[str, Any]:
        if not fields.get("writable"):
            _native.seal_segment(self._segment(fields))
        return {}

    def _ask_segment_get(
        self, port: LocalPort, fields: dict[str, Any], fds: list[int]
    ) -> dict[str, Any]:
        fds.append(self._segment(fields))
        return {}

    def _ask_segment_drop(
        self, port: LocalPort, fields: dict[str, Any], fds: list[int]
    ) -> dict[str, Any]:
        close_fds([self.segments.pop(fields["segment"])])
        return {}

    def _segment(self, fields: dict[str, Any]) -> int:
        found = self.segments.get(fields["segment"])
        if found is None:
            raise errors.StaleHandleError(f"segment {fields['segment']} no longer exists")
        return found

    def _ask_route_ask(
        self, port: LocalPort, fields: dict[str, Any], fds: list[int]
    ) -> dict[str, Any]:
        flows = [
            f.flow
            for f in list(self.flows.values())
            if f.source.port is port and f.source.channel.name == fields["channel"]
        ]
        flow, ttl_s = self.routes[fields["channel"]](fields, flows)
        return {"flow": flow, "ttl_s": ttl_s}

    def _ask_ready(self, port: LocalPort, fields: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self.is_ready.add(port.name)
        return {}

    def _ask_stopped(
        self, port: LocalPort, fields: dict[str, Any], fds: list[int]
    ) -> dict[str, Any]:
        self.is_ready.discard(port.name)
        return {}

    def _ask_bye(self, port: LocalPort, fields: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        threading.Thread(
            target=self._forget_port, args=(port,), name="local-bye", daemon=True
        ).start()
        return {}
