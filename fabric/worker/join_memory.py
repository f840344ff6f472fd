"""The shared memory of a join's journal, mapped: the node's keeper holds it, so it outlives the host."""

from __future__ import annotations

import mmap
import os
from typing import Any

from fabric.worker.join_journal import journal_bytes


def open_journal(port: Any, name: str) -> mmap.mmap:
    """Ask the daemon for the journal of join `name` and map it; the mapping lives as long as the process."""
    _, fds = port.request("shared_open", {"kind": "join", "name": name})
    try:
        return mmap.mmap(fds[0], journal_bytes())
    finally:
        for fd in fds:
            os.close(fd)
