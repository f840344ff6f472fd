"""Which processes are silent: heartbeats, /proc and a clock in; suspicion and the end of a lease out.

A port's native thread writes its heartbeat, so an interpreter that is busy (or whose lock is held) is not silent.
Silence is counted from the last beat or from the moment at which this daemon began to watch, whichever is later:
after a pause of its own every window begins anew, so that nobody is judged by the pause of the judge.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from fabric import limits
from fabric.controlplane.context import Context
from fabric.controlplane.ports import Port, PortTable

log = logging.getLogger("fabricd.liveness")

MS = 1_000_000
LOOK_AT_PROC_MS = (
    250  #: silent this long, a process is looked up in /proc: stopped ones are suspect at once
)
OWN_PAUSE_MS = 500  #: a look that comes this much late means that this daemon itself stood still
SUPERVISED = (
    "module",
    "stage",
    "probe",
)  #: kinds that the daemon kills when they stay silent; clients never


@dataclass(frozen=True, slots=True)
class Judgement:
    """What silence means for one port."""

    is_suspect: bool
    is_expired: bool


def judge(beat_ns: int, since_ns: int, now_ns: int, is_stopped: bool) -> Judgement:
    """Judge one port by its last beat (0: none yet), the start of its observation and what /proc says."""
    silent_ms = (now_ns - max(beat_ns, since_ns)) / MS
    return Judgement(
        is_suspect=silent_ms > limits.SUSPECT_MS or is_stopped,
        is_expired=silent_ms > limits.LEASE_MS,
    )


def is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped by a signal or a tracer; False for one that is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False


def still_maps(pid: int, fd: int) -> bool:
    """Tell whether a process has the memory behind `fd` mapped; True where that cannot be found out.

    exec gives a process another memory: what it had attached can then never wake up, though the process lives.
    """
    try:
        inode = str(os.fstat(fd).st_ino)
        with open(f"/proc/{pid}/maps") as file:
            return any(line.split(None, 5)[4:5] == [inode] for line in file)
    except OSError:
        return True


class Liveness:
    """Belongs to the daemon's loop.

    `on_change(port)` is called after a port became suspect or came back, `on_left(port)` when a process that lives has
    silently given its port up.
    """

    def __init__(
        self, context: Context, ports: PortTable, stopped: Callable[[int], bool] = is_stopped,
        maps: Callable[[int, int], bool] = still_maps,
    ) -> None:  # fmt: skip
        self._context = context
        self._ports = ports
        self._is_stopped = stopped
        self._still_maps = maps
        self._since: dict[int, int] = {}
        self._killed: set[int] = set()
        self._looked_ns = 0
        self.on_change: Callable[[Port], None] = lambda port: None
        self.on_left: Callable[[Port], None] = lambda port: None
        self.is_held: Callable[[Port], bool] = lambda port: False

    def look(self, now_ns: int) -> bool:
        """Judge every living port; False when this daemon itself had stood still, and nobody was judged."""
        late_ms = (now_ns - self._looked_ns) / MS - limits.LIVENESS_MS
        paused = self._looked_ns > 0 and late_ms > OWN_PAUSE_MS
        self._looked_ns = now_ns
        if paused:
            self._since = dict.fromkeys(self._since, now_ns)
            self._context.events.add("daemon stood still", late_ms=round(late_ms))
            return False
        living = {p.port: p for p in self._ports if p.is_alive and p.kind != "gateway"}
        self._since = {number: self._since.get(number, now_ns) for number in living}
        self._killed &= living.keys()
        for port in living.values():
            self._judge(port, now_ns)
        return True

    def _judge(self, port: Port, now_ns: int) -> None:
        beat_ns, since_ns = port.heartbeat_ns(), self._since[port.port]
        may_be_stopped = now_ns - max(beat_ns, since_ns) > LOOK_AT_PROC_MS * MS
        found = judge(beat_ns, since_ns, now_ns, may_be_stopped and self._is_stopped(port.pid))
        if found.is_suspect != port.is_suspect:
            port.is_suspect = found.is_suspect
            event = "port suspect" if found.is_suspect else "port back"
            self._context.events.add(event, port=port.port, port_name=port.name, pid=port.pid)
            self.on_change(port)
        if found.is_expired and self.is_held(port):
            return  # stopped in a debugger, for as long as it takes
        if found.is_expired and port.kind in SUPERVISED:
            self._kill(port)
        elif found.is_expired and not self._still_maps(port.pid, port.state_fd):
            self._context.events.add(
                "process became another program", port=port.port, port_name=port.name, pid=port.pid
            )
            self.on_left(port)

    def _kill(self, port: Port) -> None:
        """End a supervised process that was silent for a whole lease; its supervisor starts it again."""
        if port.port in self._killed or port.pid_fd < 0:
            return
        self._killed.add(port.port)
        self._context.events.add(
            "silent process killed",
            port=port.port,
            port_name=port.name,
            pid=port.pid,
            limit="LEASE_MS",
        )
        try:
            signal.pidfd_send_signal(port.pid_fd, signal.SIGKILL)
        except OSError as error:
            log.info("process not killed", extra={"pid": port.pid, "reason": str(error)})
