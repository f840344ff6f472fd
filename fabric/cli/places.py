"""Where a node's sockets, state and log are when nobody says otherwise."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_NODE = "a"


def default_socket(node: str = DEFAULT_NODE) -> str:
    """Return FABRIC_SOCKET, else the node's attach socket in the user's run-time folder."""
    named = os.environ.get("FABRIC_SOCKET")
    return named if named else str(runtime_folder() / f"{node}.sock")


def runtime_folder() -> Path:
    """Return ``$XDG_RUNTIME_DIR/fabricd``, or ``/tmp/fabricd-UID`` where there is none."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "fabricd" if base else Path(f"/tmp/fabricd-{os.getuid()}")


def control_socket(socket: str) -> str:
    """Return the gRPC socket beside an attach socket."""
    return f"{socket}.ctl"


def default_state(node: str) -> Path:
    """Return ``$XDG_STATE_HOME/fabricd/NODE`` (``~/.local/state`` by default)."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(
        os.path.expanduser("~"), ".local", "state"
    )
    return Path(base) / "fabricd" / node


def daemon_log(state: Path) -> Path:
    """Return where `fabricctl up` sends what the daemon prints."""
    return state / "logs" / "fabricd.log"
