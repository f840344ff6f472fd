"""The keeper: parent of daemon and modules, and the memory that outlives a daemon.

Standard library and limits only, one thread. It owns the listening sockets, a store
`key -> (value, descriptor)`, and every child. It starts the daemon, starts it again after a crash (and
kills it when it gave no sign for LEASE_MS) and hands everything back; it decides nothing about channels. SIGTERM
ends the node in order. Packets: keeper_wire.py.
"""

from __future__ import annotations

import collections
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from fabric import limits, steps
from fabric.controlplane import children
from fabric.controlplane.keeper_wire import FD_LOST, Packet, pack, receive_packet, send_packet

WATCH_S = (
    1.5  #: the longest turn while a daemon is watched, above the time between two of its signs
)
OWN_PAUSE_S = 0.5  #: a turn that comes this much late means that the keeper itself stood still
BACKOFF_S = (0.1, 2.0)  #: first and longest wait before the daemon is started again
STEADY_S = 10.0  #: a daemon that served this long starts with the first back-off again
SIGN_S = (
    1.0  #: a daemon gives its sign this often; its silence counts from the first that is missing
)
ABSENT_S = 10.0  #: modules are ended when no daemon was there this long
START_S = 60.0  #: a started daemon that serves later than this is killed
RESTART = 75  #: exit status of a daemon that asks to be started again
ASKED = (-signal.SIGTERM, -signal.SIGINT)  #: the same, of one that could not answer yet
STOP_S = 15.0  #: an orderly stop of the daemon may take this long, then it is killed
MODULE_STOP_S = 2.0  #: SIGTERM to SIGKILL for what the daemon left
REFUSED = 78  #: exit status of a daemon that must not be started again
ITEMS_MAX = 65536


@dataclass
class KeeperOptions:
    """What the keeper needs; `daemon_argv` gets `--keeper-fd N` appended."""

    daemon_argv: list[str]
    env: dict[str, str]
    unlink: list[str] = field(default_factory=list)  #: paths removed at the end
    items: dict[str, tuple[bytes, int]] = field(
        default_factory=dict
    )  #: first entries (listening sockets)


