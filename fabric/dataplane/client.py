"""Attach a process to its node: `attach()` and the `Port` it gives.

A port owns its control thread (see `connection`) and the native port with its service thread. Everything public is
thread-safe. A process may hold several ports; a fork loses them (the child's calls raise `ClosedError`).
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from fabric import errors, limits
from fabric.dataplane.cache import Cache, open_cache
from fabric.dataplane.channels import ChannelCalls
from fabric.dataplane.connection import ControlConnection
from fabric.dataplane.framing import close_fds
from fabric.dataplane.leases import Leases
from fabric.dataplane.pushes import Handler, Pushes
from fabric.dataplane.segments import Segments
from fabric.messages.lease import Lease

log = logging.getLogger("fabric.port")
M = TypeVar("M")
R = TypeVar("R")
E = TypeVar("E")
WAITS: Final = ("adaptive", "poll", "sleep")  # port.hpp WaitPolicy


def default_socket() -> str:
    """Return the attach socket: ``FABRIC_SOCKET``, else the user's runtime directory."""
    named = os.environ.get("FABRIC_SOCKET")
    if named:
        return named
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = os.path.join(runtime, "fabricd") if runtime else f"/tmp/fabricd-{os.getuid()}"
    return os.path.join(folder, "a.sock")


def wait_policy(given: str | None) -> str:
    """Return how threads of a port wait: `given`, else ``FABRIC_WAIT``, else ``adaptive``.

    Raises
    ------
    ConfigError
        It is none of `WAITS`.
    """
    named = os.environ.get("FABRIC_WAIT") or WAITS[0] if given is None else given
    if named not in WAITS:
        place = "FABRIC_WAIT" if given is None else "wait"
        raise errors.ConfigError(
            f"{place}={named!r:.100}: give one of {', '.join(WAITS)}", value=str(named)[:200]
        )
    return named


def attach(
    name: str,
    socket: str | os.PathLike[str] | None = None,
    *,
    token: str | None = None,
    wait: str | None = None,
) -> Port:
    """Attach this process to its node.

    Parameters
    ----------
    name : str
        Shown in listings; at most 128 bytes.
    socket : path, optional
        The daemon's unix socket; default ``FABRIC_SOCKET`` or ``$XDG_RUNTIME_DIR/fabricd/a.sock``.
    token : str, optional
        Given to modules by the supervisor; default ``FABRIC_MODULE_TOKEN``.
    wait : {"adaptive", "poll", "sleep"}, optional
        How a thread waits in a call: ``adaptive`` spins for microseconds where that paid lately, then sleeps; ``poll``
        spins as long as the call may wait (a whole core for the lowest latency), offering the core to others;
        ``sleep`` never spins. Default ``FABRIC_WAIT``, else ``adaptive``. The asyncio face waits in its loop.

    Returns
    -------
    Port
        Use with ``with``: leaving detaches.

    Raises
    ------
    BrokenError
        No daemon there (the message says how to start one), or it went away.
    ConfigError, CapacityError, DeadlineExceeded
        It refused, or did not answer within 10 s.
    """
    if not isinstance(name, str) or not 0 < len(name.encode()) <= limits.NAME_BYTES_MAX:
        raise errors.ConfigError(
            f"port name {name!r}: give 1 to {limits.NAME_BYTES_MAX} bytes", value=str(name)[:200]
        )
    path = os.fspath(socket) if socket is not None else default_socket()
    return Port(name, path, token or os.environ.get("FABRIC_MODULE_TOKEN"), wait_policy(wait))


