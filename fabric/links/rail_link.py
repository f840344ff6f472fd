"""Names of the links that a rail can have: ``tcp``, ``ucx``, ``ucx+TRANSPORTS``, ``cuda_ipc``, ``nccl``.

Light: the keeper reads them. Every rail is dialled and proven as one of tcp; `fabric.links.ucx` and `fabric.links.gpu`
say what moves its frames.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
from typing import Final

from fabric.errors import ConfigError

TCP: Final = "tcp"
UCX: Final = "ucx"
GPU: Final = ("cuda_ipc", "nccl")
_BYTES_MAX: Final = 256
_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_,")


def split_link(text: str) -> tuple[str, str]:
    """Return (link, rest) of ``[tcp:|ucx:|ucx+TRANSPORTS:|cuda_ipc:|nccl:]HOST:PORT``; without a link it is tcp.

    Raises
    ------
    ConfigError
        The transports are none that UCX could have.
    """
    first, separator, rest = text.partition(":")
    name, plus, transports = first.partition("+")
    if not separator or name not in (TCP, UCX, *GPU) or (name != UCX and plus):
        return TCP, text
    is_name = 0 < len(transports) <= _BYTES_MAX and _CHARACTERS.issuperset(transports)
    if plus and not is_name:
        raise ConfigError(
            f"--listen {text[:64]!r}: write ucx:HOST:PORT, or ucx+shm:, ucx+tcp:, ucx+rc,ud: … with UCX's names of"
            " transports",
            key="--listen",
            found=text[:64],
        )
    return first, rest


def is_ucx(link: str) -> bool:
    """Tell whether a rail's link is one of UCX."""
    return link.partition("+")[0] == UCX


def is_gpu(link: str) -> bool:
    """Tell whether the large bodies of a rail go from GPU to GPU."""
    return link in GPU


def transports_of(link: str) -> str:
    """Return the transports that a rail of UCX uses, as `fabric.links.ucx` names them."""
    return link.partition("+")[2] or "all"


def missing(link: str) -> str:
    """Return why a rail of this link cannot be used by this installation; empty when it can. Loads nothing."""
    if is_gpu(link):
        return _missing_gpu()
    if not is_ucx(link):
        return ""
    if importlib.util.find_spec("fabric._ucx") is None:
        return "this build has no ucx link: install libucx-cu12 and build again"
    return (
        ""
        if importlib.util.find_spec("libucx") is not None
        else "the package libucx-cu12 is not installed"
    )


def _missing_gpu() -> str:
    if importlib.util.find_spec("fabric._gpu") is None:
        return "this build has no GPU links: build it again (make build)"
    named = os.environ.get("FABRIC_CUDA_LIBRARY")
    if named or ctypes.util.find_library("cuda"):
        return ""
    return "there is no libcuda.so.1: install NVIDIA's driver, or leave the rail out"