class Keeper:
    """One loop over signals, the daemon's socket and children's output. `run` returns the exit status."""

    def __init__(self, options: KeeperOptions) -> None:
        self._options = options
        self._items = dict(options.items)
        self._children: dict[int, children.Child] = {}
        self._exits: dict[int, dict[str, Any]] = {}
        self._selector = selectors.DefaultSelector()
        self._daemon_pid = 0
        self._socket: socket.socket | None = None
        self._out: collections.deque[tuple[bytes, int]] = collections.deque()
        self._backoff_s = BACKOFF_S[0]
        self._served = False
        self._loaded = False
        self._wake = -1
        self._ready_at = 0.0
        self._start_at: float | None = None
        self._absent_since: float | None = None
        self._stopping = False
        self._kill_at: float | None = None
        self._sign_until = 0.0  # the daemon is killed when it gives no sign until then
        self._turned_at = 0.0
        self._status = 0

    def run(self) -> int:
        """Serve until stopped; leaves no child, socket or path behind."""
        self._wake = self._catch_signals()
        children.become_subreaper()
        self._start_daemon()
        try:
            while self._daemon_pid or self._start_at is not None:
                self._turn(self._timeout_s())
                self._on_time(time.monotonic())
        finally:
            self._close_socket()
            self._end_children()
            for path in self._options.unlink:
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    continue
        return self._status

    def _turn(self, timeout_s: float | None) -> None:
        for key, _ in self._selector.select(timeout_s):
            if key.fd == self._wake:
                self._on_signals(os.read(self._wake, 4096))
            else:
                key.data()

    # ---------------------------------------------------------------- signals and time
    def _catch_signals(self) -> int:
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._selector.register(read, selectors.EVENT_READ)
        return read

    def _on_signals(self, numbers: bytes) -> None:
        if signal.SIGCHLD in numbers:
            self._reap()
        if {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} & set(numbers):
            self._stop()

    def _stop(self) -> None:
        """Ask the daemon for an orderly end; once is enough."""
        if self._stopping:
            return
        self._stopping = True
        self._start_at = None
        self._kill_at = time.monotonic() + STOP_S
        self._send({"op": "stop"})  # a signal asks for a restart; only the keeper ends the node

    def _timeout_s(self) -> float | None:
        times = [t for t in (self._start_at, self._kill_at) if t is not None]
        if self._absent_since is not None:
            times.append(self._absent_since + ABSENT_S)
        if self._daemon_pid and not self._stopping:
            times.append(min(self._sign_until, time.monotonic() + WATCH_S))
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _on_time(self, now: float) -> None:
        if self._kill_at is not None and now >= self._kill_at and self._daemon_pid:
            self._kill_at = None
            self._say("the daemon did not stop in time and is killed")
            os.kill(self._daemon_pid, signal.SIGKILL)
        self._watch_daemon(now)
        if self._absent_since is not None and now >= self._absent_since + ABSENT_S:
            self._absent_since = None
            self._say(f"no daemon for {ABSENT_S:g} s: ending {len(self._children)} modules")
            for child in self._children.values():
                children.end_group(child.pid, signal.SIGKILL)
        if self._start_at is not None and now >= self._start_at:
            self._start_at = None
            self._start_daemon()

    def _watch_daemon(self, now: float) -> None:
        """Kill a daemon that is stopped or hangs; one that this keeper itself did not listen to gets its time again."""
        paused = now - self._turned_at > WATCH_S + OWN_PAUSE_S
        self._turned_at = now
        if paused:
            self._sign_until = max(self._sign_until, _lease_from(now))
        if self._daemon_pid and not self._stopping and now >= self._sign_until:
            self._say(f"no sign of the daemon ({self._daemon_pid}): it is killed")
            self._sign_until = _lease_from(now)
            os.kill(self._daemon_pid, signal.SIGKILL)

    # ---------------------------------------------------------------- daemon
    def _start_daemon(self) -> None:
        try:
            ours, pid = self._spawn_daemon()
        except OSError as error:  # out of descriptors or processes: what runs goes on meanwhile
            self._say(f"the daemon cannot be started now: {error}")
            self._start_at = time.monotonic() + BACKOFF_S[1]
            return
        self._daemon_pid = pid
        ours.setblocking(False)
        self._socket = ours
        self._out.clear()
        self._loaded = False
        self._sign_until = time.monotonic() + START_S
        self._selector.register(ours, selectors.EVENT_READ, self._on_socket)

    def _spawn_daemon(self) -> tuple[socket.socket, int]:
        """Return our end of the daemon's socket and its pid; nothing stays open when that fails."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [*self._options.daemon_argv, "--keeper-fd", str(theirs.fileno())]
        env, keep_fd = self._options.env, theirs.fileno()
        with theirs:
            try:
                return ours, children.spawn(argv, env, -1, keep_fd=keep_fd, death=signal.SIGTERM)
            except OSError:
                ours.close()
                raise

    def _on_daemon_exit(self, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        self._drain_socket()
        self._close_socket()
        self._daemon_pid = 0
        now = time.monotonic()
        if self._stopping:
            return
        if code == 0 or not (self._served or code in (RESTART, *ASKED)):
            self._status = code if code >= 0 else 1
            return
        if code == REFUSED:
            self._say("the daemon refused to start again")
            self._status = code
            return
        steady = self._ready_at and now - self._ready_at > STEADY_S
        self._backoff_s = BACKOFF_S[0] if steady else min(self._backoff_s * 2, BACKOFF_S[1])
        wait = BACKOFF_S[0] if steady or code == RESTART else self._backoff_s / 2
        self._ready_at = 0.0
        self._start_at = now + wait
        if self._absent_since is None:
            self._absent_since = now
        self._say(f"the daemon ended with {code}; starting it again in {wait:g} s")

    def _drain_socket(self) -> None:
        """Take what a dead daemon still had sent: those puts happened."""
        while self._socket is not None and self._receive():
            pass

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None

    def _on_socket(self) -> None:
        self._flush()
        while self._receive():
            pass

    def _receive(self) -> bool:
        """Handle one packet; False when none is there."""
        assert self._socket is not None
        try:
            packet = receive_packet(self._socket)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            packet = None
        if packet is None:  # end of stream: SIGCHLD brings the rest
            self._close_socket()
            return False
        self._handle(packet)
        return True

    def _send(self, head: dict[str, Any], value: bytes = b"", fd: int = -1) -> None:
        if self._socket is None:
            return
        self._out.append((pack(head, value), fd))
        self._flush()

    def _flush(self) -> None:
        """Send what is queued; what does not fit waits for the socket to be writable."""
        if self._socket is None:
            return
        try:
            while self._out:
                send_packet(self._socket, *self._out[0])
                self._out.popleft()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._out.clear()  # the daemon is gone; SIGCHLD brings the rest
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        self._selector.modify(self._socket, events, self._on_socket)

    # ---------------------------------------------------------------- requests
    def _handle(self, packet: Packet) -> None:
        head, value, fd = packet
        operation = head.get("op")
        if operation == "put":
            self._put(head["key"], value, fd)
        elif operation == "drop":
            self._drop(head["key"])
        elif operation == "load":
            self._hand_back()
        elif operation == "spawn":
            self._spawn(head)
        elif operation == "kill":
            for child in self._children.values():
                if child.tag == head["tag"] and child.status is None:
                    children.end_group(child.pid, head["signal"])
        elif operation == "seen":
            self._exits.pop(head["pid"], None)
        elif operation == "alive":
            self._sign_until = _lease_from(time.monotonic())
        elif operation == "ready":
            self._served = True
            self._sign_until = _lease_from(time.monotonic())
            self._ready_at = time.monotonic()
            self._absent_since = None
        elif operation == "stop":
            self._stop()
        else:
            self._say(f"unknown packet {operation!r} from the daemon")

    def _put(self, key: str, value: bytes, fd: int) -> None:
        full = key not in self._items and len(self._items) >= ITEMS_MAX
        if full or fd == FD_LOST:
            os.close(fd) if fd >= 0 else None
            self._refuse(key, "ITEMS_MAX" if full else "RLIMIT_NOFILE")
            return
        _, old = self._items.get(key, (b"", -1))
        if fd < 0:
            fd = old  # a new value keeps the descriptor
        elif old >= 0:
            os.close(old)
        self._items[key] = (value, fd)
        steps.at("keeper.put")

    def _refuse(self, key: str, limit: str) -> None:
        """Forget what cannot be kept whole: half of it would be taken for all by the next daemon."""
        self._say(f"{limit} reached: {key} is not kept")
        self._drop(key)
        self._send({"op": "not_kept", "key": key, "limit": limit})

    def _drop(self, key: str) -> None:
        """Forget `key`, and with a trailing slash everything below it."""
        keys = [k for k in self._items if k.startswith(key)] if key.endswith("/") else [key]
        for name in keys:
            _, fd = self._items.pop(name, (b"", -1))
            if fd >= 0:
                os.close(fd)

    def _hand_back(self) -> None:
        self._loaded = True
        steps.at("keeper.handing_back")
        for key, (value, fd) in self._items.items():
            self._send({"op": "item", "key": key}, value, fd)
        for child in self._children.values():
            self._send({"op": "child", "tag": child.tag, "pid": child.pid})
        for event in self._exits.values():
            self._send(event)
        self._send({"op": "loaded"})
        steps.at("keeper.handed_back")

    def _spawn(self, head: dict[str, Any]) -> None:
        tag = head["tag"]
        try:
            read, write = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            self._send({"op": "spawned", "tag": tag, "pid": 0, "error": str(error)})
            return
        os.set_blocking(read, False)
        try:
            log = children.LogFile(head["log"])
            pid = children.spawn(head["argv"], head["env"], write, cwd=head.get("cwd", ""))
        except OSError as error:
            os.close(read)
            self._send({"op": "spawned", "tag": tag, "pid": 0, "error": str(error)})
            return
        finally:
            os.close(write)
        child = children.Child(tag, pid, read, log)
        self._children[pid] = child
        steps.at("keeper.spawned")
        self._selector.register(read, selectors.EVENT_READ, lambda: self._on_output(child))
        self._send({"op": "spawned", "tag": tag, "pid": pid})

    # ---------------------------------------------------------------- children
    def _on_output(self, child: children.Child) -> None:
        while child.pipe >= 0:
            try:
                data = os.read(child.pipe, 65536)
            except BlockingIOError:
                return
            if data and child.log is not None:
                child.log.write(data)
            if not data:
                self._close_output(child)

    def _close_output(self, child: children.Child) -> None:
        if child.pipe >= 0:
            self._selector.unregister(child.pipe)
            os.close(child.pipe)
            child.pipe = -1
        if child.log is not None:
            child.log.close()
            child.log = None

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._daemon_pid:
                self._on_daemon_exit(status)
            elif pid in self._children:
                self._on_child_exit(self._children.pop(pid), status)

    def _on_child_exit(self, child: children.Child, status: int) -> None:
        children.end_group(child.pid, signal.SIGKILL)  # what it started in its group ends with it
        self._on_output(child)
        self._close_output(child)
        event = {
            "op": "exited",
            "tag": child.tag,
            "pid": child.pid,
            "code": os.waitstatus_to_exitcode(status),
        }
        self._exits[child.pid] = event  # until a daemon has seen it: this one may be dead already
        if self._loaded:
            self._send(event)

    def _end_children(self) -> None:
        """End everything that is still ours: politely, then for good."""
        for number, wait_s in ((signal.SIGTERM, MODULE_STOP_S), (signal.SIGKILL, MODULE_STOP_S)):
            for pid in children.descendants():
                children.end_group(pid, number)
            deadline = time.monotonic() + wait_s
            while children.descendants() and time.monotonic() < deadline:
                self._turn(0.05)
                self._reap()
        for _, fd in self._items.values():
            if fd >= 0:
                os.close(fd)

    @staticmethod
    def _say(text: str) -> None:
        print(f"keeper: {text}", file=sys.stderr, flush=True)


def _lease_from(now: float) -> float:
    """When a daemon that gave its sign `now` is taken for hanging."""
    return now + SIGN_S + limits.LEASE_MS / 1000
