"""The tcp backend: proven connections over loopback, and what goes wrong before one exists."""

from __future__ import annotations

import asyncio
import socket

import pytest

from fabric import limits
from fabric.abc.link import LinkBackend, NodeInfo, PeerInfo
from fabric.errors import (
    BusyError,
    ConfigError,
    DeadlineExceeded,
    PathBrokenError,
    PeerProtocolError,
)
from fabric.links.tcp import TcpBackend, split_address

A = NodeInfo("a", 1, 1001, 1)
B = NodeInfo("b", 2, 2002, 0)
SECRET = b"correct horse"


def test_a_proven_connection_reaches_both_sides():
    async def main() -> None:
        backend: LinkBackend = TcpBackend()
        arrived: asyncio.Queue[tuple[socket.socket, PeerInfo]] = asyncio.Queue()

        async def accepted(sock: socket.socket, peer: PeerInfo) -> None:
            arrived.put_nowait((sock, peer))

        listener = await backend.listen("127.0.0.1:0", B, SECRET, accepted)
        mine, peer_b = await backend.connect(listener.address, A, SECRET, expect=2002)
        theirs, peer_a = await asyncio.wait_for(arrived.get(), 5)
        assert (peer_a.node, peer_a.group, peer_b.node) == ("a", 1, "b")
        assert peer_a.session == peer_b.session
        await listener.aclose()
        mine.send(b"x")
        assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b"x"
        mine.close()
        theirs.close()

    asyncio.run(main())


def test_a_stranger_is_refused_and_the_listener_goes_on():
    async def main() -> None:
        backend = TcpBackend()
        arrived: list[str] = []

        async def accepted(sock: socket.socket, peer: PeerInfo) -> None:
            arrived.append(peer.node)
            sock.close()

        listener = await backend.listen("127.0.0.1:0", B, SECRET, accepted)
        with pytest.raises(PeerProtocolError):
            await backend.connect(listener.address, A, b"other")
        assert arrived == []
        sock, _ = await backend.connect(listener.address, A, SECRET)
        sock.close()
        await listener.aclose()

    asyncio.run(main())


def test_an_address_in_use_is_busy():
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            with pytest.raises(BusyError, match="taken"):
                await TcpBackend().listen(f"127.0.0.1:{taken.getsockname()[1]}", B, SECRET, None)  # type: ignore[arg-type]

    asyncio.run(main())


def test_an_address_of_another_machine_is_a_configuration_error():
    async def main() -> None:
        with pytest.raises(ConfigError):
            await TcpBackend().listen("192.0.2.1:0", B, SECRET, None)  # type: ignore[arg-type]

    asyncio.run(main())


def test_nobody_listening_is_a_broken_path():
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(PathBrokenError, match="cannot reach"):
            await TcpBackend().connect(address, A, SECRET)

    asyncio.run(main())


def test_a_listener_that_never_speaks_meets_the_deadline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "HANDSHAKE_S", 0.05)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            with pytest.raises(DeadlineExceeded):
                await TcpBackend().connect(f"127.0.0.1:{silent.getsockname()[1]}", A, SECRET)

    asyncio.run(main())


@pytest.mark.parametrize("address", ["", "host", ":1", "host:", "host:x", "host:65536", "host:-1"])
def test_what_is_not_an_address_is_refused(address: str):
    with pytest.raises(ConfigError, match="host:port"):
        split_address(address)


def test_addresses_of_both_families_are_split():
    assert split_address("127.0.0.1:65535") == ("127.0.0.1", 65535)
    assert split_address("[::1]:80") == ("::1", 80)
