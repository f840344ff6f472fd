"""Durations of the public API become absolute CLOCK_MONOTONIC nanoseconds. Pure but for the clock."""

from __future__ import annotations

import time
from typing import Final

from fabric import limits
from fabric.errors import ConfigError

#: the native calls' "do not wait"
NOW: Final = 0
DEFAULT_NS: Final = int(limits.DEFAULT_DEADLINE_S * 1e9)
monotonic_ns = time.monotonic_ns
_MOMENT_S: Final = 0.25


def absolute_ns(seconds: float | None) -> int:
    """Return the absolute deadline `seconds` from now; None is the default, 0 is `NOW` (do not wait).

    Raises
    ------
    ConfigError
        Negative, not a number, or longer than `limits.DEADLINE_S_MAX`: no wait is infinite.
    """
    if seconds is None:
        return monotonic_ns() + DEFAULT_NS
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, (int, float))
        or not 0 <= seconds <= limits.DEADLINE_S_MAX
    ):
        raise ConfigError(
            f"a deadline of {seconds!r} s: give 0 (do not wait) to {limits.DEADLINE_S_MAX:g} seconds",
            value=seconds,
        )
    return monotonic_ns() + int(seconds * 1e9) if seconds else NOW


def left_s(deadline_ns: int) -> float:
    """Return the seconds until an absolute deadline, never below 0; `NOW` has none left."""
    return max(0.0, (deadline_ns - monotonic_ns()) / 1e9) if deadline_ns else 0.0


def asking_s(deadline_ns: int) -> float:
    """Return the seconds that the daemon may take for a call with this deadline.

    Even where nothing may be waited for, a daemon that runs answers in a moment.
    """
    return min(limits.CONTROL_CALL_S, max(left_s(deadline_ns), _MOMENT_S))
