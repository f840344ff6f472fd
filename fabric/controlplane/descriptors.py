"""File descriptors are bounded: what is new is refused, typed, while enough are left for what runs.

The kernel gives the lowest free number, so the number of a new descriptor tells how many are in use; no counting.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

from fabric import errors, limits


def room_left(fd: int) -> int:
    """Return how many descriptors above `fd` this process may still open, less what is reserved."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - limits.DESCRIPTORS_RESERVED - fd


def refused(what: str, why: str = "") -> errors.CapacityError:
    """Return the error for something that needs descriptors this daemon does not have."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    cause = f" ({why})" if why else ""
    return errors.CapacityError(
        f"no descriptor is left for {what}{cause}: its RLIMIT_NOFILE is {limit}, of which DESCRIPTORS_RESERVED"
        f" ({limits.DESCRIPTORS_RESERVED}) are kept for what runs; close ports or channels, or raise ulimit -n",
        limit="DESCRIPTORS_RESERVED",
    )


def make(what: str, *makers: Callable[[], int]) -> list[int]:
    """Make descriptors for something new: all of them or none.

    Raises
    ------
    CapacityError
        The process is short of them, or of memory.
    """
    made: list[int] = []
    try:
        for maker in makers:
            made.append(maker())
            if room_left(made[-1]) < 0:
                raise refused(what)
    except (OSError, errors.InternalError) as error:
        close(made)
        raise refused(what, str(error)) from error
    except BaseException:
        close(made)
        raise
    return made


def close(fds: list[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
