"""What a plugin may take of its stage host: memory, time in one call, output, and no second process.

Each bound ends at most this process, which is started again: memory through RLIMIT_DATA (private memory only, the
fabric's shared memory does not count), time by a thread that looks at the calls under way, output by a budget a second.
"""

from __future__ import annotations

import faulthandler
import io
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol, TextIO

from fabric import limits
from fabric.worker.stage_guard import Guard

LOOK_S: Final = 0.05
HUNG_FACTOR: Final = 10.0  # a call that takes this many times its budget is taken to be hung
HUNG_S_MIN: Final = 1.0
ENDED_FOR_TIME: Final = 75  # EX_TEMPFAIL; the supervisor shows it
ENDED_AS_FORK: Final = 71  # EX_OSERR
_OOM_FIRST: Final = "1000"


class Call(Protocol):
    """What the watchdog sees of a chain."""

    @property
    def busy_since_ns(self) -> int:
        """Start of the call under way (CLOCK_MONOTONIC), 0: none."""

    @property
    def budget_ms(self) -> float: ...

    @property
    def label(self) -> str: ...


def hung_after_s(budget_ms: float) -> float:
    """Return the seconds after which a call with this budget is given up."""
    return max(budget_ms * HUNG_FACTOR / 1e3, HUNG_S_MIN)


class Watchdog:
    """Ends this process when a call into a plugin does not come back; one daemon thread."""

    def __init__(
        self,
        guard: Guard,
        calls: Callable[[], Iterable[Call]],
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._guard = guard
        self._calls = calls
        self._end = end
        self._is_stopped = threading.Event()

    def start(self) -> None:
        """Look every LOOK_S until `stop`."""
        threading.Thread(target=self._run, name="stage-watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the thread; idempotent."""
        self._is_stopped.set()

    def look(self, now_ns: int) -> None:
        """Judge the calls under way once."""
        for call in self._calls():
            since_ns = call.busy_since_ns
            hung_s = hung_after_s(call.budget_ms)
            if since_ns and now_ns - since_ns > hung_s * 1e9:
                reason = f"{call.label} did not return within {hung_s:g} s (budget {call.budget_ms:g} ms)"
                self._guard.dies(reason, now_ns)
                print(f"{reason}; where it is:", file=sys.__stderr__, flush=True)
                faulthandler.dump_traceback(sys.__stderr__ or 2)
                self._end(ENDED_FOR_TIME)
                return
        self._guard.alive(now_ns)

    def _run(self) -> None:
        while not self._is_stopped.wait(LOOK_S):
            self.look(time.monotonic_ns())


def bound_memory(budget_bytes: int) -> int:
    """Let this process have `budget_bytes` more private memory than it has now; returns the limit in bytes.

    Beyond it an allocation fails: MemoryError in Python, which is an error of the message at hand.
    """
    wanted = data_bytes() + budget_bytes + limits.STAGE_MEMORY_SLACK_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    return wanted


def data_bytes() -> int:
    """Return the private writable memory of this process in bytes, as RLIMIT_DATA counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0


def end_first_when_memory_is_short() -> None:
    """Have the kernel choose this process before any other of the node when the machine runs out of memory."""
    try:
        Path("/proc/self/oom_score_adj").write_text(_OOM_FIRST)
    except OSError:
        return


def end_forks() -> None:
    """Let a forked child of this process end at once: it would hold the port's memory, and lanes are not inherited."""
    os.register_at_fork(after_in_child=lambda: os._exit(ENDED_AS_FORK))


class BoundedOutput(io.TextIOBase):
    """A text stream that passes on `limits.STAGE_OUTPUT_BYTES` a second and says how much it kept back.

    Thread-safe, as print is.
    """

    def __init__(
        self, stream: TextIO, clock: Callable[[], float] = time.monotonic, budget: int = 0
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._budget = budget or limits.STAGE_OUTPUT_BYTES
        self._left = self._budget
        self._since = clock()
        self._kept_back = 0
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Pass on what the budget of this second allows; returns the characters taken, which are all."""
        with self._lock:
            now = self._clock()
            if now - self._since >= 1.0:
                self._since, self._left = now, self._budget
                if self._kept_back:
                    self._stream.write(f"[{self._kept_back} bytes were not kept]\n")
                    self._kept_back = 0
            passed = text[: max(0, self._left)]
            self._left -= len(passed)
            if passed:
                self._stream.write(passed)
            if len(passed) < len(text):
                if not self._kept_back:
                    self._stream.write(
                        f"\n[more than {self._budget} bytes a second are not kept]\n"
                    )
                self._kept_back += len(text) - len(passed)
        return len(text)

    def flush(self) -> None:
        """Flush the stream below."""
        self._stream.flush()

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """Return the descriptor below, for those who write to it themselves."""
        return self._stream.fileno()
