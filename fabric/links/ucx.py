"""The `ucx` link: sockets are made and proven as for tcp, then frames go as UCX active messages beside them.

UCX comes with the package `libucx` (extra ``ucx``), the link with a build that found it: `fabric._ucx`. Without either
nodes talk over tcp, and `unavailable` says why. One load a process; afterwards any thread.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any, Final

from fabric.abc.link import LinkCapabilities
from fabric.errors import PathBrokenError
from fabric.links.tcp import TcpBackend

#: Short names of what UCX calls transports; anything else is given to UCX as it is.
TRANSPORTS: Final = {"all": "", "tcp": "tcp", "shm": "posix,sysv,cma"}
#: What UCX reads once, when it is loaded: no signal handlers, no threads of its own that are not needed, no output.
_WHILE_LOADING: Final = {
    "UCX_HANDLE_ERRORS": "none",
    "UCX_ERROR_SIGNALS": "",
    "UCX_DEBUG_SIGNO": "0",
    "UCX_VFS_ENABLE": "n",
    "UCX_WARN_UNUSED_ENV_VARS": "n",
}
_LOG_LEVEL: Final = ("UCX_LOG_LEVEL", "fatal")  #: unless the environment says otherwise


@functools.cache
def _loaded() -> tuple[Any, str]:
    """Return the extension module, or None and why there is none."""
    if importlib.util.find_spec("fabric._ucx") is None:
        return None, "this build has no ucx link: install libucx-cu12 and build again"
    try:
        with _quiet_environment():
            importlib.import_module("libucx").load_library()
            return importlib.import_module("fabric._ucx"), ""
    except (ImportError, OSError) as error:
        return None, f"UCX cannot be loaded ({error}): install libucx-cu12"


@contextlib.contextmanager
def _quiet_environment() -> Iterator[None]:
    """Have UCX read what we need; children get the environment as it was."""
    wanted = dict(_WHILE_LOADING)
    name, level = _LOG_LEVEL
    wanted[name] = os.environ.get(name, level)
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def unavailable() -> str:
    """Return why there is no ucx link here; empty when there is."""
    return _loaded()[1]


def has_ucx() -> bool:
    """Tell whether links over UCX can be made here."""
    return not unavailable()


def version() -> str:
    """Return the version of UCX that is loaded; empty without one."""
    module, _ = _loaded()
    return str(module.version) if module is not None else ""


def make_link(fd: int, session: int, transports: str = "all", devices: str = "") -> Any:
    """Make the link of one connection.

    Parameters
    ----------
    fd : int
        Connected, handshaken socket; the link's from here on, also when this fails.
    session : int
        As the handshake gave it.
    transports : str
        ``all``, ``tcp``, ``shm`` (within a machine), or names as in UCX_TLS with commas between.
    devices : str
        As UCX_NET_DEVICES, such as ``eth1`` or ``mlx5_0:1``; empty: any.

    Returns
    -------
    capsule
        For `Engine.add_link`.

    Raises
    ------
    PathBrokenError
        UCX is not there, or has none of these here.

    Notes
    -----
    Takes some milliseconds: UCX looks at the machine's devices.
    """
    module, why = _loaded()
    if module is None:
        os.close(fd)
        raise PathBrokenError(f"no ucx link: {why}")
    return module.make_link(fd, session, TRANSPORTS.get(transports, transports), devices)


def check(transports: str = "all", devices: str = "") -> str:
    """Return why a link over these transports cannot be made here; empty when it can."""
    module, why = _loaded()
    if module is None:
        return why
    return str(module.check(TRANSPORTS.get(transports, transports), devices))


class UcxBackend(TcpBackend):
    """UCX between daemons: connections as tcp's, and links made of them by `make_link`."""

    scheme = "ucx"

    def probe(self) -> LinkCapabilities:
        why = check()
        return LinkCapabilities(not why, why, frozenset({"host"}), False, 1 << 20)
