"""A handshake that is cut, bent or replayed at any byte: a typed error, closed sockets, and the next one succeeds."""

from __future__ import annotations

import asyncio
import socket

import pytest

from fabric.errors import BrokenError, PeerProtocolError
from fabric.links.handshake import Handshake, NodeInfo, State, accept, connect

pytestmark = [pytest.mark.promise("P2"), pytest.mark.promise("P10")]

A = NodeInfo("a", 1, 1001, 0)
B = NodeInfo("b", 2, 2002, 0)
SECRET = b"correct horse"


def conversation() -> tuple[bytes, bytes]:
    """Return all bytes of both sides of one handshake that succeeds."""
    left, right = Handshake(A, SECRET, initiator=True), Handshake(B, SECRET, initiator=False)
    first = left.start()
    second = right.receive(first)
    third = left.receive(second)
    fourth = right.receive(third)
    assert left.receive(fourth) == b"" and left.peer is not None and right.peer is not None
    return first + third, second + fourth


async def cut(side: str, at: int) -> None:
    """Play the other side live up to byte `at` of what it says, then close."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    run = accept(ours, B, SECRET) if side == "acceptor" else connect(ours, A, SECRET)
    task = asyncio.ensure_future(run)
    other = Handshake(
        *((A, SECRET) if side == "acceptor" else (B, SECRET)), initiator=side == "acceptor"
    )
    left, out = at, other.start()
    while left > 0 and other.peer is None:
        await loop.sock_sendall(theirs, out[:left])
        left -= len(out[:left])
        if left > 0:
            out = other.receive(await loop.sock_recv(theirs, other.wanted))
    theirs.close()
    with pytest.raises(BrokenError):
        await asyncio.wait_for(task, 5)
    assert ours.fileno() == -1


@pytest.mark.parametrize("side", ["acceptor", "initiator"])
def test_a_handshake_cut_at_every_byte_is_broken_and_its_socket_closed(side: str) -> None:
    said = conversation()[0 if side == "acceptor" else 1]

    async def main() -> None:
        for at in range(len(said)):
            await cut(side, at)

    asyncio.run(main())


def test_a_byte_changed_anywhere_is_refused() -> None:
    length = len(Handshake(A, SECRET, initiator=True).start())
    reserved = 5  # written 0 and not looked at (WIRE.md §1)
    for at in (n for n in range(length) if n != reserved):
        left, right = Handshake(A, SECRET, initiator=True), Handshake(B, SECRET, initiator=False)
        bent = bytearray(left.start())
        bent[at] ^= 0x01
        try:
            answer = right.receive(bytes(bent))
            proof = left.receive(answer)
        except PeerProtocolError:
            continue  # one of them saw it in the hello
        if proof:
            with pytest.raises(PeerProtocolError):
                right.receive(proof)
        assert right.peer is None, f"byte {at} was changed and nobody noticed"


@pytest.mark.parametrize("at", range(32))
def test_a_proof_with_one_byte_changed_is_refused(at: int) -> None:
    left, right = Handshake(A, SECRET, initiator=True), Handshake(B, SECRET, initiator=False)
    proof = bytearray(left.receive(right.receive(left.start())))
    proof[-32 + at] ^= 0x80
    with pytest.raises(PeerProtocolError, match="proof"):
        right.receive(bytes(proof))
    assert right.state is State.FAILED


def test_a_proof_of_an_earlier_incarnation_is_refused() -> None:
    """What an earlier life of the node said does not help a later one: nonces and incarnations are in every proof."""
    old, right = Handshake(A, SECRET, initiator=True), Handshake(B, SECRET, initiator=False)
    stale = old.receive(right.receive(old.start()))
    new = Handshake(NodeInfo("a", 1, 1002, 0), SECRET, initiator=True)
    again = Handshake(B, SECRET, initiator=False)
    new.receive(again.receive(new.start()))
    with pytest.raises(PeerProtocolError, match="proof"):
        again.receive(stale)
