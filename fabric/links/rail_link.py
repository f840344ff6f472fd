"""Names of the links that a rail can have: ``tcp``, ``ucx``, ``ucx+TRANSPORTS``. Light: the keeper reads them.

A rail of UCX is dialled and proven as one of tcp; `fabric.links.ucx` says what moves its frames.
"""

from __future__ import annotations

import importlib.util
from typing import Final

from fabric.errors import ConfigError

TCP: Final = "tcp"
UCX: Final = "ucx"
_BYTES_MAX: Final = 256
_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_,")


def split_link(text: str) -> tuple[str, str]:
    """Return (link, rest) of ``[tcp:|ucx:|ucx+TRANSPORTS:]HOST:PORT``; without a link it is tcp.

    Raises
    ------
    ConfigError
        The transports are none that UCX could have.
    """
    first, separator, rest = text.partition(":")
    name, plus, transports = first.partition("+")
    if not separator or name not in (TCP, UCX) or (name == TCP and plus):
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


def transports_of(link: str) -> str:
    """Return the transports that a rail of UCX uses, as `fabric.links.ucx` names them."""
    return link.partition("+")[2] or "all"


def missing(link: str) -> str:
    """Return why a rail of this link cannot be used by this installation; empty when it can. Loads nothing."""
    if not is_ucx(link):
        return ""
    if importlib.util.find_spec("fabric._ucx") is None:
        return "this build has no ucx link: install libucx-cu12 and build again"
    return (
        ""
        if importlib.util.find_spec("libucx") is not None
        else "the package libucx-cu12 is not installed"
    )
