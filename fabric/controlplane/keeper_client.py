"""The daemon's side of the keeper: load what outlived the last daemon, keep more, spawn, be told of exits.

`load` blocks (start-up only, bounded); everything else belongs to the event loop. Writes block at most
`SEND_S`: the keeper always reads, and a `put` must be durable when it returns.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from fabric.controlplane.keeper_wire import FD_LOST, pack, receive_packet, send_packet
from fabric.errors import BrokenError, CapacityError, ConfigError, DeadlineExceeded

SEND_S = 8.0  #: a keeper that was stopped for a while is waited for
LOAD_S = 10.0
SPAWN_S = 10.0


@dataclass
class Loaded:
    """What the keeper handed back: entries by key, running children (tag to pid), exits not yet seen."""

    items: dict[str, tuple[dict[str, Any], int]] = field(default_factory=dict)
    children: dict[str, int] = field(default_factory=dict)
    exits: list[dict[str, Any]] = field(default_factory=list)


class KeeperLink:
    """One per daemon. `on_exit(tag, pid, code)`, `on_stop()`, `on_lost()`, `on_not_kept(key, limit)`: from the loop."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        os.set_inheritable(fd, False)
        self._spawning: dict[str, asyncio.Future[int]] = {}
        self.on_exit: Callable[[str, int, int], None] = lambda tag, pid, code: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_stop: Callable[[], None] = lambda: None
        self.on_not_kept: Callable[[str, str], None] = lambda key, limit: None
        self._is_stopped = False  # asked to, before anybody listened

    def load(self) -> Loaded:
        """Ask for everything the keeper holds; raises `DeadlineExceeded` when it does not answer."""
        self._socket.settimeout(LOAD_S)
        self._send({"op": "load"})
        found = Loaded()
        deadline = time.monotonic() + LOAD_S
        while time.monotonic() < deadline:
            try:
                packet = receive_packet(self._socket)
            except TimeoutError as error:
                raise DeadlineExceeded(
                    "waited for the keeper to hand back what it holds"
                ) from error
            if packet is None:
                raise BrokenError("the keeper is gone")
            head, value, fd = packet
            if fd == FD_LOST:
                raise CapacityError(
                    f"no descriptor is free for {head['key']}, which the keeper hands back: raise RLIMIT_NOFILE",
                    limit="RLIMIT_NOFILE",
                )
            if head["op"] == "loaded":
                return found
            if head["op"] == "item":
                found.items[head["key"]] = (msgspec.msgpack.decode(value) if value else {}, fd)
            elif head["op"] == "child":
                found.children[head["tag"]] = head["pid"]
            elif head["op"] == "stop":
                self._is_stopped = True
            elif head["op"] == "exited":
                found.exits.append(head)
                self._send({"op": "seen", "pid": head["pid"]})
        raise DeadlineExceeded(f"the keeper did not finish handing back within {LOAD_S:g} s")

    def start(self) -> None:
        """Begin to receive events on the running loop."""
        send_timeout = struct.pack("ll", int(SEND_S), 0)
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, send_timeout)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket.fileno(), self._readable)
        if self._is_stopped:
            loop.call_soon(self.on_stop)

    def put(self, key: str, value: dict[str, Any], fd: int = -1) -> None:
        """Keep `value` (and a reference to `fd`) under `key` until dropped."""
        self._send({"op": "put", "key": key}, msgspec.msgpack.encode(value), fd)

    def drop(self, key: str) -> None:
        """Forget `key`; with a trailing slash, everything below it."""
        self._send({"op": "drop", "key": key})

    async def spawn(
        self, tag: str, argv: list[str], env: dict[str, str], log: str, cwd: str = ""
    ) -> int:
        """Start a process under the keeper and return its pid; `ConfigError` when it cannot start."""
        if tag in self._spawning:
            raise ConfigError(f"{tag} is already being started")
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._spawning[tag] = answer
        try:
            self._send(
                {"op": "spawn", "tag": tag, "argv": argv, "env": env, "log": log, "cwd": cwd}
            )
            return await asyncio.wait_for(answer, SPAWN_S)
        finally:
            self._spawning.pop(tag, None)

    def kill(self, tag: str, number: int) -> None:
        """Signal the process group of `tag`; unknown tags are ignored."""
        self._send({"op": "kill", "tag": tag, "signal": int(number)})

    def alive(self) -> None:
        """Give a sign: without one for `limits.LEASE_MS` the keeper takes this daemon for hanging.

        Never waits: a keeper that does not read is the one that hangs.
        """
        try:
            self._socket.send(pack({"op": "alive"}), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return

    def ready(self) -> None:
        """Say that this daemon serves."""
        self._send({"op": "ready"})

    def stop(self) -> None:
        """Ask for an orderly end of the whole node."""
        self._send({"op": "stop"})

    def close(self) -> None:
        """Stop receiving. Idempotent."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()

    def _send(self, head: dict[str, Any], value: bytes = b"", fd: int = -1) -> None:
        try:
            send_packet(self._socket, pack(head, value), fd)
        except OSError as error:
            raise BrokenError(f"the keeper does not take a {head['op']}: {error}") from error

    def _readable(self) -> None:
        try:
            packet = receive_packet(self._socket)
        except BlockingIOError:
            return
        except OSError:
            packet = None
        if packet is None:
            self.close()
            self.on_lost()
            return
        head, _, fd = packet
        if fd >= 0:
            os.close(fd)
        if head["op"] == "stop":
            self.on_stop()
        elif head["op"] == "not_kept":
            self.on_not_kept(head["key"], head["limit"])
        elif head["op"] == "spawned":
            answer = self._spawning.get(head["tag"])
            if answer is not None and not answer.done():
                if head["pid"]:
                    answer.set_result(head["pid"])
                else:
                    answer.set_exception(
                        ConfigError(f"cannot start {head['tag']}: {head.get('error')}")
                    )
        elif head["op"] == "exited":
            self.on_exit(head["tag"], head["pid"], head["code"])
            self._send({"op": "seen", "pid": head["pid"]})
