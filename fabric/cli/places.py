"""Where a node's sockets, state and log are when nobody says otherwise; the daemon's own answers."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_NODE = "a"


def default_socket(node: str = DEFAULT_NODE) -> str:
    """Return FABRIC_SOCKET, else the node's attach socket in the user's run-time folder."""
    from fabric.controlplane import options

    return os.environ.get("FABRIC_SOCKET") or options.default_socket(node)


def control_socket(socket: str) -> str:
    """Return the gRPC socket beside an attach socket."""
    return f"{socket}.ctl"


def default_state(node: str) -> Path:
    """Return the node's folder for registry and logs."""
    from fabric.controlplane import options

    return options.default_state(node)


def daemon_log(state: Path) -> Path:
    """Return where `fabricctl up` sends what the daemon prints."""
    return state / "logs" / "fabricd.log"
