"""Handshake of a TCP connection between two nodes (docs/WIRE.md §5): versions, identities, proofs.

`Handshake` is sans-IO: bytes in, bytes out, one `PeerInfo` at the end. `connect` and `accept` drive it
over asyncio on a plain non-blocking socket and return that socket, so that the caller may hand its fd to
the engine. Nothing a peer says is used before its proof held; every message is bounded, the whole
exchange has one deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import hmac
import secrets
import socket
import struct
from typing import Any, Final

import msgspec

from fabric import limits
from fabric.abc.link import GROUP_CONTROL, GROUP_PROBE, NodeInfo, PeerInfo
from fabric.errors import BrokenError, DeadlineExceeded, PeerProtocolError, PeerRestartedError

MAGIC: Final = b"FABH"
VERSION_MIN: Final = 1
VERSION_MAX: Final = 1
_HEAD = struct.Struct("<4sBBH")  # magic, kind, 0, body length
GROUPS: Final = 2 * limits.RAILS_PER_PEER_MAX  # rail * 2 + GROUP_TOKEN or GROUP_BULK
_PROOF_BYTES: Final = 32
_NONCE_BYTES: Final = 32


class Kind(enum.IntEnum):
    """Messages of the handshake."""

    HELLO = 1
    PROOF = 2
    REFUSED = 3


class State(enum.Enum):
    """Where a handshake stands."""

    AWAIT_HELLO = "await hello"
    AWAIT_PROOF = "await proof"
    DONE = "done"
    FAILED = "failed"


class Handshake:
    """One side of one connection. No IO, no clock; one user at a time.

    Parameters
    ----------
    local : NodeInfo
        This side. For the accepting side `group` is taken from the peer's HELLO.
    secret : bytes
        The cluster's shared secret; both sides need the same.
    initiator : bool
        True on the side that connected. Both proofs name their side, so a reflected proof is refused.
    expect : int, optional
        Incarnation that the peer must have; another is `PeerRestartedError`.
    nonce : bytes, optional
        32 fresh random bytes; tests give their own.
    """

    def __init__(
        self,
        local: NodeInfo,
        secret: bytes,
        *,
        initiator: bool,
        expect: int | None = None,
        nonce: bytes | None = None,
    ) -> None:
        if not secret:
            raise ValueError(
                "the handshake needs a shared secret: give both nodes the same --secret-file"
            )
        self._local = local
        self._secret = secret
        self._initiator = initiator
        self._expect = expect
        self._nonce = nonce if nonce is not None else secrets.token_bytes(_NONCE_BYTES)
        self._buffer = bytearray()
        self._hello = b""
        self._peer_hello: dict[str, Any] = {}
        self._transcript = b""
        self.state = State.AWAIT_HELLO
        self.peer: PeerInfo | None = None

    def start(self) -> bytes:
        """Return the first bytes to send: the initiator's HELLO, nothing on the other side."""
        return self._make_hello(self._local.group) if self._initiator else b""

    @property
    def wanted(self) -> int:
        """How many bytes to read next, exactly: what follows the handshake stays in the socket."""
        if len(self._buffer) < _HEAD.size:
            return _HEAD.size - len(self._buffer)
        return _HEAD.size + self._body_bytes() - len(self._buffer)

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the peer and return bytes to send.

        Raises
        ------
        PeerProtocolError
            A malformed or oversized message, no common version, a wrong proof, or the peer refused.
        PeerRestartedError
            The peer's incarnation is not the expected one.
        """
        self._buffer += data
        out = b""
        try:
            while self.state in (State.AWAIT_HELLO, State.AWAIT_PROOF):
                if (
                    len(self._buffer) < _HEAD.size
                    or len(self._buffer) < _HEAD.size + self._body_bytes()
                ):
                    return out
                out += self._message()
        except (PeerProtocolError, PeerRestartedError):
            self.state = State.FAILED
            raise
        return out

    def refusal(self, reason: str) -> bytes:
        """Return the message that tells the peer why; it carries no secret."""
        return _encode(Kind.REFUSED, reason.encode()[: limits.HANDSHAKE_REASON_BYTES_MAX])

    # ---- messages
    def _body_bytes(self) -> int:
        magic, kind, _, length = _HEAD.unpack_from(self._buffer)
        if magic != MAGIC:
            raise _broken(
                f"the connection does not begin like a fabric node's: {bytes(self._buffer[:8])!r}"
            )
        if kind not in set(Kind) or length > limits.HANDSHAKE_BYTES_MAX:
            raise _broken(f"handshake message of kind {kind} and {length} bytes")
        return int(length)

    def _message(self) -> bytes:
        length = self._body_bytes()
        kind = Kind(self._buffer[4])
        body = bytes(self._buffer[_HEAD.size : _HEAD.size + length])
        del self._buffer[: _HEAD.size + length]
        if kind is Kind.REFUSED:
            raise _broken(f"the peer refused the connection: {body.decode(errors='replace')[:200]}")
        if kind is Kind.HELLO and self.state is State.AWAIT_HELLO:
            return self._on_hello(body)
        if kind is Kind.PROOF and self.state is State.AWAIT_PROOF:
            return self._on_proof(body)
        raise _broken(f"{kind.name} while this side is in state '{self.state.value}'")

    def _make_hello(self, group: int) -> bytes:
        fields = {
            "versions": [VERSION_MIN, VERSION_MAX],
            "node": self._local.node,
            "number": self._local.number,
            "incarnation": self._local.incarnation,
            "group": group,
            "nonce": self._nonce,
            "features": self._local.features,
        }
        self._hello = msgspec.msgpack.encode(fields)
        return _encode(Kind.HELLO, self._hello)

    def _on_hello(self, body: bytes) -> bytes:
        hello = _check_hello(body)
        self._peer_hello = hello
        if self._expect is not None and hello["incarnation"] != self._expect:
            raise PeerRestartedError(
                f"node {hello['node']} has incarnation {hello['incarnation']}, expected {self._expect}",
                found=hello["incarnation"],
                expected=self._expect,
            )
        if hello["nonce"] == self._nonce:
            raise _broken("the peer sent our own nonce back")
        out = b""
        if not self._initiator:
            out = self._make_hello(hello["group"])
        elif hello["group"] != self._local.group:
            raise _broken(
                f"the peer answered for group {hello['group']}, asked for {self._local.group}"
            )
        first, second = (self._hello, body) if self._initiator else (body, self._hello)
        self._transcript = hashlib.sha256(struct.pack("<I", len(first)) + first + second).digest()
        self.state = State.AWAIT_PROOF
        # The initiator proves first: a stranger gets no proof to work on.
        return out + self._make_proof() if self._initiator else out

    def _make_proof(self) -> bytes:
        return _encode(Kind.PROOF, self._proof(self._initiator))

    def _proof(self, initiator: bool) -> bytes:
        side = b"fabric initiator" if initiator else b"fabric acceptor"
        return hmac.new(self._secret, side + self._transcript, hashlib.sha256).digest()

    def _on_proof(self, body: bytes) -> bytes:
        if len(body) != _PROOF_BYTES or not hmac.compare_digest(
            body, self._proof(not self._initiator)
        ):
            raise _broken("the peer's proof does not hold: both nodes need the same secret")
        hello = self._peer_hello
        self.peer = PeerInfo(
            node=hello["node"],
            number=hello["number"],
            incarnation=hello["incarnation"],
            group=hello["group"],
            features=hello["features"] & self._local.features,
            version=min(hello["versions"][1], VERSION_MAX),
            session=session_id(self._local, hello["node"], hello["incarnation"]),
        )
        self.state = State.DONE
        return b"" if self._initiator else self._make_proof()


def session_id(local: NodeInfo, peer_node: str, peer_incarnation: int) -> int:
    """Number of the session between two incarnations: 63 bits, equal on both sides, never 0."""
    ends = sorted([(local.node, local.incarnation), (peer_node, peer_incarnation)])
    digest = hashlib.sha256(msgspec.msgpack.encode(ends)).digest()
    return int.from_bytes(digest[:8], "little") >> 1 | 1


async def connect(
    sock: socket.socket,
    local: NodeInfo,
    secret: bytes,
    *,
    expect: int | None = None,
    within_s: float = limits.HANDSHAKE_S,
) -> tuple[socket.socket, PeerInfo]:
    """Run the connecting side on `sock` (connected, any mode; non-blocking after).

    Returns
    -------
    (socket, PeerInfo)
        The same socket, with no byte read beyond the handshake, and the proven peer. On any error,
        cancellation included, the socket is closed.

    Raises
    ------
    PeerProtocolError, PeerRestartedError
        See `Handshake.receive`.
    DeadlineExceeded
        Not done within `within_s`.
    BrokenError
        The connection ended meanwhile.
    """
    return await _drive(sock, Handshake(local, secret, initiator=True, expect=expect), within_s)


async def accept(
    sock: socket.socket, local: NodeInfo, secret: bytes, *, expect: int | None = None
) -> tuple[socket.socket, PeerInfo]:
    """Run the accepting side on `sock`; as `connect`. The group is the one the peer asked for."""
    done = Handshake(local, secret, initiator=False, expect=expect)
    return await _drive(sock, done, limits.HANDSHAKE_S)


async def _drive(
    sock: socket.socket, handshake: Handshake, within_s: float
) -> tuple[socket.socket, PeerInfo]:
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(within_s):
            first = handshake.start()
            if first:
                await loop.sock_sendall(sock, first)
            while handshake.peer is None:
                data = await loop.sock_recv(sock, handshake.wanted)
                if not data:
                    raise BrokenError(
                        "the peer closed the connection during the handshake; see its log"
                    )
                await _answer(loop, sock, handshake, data)
    except TimeoutError as error:
        sock.close()
        raise DeadlineExceeded(
            f"no handshake within {within_s:g} s, in state '{handshake.state.value}'"
        ) from error
    except OSError as error:
        sock.close()
        raise BrokenError(f"the connection broke during the handshake: {error}") from error
    except BaseException:
        sock.close()
        raise
    return sock, handshake.peer


async def _answer(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, handshake: Handshake, data: bytes
) -> None:
    try:
        out = handshake.receive(data)
    except (PeerProtocolError, PeerRestartedError) as error:
        with contextlib.suppress(OSError):  # the peer may be gone; our error is the one to raise
            await loop.sock_sendall(sock, handshake.refusal(str(error)))
        raise
    if out:
        await loop.sock_sendall(sock, out)


def _encode(kind: Kind, body: bytes) -> bytes:
    return _HEAD.pack(MAGIC, kind, 0, len(body)) + body


_HELLO_TYPES: Final[dict[str, type]] = {
    "versions": list, "node": str, "number": int, "incarnation": int, "group": int, "nonce": bytes, "features": int,
}  # fmt: skip


def _check_hello(body: bytes) -> dict[str, Any]:
    try:
        hello = msgspec.msgpack.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _broken("HELLO is not a map") from error
    for name, kind in _HELLO_TYPES.items():  # unknown fields are skipped
        if type(hello.get(name)) is not kind:
            raise _broken(f"HELLO field '{name}' is missing or not {kind.__name__}")
    low, high = _versions(hello["versions"])
    if high < VERSION_MIN or low > VERSION_MAX:
        here = f"{VERSION_MIN}..{VERSION_MAX}"
        raise _broken(f"no common version: peer {low}..{high}, here {here}; update the older node")
    in_range = (
        0 < len(hello["node"].encode()) <= limits.NAME_BYTES_MAX
        and 0 <= hello["number"] < 1 << 16
        and 0 < hello["incarnation"] < 1 << 64
        and (0 <= hello["group"] < GROUPS or hello["group"] in (GROUP_PROBE, GROUP_CONTROL))
        and len(hello["nonce"]) == _NONCE_BYTES
        and 0 <= hello["features"] < 1 << 64
    )
    if not in_range:
        raise _broken("a HELLO field is out of range")
    return hello


def _versions(value: list[Any]) -> tuple[int, int]:
    if len(value) != 2 or any(type(item) is not int for item in value) or value[0] > value[1]:
        raise _broken("HELLO field 'versions' is not [lowest, highest]")
    return value[0], value[1]


def _broken(reason: str) -> PeerProtocolError:
    return PeerProtocolError(f"handshake: {reason}")


__all__ = [
    "GROUP_CONTROL",
    "Handshake",
    "Kind",
    "NodeInfo",
    "PeerInfo",
    "State",
    "accept",
    "connect",
    "session_id",
]
