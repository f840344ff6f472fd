"""A process's control connection: requests out, pushes in, reconnected when the daemon restarts.

One thread reads and runs the port's own push handlers; handlers of others get a thread each. Data on lanes never
touches this connection, so it goes on while the daemon is away. After a reconnect, requests that may be
repeated are sent again and the others fail as `BrokenError`.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from fabric import errors, limits
from fabric.dataplane.framing import FrameSocket, close_fds

log = logging.getLogger("fabric.connection")

Push = Callable[[str, dict[str, Any], list[int]], dict[str, Any]]
#: asking twice is the same as asking once
_REPEATABLE: Final = frozenset(
    {
        "declare",
        "close",
        "lane_broken",
        "segment_seal",
        "segment_get",
        "segment_drop",
        "route_ask",
        "ready",
        "stopped",
        "bye",
    }
)
_TICK_S: Final = 2.0


class _Request:
    __slots__ = ("answer", "done", "error", "fds", "fields", "is_sent", "op")

    def __init__(self, op: str, fields: dict[str, Any]) -> None:
        self.op = op
        self.fields = fields
        self.is_sent = False
        self.done = threading.Event()
        self.answer: dict[str, Any] = {}
        self.fds: list[int] = []
        self.error: Exception | None = None

    def fail(self, error: Exception) -> None:
        self.error = error
        self.done.set()


class ControlConnection:
    """Client half of the attach protocol.

    Parameters
    ----------
    path : str
        Unix socket of the daemon.
    on_push : callable
        ``(op, fields, fds) -> answer fields``; on the reading thread, must not make requests. Closes nothing.
    on_tick : callable
        Called about every two seconds when nothing arrives.
    on_broken : callable
        ``(error)``, once, when the connection is gone for good.
    """

    def __init__(
        self,
        path: str,
        on_push: Push,
        on_tick: Callable[[], None],
        on_broken: Callable[[Exception], None],
    ) -> None:
        self.path = path
        self._on_push = on_push
        self._on_tick = on_tick
        self._on_broken = on_broken
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Request] = {}
        self._frames: FrameSocket | None = None
        self._closing = threading.Event()
        self._broken: Exception | None = None
        self._identity: dict[str, Any] = {}
        self._opened: set[int] = (
            set()
        )  # endpoints whose number came; written by the control thread and `close`
        self._thread: threading.Thread | None = None
        self.reconnect_count = 0

    def hello(self, fields: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        """Connect and say hello; returns the answer and its descriptors. Pushes are served after `start`."""
        frames = connect(self.path)
        try:
            frames.send({"op": "hello", "id": 0, **fields})
            answer, fds = frames.receive(limits.ATTACH_S)
            if "error" in answer:
                raise errors.from_wire(answer["error"])
            if answer.get("re") != 0 or len(fds) != 3:
                close_fds(fds)
                raise errors.PeerProtocolError(
                    f"the daemon answered hello with {sorted(answer)} and {len(fds)} fds"
                )
        except BaseException:
            frames.close()
            raise
        self._identity = {"v": 1, "port": answer["port"], "incarnation": answer["incarnation"]}
        self._frames = frames
        return answer, fds

    def start(self) -> None:
        """Begin to read."""
        self._thread = threading.Thread(target=self._run, name="fabric-control", daemon=True)
        self._thread.start()

    @property
    def is_connected(self) -> bool:
        """Whether the daemon is there now."""
        return self._frames is not None

    def request(
        self, op: str, fields: dict[str, Any], timeout_s: float = limits.CONTROL_CALL_S
    ) -> tuple[dict[str, Any], list[int]]:
        """Ask and wait for the answer; waits through a restart of the daemon where the request may be repeated.

        Raises
        ------
        FabricError
            The daemon's refusal, as the class its code names.
        BrokenError
            The connection broke while a request that must not be repeated was unanswered, or for good.
        DeadlineExceeded
            No answer within `timeout_s`.
        """
        if threading.current_thread() is self._thread:
            raise errors.InternalError(
                f"{op} asked from the control thread, which would never see the answer"
            )
        request = _Request(op, fields)
        number = self._post(request)
        if not request.done.wait(timeout_s):
            with self._lock:
                self._waiting.pop(number, None)
            if not request.done.is_set():
                away = "" if self.is_connected else " (it is not running: fabricctl up)"
                raise errors.DeadlineExceeded(
                    f"fabricd did not answer {op} within {timeout_s:g} s{away}", op=op
                )
        if request.error is not None:
            raise request.error
        return request.answer, request.fds

    def post(self, op: str, fields: dict[str, Any]) -> None:
        """Ask without waiting; the answer is dropped, an error logged. Any thread."""
        self._post(_Request(op, fields))

    def close(self) -> None:
        """Say bye if possible, stop the thread, fail what waits. Idempotent."""
        if self._closing.is_set():
            return
        if (
            self.is_connected
            and self._broken is None
            and threading.current_thread() is not self._thread
        ):
            try:
                self.request("bye", {}, limits.CLOSE_S)
            except errors.FabricError as error:
                log.debug("bye went unanswered: %s", error)
        self._closing.set()
        frames = self._frames
        if frames is not None:
            frames.shutdown()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(limits.CLOSE_S)
        self._fail_all(errors.ClosedError("the port was closed"))

    # ---- sending

    def _post(self, request: _Request) -> int:
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if self._closing.is_set():
                raise errors.ClosedError(f"the port was closed; {request.op} cannot be asked")
            if len(self._waiting) >= limits.CONTROL_REQUESTS_MAX:
                raise errors.CapacityError(
                    f"{len(self._waiting)} unanswered requests, CONTROL_REQUESTS_MAX is {limits.CONTROL_REQUESTS_MAX}",
                    limit="CONTROL_REQUESTS_MAX",
                )
            number = next(self._numbers)
            self._waiting[number] = request
            if request.op == "close":
                self._opened.discard(request.fields["endpoint"])
            frames = self._frames
        if frames is not None:
            self._send(frames, number, request)
        return number

    def _send(self, frames: FrameSocket, number: int, request: _Request) -> None:
        request.is_sent = True
        try:
            frames.send({"op": request.op, "id": number, **request.fields})
        except (errors.BrokenError, errors.DeadlineExceeded):
            request.is_sent = (
                False  # a cut frame is never acted on; the reader reconnects and sends it again
            )
        except errors.FabricError as error:
            with self._lock:
                self._waiting.pop(number, None)
            request.fail(error)

    # ---- reading thread

    def _run(self) -> None:
        while not self._closing.is_set():
            frames = self._frames
            assert frames is not None
            try:
                fields, fds = frames.receive(_TICK_S)
            except errors.DeadlineExceeded:
                self._guard(self._on_tick)
                continue
            except errors.FabricError as error:
                frames.close()
                self._frames = None
                if not self._closing.is_set() and not self._reconnect(error):
                    return
                continue
            self._dispatch(frames, fields, fds)
        if self._frames is not None:
            self._frames.close()
            self._frames = None

    def _dispatch(self, frames: FrameSocket, fields: dict[str, Any], fds: list[int]) -> None:
        if "re" in fields:
            self._take_answer(fields, fds)
            return
        op, number = str(fields.get("op", "")), fields.get("push", 0)
        try:
            answer = self._on_push(op, fields, fds)
        except Exception as error:  # a push that cannot be done is the daemon's to know
            log.warning("push %s failed: %s", op, error)
            answer = {"error": errors.to_wire(error)}
        finally:
            close_fds(fds)
        if answer.pop("later", False):
            return
        self.answer_push(number, answer, frames)

    def answer_push(
        self, number: int, answer: dict[str, Any], frames: FrameSocket | None = None
    ) -> None:
        """Answer a push; a connection that is gone means the daemon will push again."""
        frames = frames or self._frames
        if frames is None:
            return
        try:
            frames.send({"done": number, **answer})
        except (errors.BrokenError, errors.DeadlineExceeded, errors.ClosedError) as error:
            log.debug("answer to push %s lost: %s", number, error)
        except errors.CapacityError as error:
            frames.send({"done": number, "error": error.to_wire()})

    def _take_answer(self, fields: dict[str, Any], fds: list[int]) -> None:
        with self._lock:
            request = self._waiting.pop(fields["re"], None)
        if request is None:
            close_fds(fds)
            if "endpoint" in fields:  # whoever asked for it gave up waiting
                self.post("close", {"endpoint": fields["endpoint"]})
            elif "segment" in fields:
                self.post("segment_drop", {"segment": fields["segment"]})
            return
        if request.op == "open" and "endpoint" in fields:
            self._opened.add(fields["endpoint"])
        if "error" in fields:
            close_fds(fds)
            request.error = errors.from_wire(fields["error"])
            log.debug("%s refused: %s", request.op, request.error)
        else:
            request.answer, request.fds = fields, fds
        request.done.set()

    def _reconnect(self, cause: Exception) -> bool:
        """Resume the port with a new connection; False when it is gone for good (everything was told)."""
        log.info("control connection lost (%s); reconnecting", cause)
        deadline = time.monotonic() + limits.RECONNECT_S
        delay, longest = limits.RECONNECT_BACKOFF_S
        while not self._closing.wait(delay):
            delay = min(delay * 2, longest)
            try:
                frames = self._resume()
            except errors.StaleHandleError as error:
                self._give_up(error)
                return False
            except errors.FabricError as error:
                if time.monotonic() > deadline:
                    broken = errors.BrokenError(
                        f"fabricd at {self.path} was gone for {limits.RECONNECT_S:g} s ({error}); "
                        "start it: fabricctl up"
                    )
                    broken.__cause__ = error
                    self._give_up(broken)
                    return False
                continue
            self.reconnect_count += 1
            self._send_again(frames)
            return True
        return False

    def _resume(self) -> FrameSocket:
        frames = connect(self.path)
        try:
            # What the daemon opened for us and could not answer any more is nobody's: it closes it.
            known = {"endpoints": sorted(self._opened)}
            frames.send({"op": "resume", "id": 0, **self._identity, **known})
            while True:
                fields, fds = frames.receive(limits.ATTACH_S)
                if fields.get("re") == 0:
                    break
                self._dispatch(frames, fields, fds)
            close_fds(fds)
            if "error" in fields:
                raise errors.from_wire(fields["error"])
        except BaseException:
            frames.close()
            raise
        return frames

    def _send_again(self, frames: FrameSocket) -> None:
        with self._lock:
            self._frames = frames
            waiting = list(self._waiting.items())
            lost = [(n, r) for n, r in waiting if r.is_sent and r.op not in _REPEATABLE]
            for number, _ in lost:
                del self._waiting[number]
        for _, request in lost:
            request.fail(
                errors.BrokenError(
                    f"fabricd restarted while {request.op} was unanswered; ask again"
                )
            )
        for number, request in waiting:
            if not request.done.is_set():
                self._send(frames, number, request)

    def _give_up(self, error: errors.FabricError) -> None:
        with self._lock:
            self._broken = error
        self._fail_all(error)
        self._guard(lambda: self._on_broken(error))

    def _fail_all(self, error: Exception) -> None:
        with self._lock:
            waiting, self._waiting = list(self._waiting.values()), {}
        for request in waiting:
            request.fail(error)

    @staticmethod
    def _guard(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            log.exception("control thread: a housekeeping call failed")


def connect(path: str) -> FrameSocket:
    """Connect to a daemon's socket; the error says what to do when there is none."""
    if len(path.encode()) > limits.SOCKET_PATH_BYTES_MAX:
        raise errors.ConfigError(
            f"socket path of {len(path.encode())} bytes, at most {limits.SOCKET_PATH_BYTES_MAX}: {path}",
            path=path,
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(limits.ATTACH_S)
        sock.connect(path)
    except OSError as error:
        sock.close()
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            raise errors.BrokenError(
                f"no fabricd at {path}; start one: fabricctl up", path=path
            ) from error
        raise errors.BrokenError(f"cannot connect to {path}: {error}", path=path) from error
    owner = _owner_of(sock)
    if owner not in (os.getuid(), 0):
        sock.close()
        raise errors.BrokenError(
            f"the socket {path} is served by uid {owner}, not by you or root; "
            "name your node's socket with FABRIC_SOCKET",
            path=path,
            owner=owner,
        )
    return FrameSocket(sock)


def _owner_of(sock: socket.socket) -> int:
    """Return the uid of the process that listens: a folder in /tmp can be made by anybody."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
