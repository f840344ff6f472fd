"""The `cuda_ipc` and `nccl` links: sockets made and proven as for tcp; large bodies go from GPU to GPU beside them.

Nothing of NVIDIA's is needed to build or import this. `libcuda.so.1` comes with the driver, `libnccl.so.2` with the
package `nvidia-nccl-cu12` (extra ``nccl``); both are opened at first use, once a process. Without them nodes talk over
tcp, and `unavailable` says why. Any thread.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any, Final, NamedTuple

from fabric.abc.link import LinkCapabilities
from fabric.errors import PathBrokenError
from fabric.links.tcp import TcpBackend
from fabric.messages.device import cuda_library

CUDA_IPC: Final = "cuda_ipc"  #: between processes of one machine, by handles of CUDA
NCCL: Final = "nccl"  #: between two GPUs, by a communicator each way
KINDS: Final = (CUDA_IPC, NCCL)
#: Environment variable that names another library than the package's.
NCCL_LIBRARY: Final = "FABRIC_NCCL_LIBRARY"
DEADLINE_S: Final = (
    5.0  #: for the peer's GPU to be joined, and for each copy; then the connection is broken
)
_NOT_BUILT: Final = "this build has no GPU links: build it again (make build)"


class Libraries(NamedTuple):
    """What is opened: paths, or names for the system's search."""

    cuda: str
    nccl: str


class Driver(NamedTuple):
    """What the CUDA driver says: how many GPUs, the version of its API as ``12040``, and why there is none."""

    gpus: int
    version: int
    why: str


def libraries() -> Libraries:
    """Return the libraries that are opened: those that the environment names, else the system's and the package's."""
    return Libraries(cuda_library(), os.environ.get(NCCL_LIBRARY) or _packaged_nccl())


def _packaged_nccl() -> str:
    try:
        spec = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        spec = None
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        found = Path(folder) / "lib" / "libnccl.so.2"
        if found.is_file():
            return str(found)
    return "libnccl.so.2"


def _module() -> Any:
    """Return the extension module; None in a build without it."""
    if importlib.util.find_spec("fabric._gpu") is None:
        return None
    return importlib.import_module("fabric._gpu")


def driver() -> Driver:
    """Return what the CUDA driver says; never raises."""
    module = _module()
    if module is None:
        return Driver(0, 0, _NOT_BUILT)
    found = Driver(*module.devices(libraries().cuda))
    if not found.why and found.gpus == 0:
        return found._replace(why="the CUDA driver shows no GPU")
    return found


def unavailable(kind: str = CUDA_IPC) -> str:
    """Return why there is no such link here; empty when there is."""
    why = driver().why
    if why or kind == CUDA_IPC:
        return why
    return str(_module().nccl(libraries().nccl)[1])


def nccl_version() -> str:
    """Return the version of NCCL that would be used, as ``2.29.3``; empty without one."""
    module = _module()
    number = module.nccl(libraries().nccl)[0] if module is not None else 0
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}" if number else ""


def make_link(
    fd: int, session: int, kind: str = CUDA_IPC, device: int = 0, deadline_s: float = DEADLINE_S
) -> Any:
    """Make the link of one connection.

    Parameters
    ----------
    fd : int
        Connected, handshaken socket; the link's from here on, also when this fails.
    session : int
        As the handshake gave it.
    kind : {"cuda_ipc", "nccl"}
    device : int
        The GPU whose memory is used, as the driver numbers them.
    deadline_s : float
        Seconds for the peer's GPU to be joined, and for each copy.

    Returns
    -------
    capsule
        For `Engine.add_link`.

    Raises
    ------
    PathBrokenError
        No driver, no such GPU, no memory, or no NCCL here; it says which.

    Notes
    -----
    The first in a process takes as long as CUDA's start: up to seconds. Takes 4 MiB of the GPU and 8 MiB of pinned host
    memory.
    """
    module = _module()
    if module is None:
        os.close(fd)
        raise PathBrokenError(f"no {kind} link: {_NOT_BUILT}")
    found = libraries()
    return module.make_link(fd, session, kind, device, found.cuda, found.nccl, deadline_s)


def remains() -> int:
    """Return how many closed connections keep memory for a peer that has not let go of it."""
    module = _module()
    return int(module.remains()) if module is not None else 0


class GpuBackend(TcpBackend):
    """GPU memory between daemons: connections as tcp's, and links made of them by `make_link`."""

    scheme = CUDA_IPC

    def probe(self) -> LinkCapabilities:
        why = unavailable(self.scheme)
        return LinkCapabilities(not why, why, frozenset({"host"}), False, 1 << 20)


class NcclBackend(GpuBackend):
    """The same over NCCL."""

    scheme = NCCL
