"""Processes of the keeper: spawn with a parent-death signal, bounded logs, reap, end.

Standard library only. Runs in the keeper's one thread; every child leads its own process group, and
orphans of children fall to the keeper (subreaper), so that nothing outlives it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from dataclasses import dataclass

from fabric import limits

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Child:
    """One spawned process; `log` is where its output goes, `pipe` where it comes from (-1 when closed)."""

    tag: str
    pid: int
    pipe: int = -1
    log: LogFile | None = None
    status: int | None = None


class LogFile:
    """Append-only file that is rotated once at `limits.LOG_BYTES_MAX`. A full disk loses output, never the child."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def write(self, data: bytes) -> None:
        """Append `data`, rotating first (once, to `.1`) when the file is full."""
        try:
            if self._size + len(data) > limits.LOG_BYTES_MAX:
                os.replace(self.path, self.path + ".1")
                os.close(self._fd)
                self._fd = os.open(
                    self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
                )
                self._size = 0
            self._size += os.write(self._fd, data)
        except OSError:
            self._size = max(self._size, 0)  # nowhere to report: the log itself is what failed

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def become_subreaper() -> None:
    """Make orphans of our children ours; raises OSError when the kernel refuses."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def spawn(
    argv: list[str],
    env: dict[str, str],
    output: int,
    *,
    keep_fd: int = -1,
    cwd: str = "",
    death: int = signal.SIGKILL,
) -> int:
    """Fork and exec `argv`; the child gets `death` when this process ends.

    Parameters
    ----------
    output : int
        Descriptor that becomes stdout and stderr; -1 keeps ours.
    keep_fd : int
        One descriptor that stays open across exec under the same number.

    Returns
    -------
    int
        The pid. A child that cannot exec exits with 127 and says why on its stderr.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGCHLD,
            signal.SIGPIPE,
            signal.SIGHUP,
        ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        _libc.prctl(PR_SET_PDEATHSIG, death, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the signal was armed
            os._exit(127)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        if output >= 0:
            os.dup2(output, 1)
            os.dup2(output, 2)
        if keep_fd >= 0:
            os.set_inheritable(keep_fd, True)
        if cwd:
            os.chdir(cwd)
        os.execvpe(argv[0], argv, env)
    except BaseException as error:  # the forked child must never return into the keeper's loop
        os.write(2, f"cannot start {argv[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def end_group(pid: int, number: int) -> None:
    """Signal a child's whole process group; a group that is gone is fine."""
    for target, send in ((pid, os.killpg), (pid, os.kill)):
        try:
            send(target, number)
        except (ProcessLookupError, PermissionError):
            continue


def descendants() -> list[int]:
    """Direct children of this process, adopted orphans included."""
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children") as listing:
            return [int(word) for word in listing.read().split()]
    except OSError:
        return []
