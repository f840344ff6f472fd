"""The link seam: how one transport reaches another node. Four methods a backend, two values; no payload passes here.

The bytes themselves move in native code behind `fabric/native/links/link.hpp` (eight methods: post, progress, fd,
wants_write, backlog, capabilities, sample, close); a backend only makes proven connections and hands them over.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

GROUP_TOKEN = 0  #: control and token traffic, and every acknowledgement
GROUP_BULK = 1  #: embedding and bulk traffic
GROUP_CONTROL = 255  #: node to node control, not the engine's
GROUP_PROBE = 254  #: a measurement of one rail, between the two daemons
PLAIN_CHUNKS = 1  #: a feature of a data connection: payload travels without checksums of ours
UCX_FRAMES = 2  #: a feature of a data connection: frames go over UCX, beside the socket
GPU_FRAMES = (
    4  #: a feature of a data connection: large bodies go from GPU to GPU, beside the socket
)


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What one side says about itself when it connects.

    Parameters
    ----------
    node : str
        Node name, at most `limits.NAME_BYTES_MAX` bytes.
    number : int
        Node number, 0 while the registry has not given one.
    incarnation : int
        Of the engine, and of the daemon that it belongs to.
    group : int
        ``rail * 2 + GROUP_TOKEN`` or ``rail * 2 + GROUP_BULK``, rails as the accepting node lists its addresses; or
        `GROUP_CONTROL`.
    features : int
        Bits of optional protocol parts; both sides use the intersection.
    """

    node: str
    number: int
    incarnation: int
    group: int
    features: int = 0


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """The proven other side and what was agreed.

    `session` is the same number on both sides and for every connection between the same two incarnations;
    it is in every frame header, so that a frame of another life is refused.
    """

    node: str
    number: int
    incarnation: int
    group: int
    features: int
    version: int
    session: int


@dataclass(frozen=True, slots=True)
class LinkCapabilities:
    """What a backend can do here, found once by `probe`.

    Parameters
    ----------
    available : bool
        False: `reason` says what is missing and how to get it.
    memory_kinds : frozenset of str
        Memory it reads from and writes to without a copy of its own, e.g. ``{"host"}``.
    places_directly : bool
        Payload is received into its destination slot.
    chunk_bytes_max : int
        Largest chunk, in bytes.
    """

    available: bool
    reason: str
    memory_kinds: frozenset[str]
    places_directly: bool
    chunk_bytes_max: int


Accepted = Callable[[socket.socket, PeerInfo], Awaitable[None]]


class Listener(ABC):
    """A bound address; closing it ends no connection that was handed over."""

    @property
    @abstractmethod
    def address(self) -> str:
        """``host:port`` as bound (a port of 0 is replaced by the one given)."""

    @abstractmethod
    async def aclose(self) -> None:
        """Stop listening and end handshakes in progress. Idempotent."""


class LinkBackend(ABC):
    """One transport. Called from the daemon's event loop; safe for concurrent connects.

    Notes
    -----
    Foreign errors (OSError, TimeoutError) are mapped inside the backend, with their cause.
    A connection handed out is the caller's to close.
    """

    scheme: str

    @abstractmethod
    def probe(self) -> LinkCapabilities:
        """Return what works on this machine; never raises for a missing library or device."""

    @abstractmethod
    async def connect(
        self, address: str, local: NodeInfo, secret: bytes, *, expect: int | None = None
    ) -> tuple[socket.socket, PeerInfo]:
        """Connect to ``host:port`` and prove both sides.

        Parameters
        ----------
        expect : int, optional
            Incarnation that must answer.

        Returns
        -------
        (socket, PeerInfo)
            Non-blocking, with nothing read beyond the handshake.

        Raises
        ------
        PathBrokenError
            Nobody listens there, or it cannot be reached.
        DeadlineExceeded
            Not connected within `limits.CONNECT_S`, or no handshake within `limits.HANDSHAKE_S`.
        PeerProtocolError, PeerRestartedError
            See `fabric.links.handshake`.
        """

    @abstractmethod
    async def listen(
        self, address: str, local: NodeInfo, secret: bytes, accepted: Accepted
    ) -> Listener:
        """Bind ``host:port`` and call `accepted` with each proven connection.

        Raises
        ------
        BusyError
            The address is taken.
        ConfigError
            It is not an address of this machine.

        Notes
        -----
        At most `limits.HANDSHAKES_MAX` handshakes at once; further connections wait in the kernel's queue. A
        failed handshake closes its own socket and nothing else.
        """
