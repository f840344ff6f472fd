"""The `tcp` backend: plain sockets, made here, proven by the handshake, then moved by the engine's TcpLink.

Runs in the daemon's event loop. It owns sockets until `accepted` or the caller takes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Iterator

from fabric import limits
from fabric.abc.link import Accepted, LinkBackend, LinkCapabilities, Listener, NodeInfo, PeerInfo
from fabric.errors import BusyError, ConfigError, DeadlineExceeded, FabricError, PathBrokenError
from fabric.links import handshake

log = logging.getLogger("fabric.links.tcp")


def split_address(address: str) -> tuple[str, int]:
    """Return (host, port) of ``host:port`` or ``[v6]:port``; `ConfigError` names what is wrong."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"'{address}' is not host:port", address=address)
    return host.removeprefix("[").removesuffix("]"), int(port)


class TcpBackend(LinkBackend):
    """TCP between daemons. See `LinkBackend` for the contract."""

    scheme = "tcp"

    def probe(self) -> LinkCapabilities:
        return LinkCapabilities(True, "", frozenset({"host"}), True, 1 << 20)

    async def connect(
        self, address: str, local: NodeInfo, secret: bytes, *, expect: int | None = None
    ) -> tuple[socket.socket, PeerInfo]:
        host, port = split_address(address)
        with _mapped(address):
            async with asyncio.timeout(limits.CONNECT_S):
                sock = await _connect_any(host, port)
        return await handshake.connect(sock, local, secret, expect=expect)

    async def listen(
        self, address: str, local: NodeInfo, secret: bytes, accepted: Accepted
    ) -> TcpListener:
        host, port = split_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            server = socket.create_server(
                (host, port), family=family, backlog=limits.HANDSHAKES_MAX
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise BusyError(
                    f"{address} is taken; stop what listens there or choose another port",
                    address=address,
                ) from error
            raise ConfigError(f"cannot listen on {address}: {error}", address=address) from error
        return TcpListener(server, local, secret, accepted)


class TcpListener(Listener):
    """Accepts until closed; each handshake is a task of its own."""

    def __init__(
        self, server: socket.socket, local: NodeInfo, secret: bytes, accepted: Accepted
    ) -> None:
        server.setblocking(False)
        self._server = server
        self._local, self._secret, self._accepted = local, secret, accepted
        self._slots = asyncio.Semaphore(limits.HANDSHAKES_MAX)
        self._running: set[asyncio.Task[None]] = set()
        self._loop_task = asyncio.create_task(self._accept_loop())

    @property
    def address(self) -> str:
        host, port = self._server.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def aclose(self) -> None:
        for task in (self._loop_task, *self._running):
            task.cancel()
        await asyncio.gather(self._loop_task, *self._running, return_exceptions=True)
        self._server.close()

    async def _accept_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                sock, _ = await loop.sock_accept(self._server)
            except (
                OSError
            ) as error:  # out of descriptors, or the peer left already: the next one may do
                log.warning("accept failed: %s", error)
                self._slots.release()
                await asyncio.sleep(limits.ACCEPT_RETRY_S)
                continue
            task = asyncio.create_task(self._serve(sock))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _serve(self, sock: socket.socket) -> None:
        try:
            proven, peer = await handshake.accept(sock, self._local, self._secret)
        except FabricError as error:
            log.warning("connection refused: %s", error)
            return
        finally:
            self._slots.release()
        await self._accepted(proven, peer)


async def _connect_any(host: str, port: int) -> socket.socket:
    """Try each address of the name; the last failure is the one to raise."""
    loop = asyncio.get_running_loop()
    failure: OSError = OSError(errno.EHOSTUNREACH, f"'{host}' has no address")
    for family, kind, proto, _, where in await loop.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        sock = socket.socket(family, kind, proto)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, where)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


@contextlib.contextmanager
def _mapped(address: str) -> Iterator[None]:
    """Foreign errors of connecting, mapped here and nowhere else."""
    try:
        yield
    except TimeoutError as error:
        raise DeadlineExceeded(f"{address} did not answer within {limits.CONNECT_S:g} s") from error
    except OSError as error:
        raise PathBrokenError(f"cannot reach {address}: {error}", address=address) from error