class Port(ChannelCalls):
    """The attachment of this process: lanes, arena, endpoints. Made by `attach`.

    Attributes
    ----------
    name : str
    number, incarnation : int
        Identity in the cluster.
    node : str
        Name of the node.
    wait : str
        How its threads wait; see `attach`.
    native
        The native port.
    """

    def __init__(self, name: str, path: str, token: str | None, wait: str = "adaptive") -> None:
        from fabric import _native

        self._module = _native
        self.need_segment: type[Exception] = _native.NeedSegment
        self.name = name
        self.wait = wait
        self.is_closed = False
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._broken: Exception | None = None
        self._broken_lanes: set[int] = set()
        self._endpoints: dict[int, Any] = {}
        self.connection = ControlConnection(path, self._take_push, self._on_tick, self._on_broken)
        hello = {"v": 1, "name": name, "pid": os.getpid(), "python": platform.python_version()}
        answer, fds = self.connection.hello({**hello, "token": token} if token else hello)
        try:
            self.number, self.incarnation = int(answer["port"]), int(answer["incarnation"])
            self.node = str(answer.get("node", ""))
            self.native: Any = _native.Port(self.number, self.incarnation, *fds)
            self.native.set_wait(WAITS.index(wait))
        finally:
            close_fds(fds)
        self.segments = Segments(self.native, self.connection)
        self.leases = Leases(self)
        self._cache: Cache | None = None
        self._pushes = Pushes(name, self.native, self.connection, self._tell)
        self.on_push("codec_bench", self._bench_codecs)
        self.connection.start()

    # ---- memory of one's own that others read

    def expose(self, array: Any, writable: bool = False) -> Lease:
        """Let other ports read (and write) an array without being asked each time.

        Parameters
        ----------
        array : array-like
            Copied once into a segment of its own; `lease.array` is that memory.
        writable : bool
            Whether others may `put`.

        Returns
        -------
        Lease
            A value to send in messages (a field of type ``fabric.Lease``). It ends at ``lease.revoke()`` (or the end of
            its ``with``), when this port closes, and at the death of this process.

        Raises
        ------
        TypeMismatchError
            No array, or a dtype that does not travel.
        CapacityError
            `limits.LEASES_PER_PORT_MAX` leases, or more memory than there is.

        Notes
        -----
        What you write into `lease.array` while others read may be seen half written; a `put` is not.
        """
        return self.leases.expose(array, writable)

    def get(
        self, lease: Lease, ranges: Any = None, into: Any = None, deadline: float | None = None
    ) -> Any:
        """Read exposed memory, of this node without its owner's doing.

        Parameters
        ----------
        lease : Lease
        ranges : sequence of (offset, length), optional
            In bytes, at most `limits.LEASE_RANGES_MAX`; default: all of it.
        into : array, optional
            Writable contiguous memory of exactly the bytes asked for.
        deadline : float, optional
            Seconds (default 30).

        Returns
        -------
        array
            `into`; or a new array: of the lease's dtype and shape, or with `ranges` of bytes, one range after another.

        Raises
        ------
        StaleHandleError
            The lease was revoked, or its owner closed or died; `into` holds no valid data.
        TypeMismatchError
            A range is not inside, or `into` has another size.
        BrokenError
            A `put` died half way; its range must be put again.
        CapacityError, DeadlineExceeded, PeerProtocolError
        """
        return self.leases.get(lease, ranges, into, deadline)

    def put(self, lease: Lease, ranges: Any, data: Any, deadline: float | None = None) -> None:
        """Write into exposed memory.

        When it returns, the bytes are in the owner's memory and every later `get` sees them. No `get` sees half of a
        put on one node; puts and gets of one lease exclude each other. A put from another node of more than
        `limits.LEASE_PART_BYTES` goes part by part. A put that fails or dies may have written any part of its ranges.

        Parameters
        ----------
        ranges : sequence of (offset, length) or None
            In bytes; None: all of it.
        data : contiguous array
            As many bytes as the ranges have together.

        Raises
        ------
        ConfigError
            The lease is read-only.
        StaleHandleError, TypeMismatchError, CapacityError, DeadlineExceeded
        """
        self.leases.put(lease, ranges, data, deadline)

    @property
    def cache(self) -> Cache:
        """The node's cache of encoder outputs, shared by all processes of this user; see `fabric.dataplane.cache`.

        Raises
        ------
        CapacityError
            The node has no room for it.
        """
        with self._lock:
            if self._cache is None:
                self._cache = open_cache(self)
            return self._cache

    # ---- life

    def ready(self) -> None:
        """Tell the supervisor that this module is ready."""
        self.request("ready", {})

    def stopped(self) -> None:
        """Tell the supervisor that this module has drained and leaves."""
        self.request("stopped", {})

    def on_stop(self, handler: Callable[[float], Any]) -> None:
        """Call ``handler(grace_s)`` on a thread of its own when the node asks this process to leave."""
        self.on_push(
            "stop", lambda fields: handler(float(fields.get("grace_s", limits.MODULE_STOP_GRACE_S)))
        )

    def on_push(self, op: str, handler: Handler) -> None:
        """Answer pushes called `op` with ``handler(fields) -> dict or None``, on a thread of its own each.

        What it raises is answered as an error. A stop that came before its handler is delivered now.
        """
        self._pushes.register(op, handler)

    def stats(self) -> dict[str, Any]:
        """Return the native port's counters and the control connection's."""
        return {
            **self.native.stats(),
            "reconnects": self.connection.reconnect_count,
            "connected": self.connection.is_connected,
        }

    def close(self) -> None:
        """Detach: endpoints close, what is queued ends as failed(closed). Idempotent; takes at most about 2 s."""
        if os.getpid() != self._pid:  # a fork's copy: socket, endpoints and locks are the parent's
            self.is_closed = True
            return
        if not self.is_closed:
            self.leases.close()
        with self._lock:
            if self.is_closed:
                return
            self.is_closed = True
            endpoints = list(self._endpoints.values())
        for endpoint in endpoints:
            try:
                endpoint.close()
            except errors.FabricError as error:
                log.debug("closing an endpoint of %s: %s", self.name, error)
        if self._cache is not None:
            self._cache.close()
        self.connection.close()
        self.native.close()

    def __enter__(self) -> Port:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<fabric.Port {self.name!r} {self.number:#x} on {self.node}{' closed' if self.is_closed else ''}>"

    # ---- for endpoints

    def request(
        self, op: str, fields: dict[str, Any], timeout_s: float = limits.CONTROL_CALL_S
    ) -> tuple[dict[str, Any], list[int]]:
        """Ask the daemon; see `ControlConnection.request`."""
        self.check()
        return self.connection.request(op, fields, timeout_s)

    def check(self) -> None:
        """Raise what ended this port, if it has ended."""
        if self._broken is not None:
            raise self._broken
        if self.is_closed:
            raise errors.ClosedError(f"port {self.name!r} was closed")
        if os.getpid() != self._pid:
            raise errors.ClosedError(
                f"port {self.name!r} belongs to process {self._pid}, which forked this one; attach anew here"
            )

    def provide(self, need: Exception, deadline_ns: int = 0) -> None:
        """Do what a native `NeedSegment` asks for; see `Segments.provide`."""
        self.segments.provide(need, deadline_ns)

    def flows_of(self, endpoint: int) -> list[dict[str, Any]]:
        """Return the open flows of a sending endpoint, as the daemon pushed them."""
        return self._pushes.flows_of(endpoint)

    def flow_in(self, flow: int) -> dict[str, Any]:
        """Return credit and reply flow of an incoming flow; empty when it is closed."""
        return self._pushes.flow_in(flow)

    def closed_endpoint(self, endpoint: int) -> None:
        """Tell the daemon that an endpoint was closed (unless the whole port is closing)."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            known = self._endpoints.pop(endpoint, None)
        self._pushes.forget_endpoint(endpoint)
        if known is not None and not self.is_closed and self._broken is None:
            self.connection.post("close", {"endpoint": endpoint})

    # ---- control thread

    def _take_push(self, op: str, fields: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        return self._pushes.take(op, fields, fds)

    def _tell(self, endpoint: int | None, call: str, *args: Any) -> None:
        """Call a method of one endpoint (None: of all) where it has it."""
        with self._lock:
            known = self._endpoints
            found = (
                list(known.values())
                if endpoint is None
                else [known[endpoint]]
                if endpoint in known
                else []
            )
        for each in found:
            if hasattr(each, call):
                getattr(each, call)(*args)

    def _bench_codecs(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Measure codecs on copies of what one sender sends."""
        from fabric.dataplane.coding.measure import measure

        with self._lock:
            sender = self._endpoints.get(fields["endpoint"])
        if sender is None or not hasattr(sender, "set_sample"):
            return {"rows": []}
        return {"rows": measure(sender, fields["codecs"], float(fields["seconds"]))}

    def _on_tick(self) -> None:
        self.segments.give_back_idle()
        self.leases.tick()
        self._report_broken_lanes()

    def _report_broken_lanes(self) -> None:
        """Tell the daemon, once each: nobody died, so only it can end what is under way on such a lane."""
        for lane, reason in self.native.broken_lanes():
            if lane not in self._broken_lanes:
                self._broken_lanes.add(lane)
                self.connection.post("lane_broken", {"lane": lane, "reason": reason})

    def _on_broken(self, error: Exception) -> None:
        """The daemon is gone for good, or no longer knows this port: nothing more can be promised."""
        log.error("port %s: %s", self.name, error)
        self._broken = error
        self.native.close()
        self.leases.revoke_all()
        self._tell(None, "wake")
