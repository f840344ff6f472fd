"""The handshake state machine, then both faces over a socket pair."""

from __future__ import annotations

import asyncio
import socket

import msgspec
import pytest

from fabric import limits
from fabric.errors import BrokenError, DeadlineExceeded, PeerProtocolError, PeerRestartedError
from fabric.links import handshake as module
from fabric.links.handshake import GROUP_CONTROL, Handshake, NodeInfo, State, accept, connect

pytestmark = pytest.mark.promise("P10")

A = NodeInfo("a", 1, 1001, 0, features=0b11)
B = NodeInfo("b", 2, 2002, 0, features=0b01)
SECRET = b"correct horse"


def run(left: Handshake, right: Handshake) -> None:
    """Pass bytes back and forth, one at a time, until both are done."""
    queue = [(right, left.start())]
    while queue:
        side, data = queue.pop(0)
        other = left if side is right else right
        for byte in data:
            out = side.receive(bytes([byte]))
            if out:
                queue.append((other, out))


def pair(secret_a: bytes = SECRET, secret_b: bytes = SECRET) -> tuple[Handshake, Handshake]:
    return Handshake(A, secret_a, initiator=True), Handshake(B, secret_b, initiator=False)


def test_both_sides_agree_on_peer_session_and_features():
    left, right = pair()
    run(left, right)
    assert left.peer is not None and right.peer is not None
    assert (left.peer.node, left.peer.incarnation) == ("b", 2002)
    assert (right.peer.node, right.peer.incarnation) == ("a", 1001)
    assert left.peer.session == right.peer.session != 0
    assert left.peer.features == right.peer.features == 0b01
    assert left.peer.version == 1


def test_session_changes_with_either_incarnation():
    numbers = {module.session_id(NodeInfo("a", 1, i, 0), "b", j) for i in (1, 2) for j in (1, 2)}
    assert len(numbers) == 4


def test_acceptor_takes_the_group_of_the_initiator():
    left = Handshake(NodeInfo("a", 1, 1001, GROUP_CONTROL), SECRET, initiator=True)
    right = Handshake(B, SECRET, initiator=False)
    run(left, right)
    assert right.peer is not None and right.peer.group == GROUP_CONTROL


def test_wrong_secret_is_refused_by_the_acceptor_before_it_proves_anything():
    left, right = pair(secret_b=b"other")
    answer = right.receive(left.start())
    proof = left.receive(answer)
    with pytest.raises(PeerProtocolError, match="same secret"):
        right.receive(proof)
    assert right.state is State.FAILED and right.peer is None


def test_a_recorded_conversation_cannot_be_replayed():
    left, right = pair()
    hello = left.start()
    proof = left.receive(right.receive(hello))
    fresh = Handshake(B, SECRET, initiator=False)
    fresh.receive(hello)
    with pytest.raises(PeerProtocolError, match="proof"):
        fresh.receive(proof)


def test_a_reflected_proof_is_refused():
    left, right = pair()
    proof = left.receive(right.receive(left.start()))
    with pytest.raises(PeerProtocolError, match="proof"):
        left.receive(proof)


def test_an_echoing_peer_is_refused():
    left, _ = pair()
    with pytest.raises(PeerProtocolError, match="nonce"):
        left.receive(left.start())


def test_another_incarnation_than_expected_is_a_restart():
    left = Handshake(A, SECRET, initiator=True, expect=7)
    right = Handshake(B, SECRET, initiator=False)
    with pytest.raises(PeerRestartedError):
        left.receive(right.receive(left.start()))


def hello(**changes: object) -> bytes:
    fields = {"versions": [1, 1], "node": "x", "number": 1, "incarnation": 5, "group": 0,
              "nonce": b"n" * 32, "features": 0, **changes}  # fmt: skip
    return module._encode(module.Kind.HELLO, msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HT",
        module._HEAD.pack(b"FABH", 9, 0, 0),
        module._HEAD.pack(b"FABH", 1, 0, limits.HANDSHAKE_BYTES_MAX + 1),
        module._encode(module.Kind.HELLO, b"\xc1"),
        module._encode(module.Kind.PROOF, b"p" * 32),
        hello(node=""),
        hello(node="x" * (limits.NAME_BYTES_MAX + 1)),
        hello(number=1 << 16),
        hello(incarnation=0),
        hello(group=2 * limits.RAILS_PER_PEER_MAX),
        hello(nonce=b"short"),
        hello(features=True),
        hello(versions=[2, 9]),
        hello(versions=[1]),
        hello(versions=[3, 1]),
    ],
)
def test_malformed_hello_is_a_protocol_error(data: bytes):
    with pytest.raises(PeerProtocolError):
        Handshake(B, SECRET, initiator=False).receive(data)


def test_unknown_hello_fields_are_skipped():
    assert Handshake(B, SECRET, initiator=False).receive(hello(color="green"))


def test_a_name_at_the_limit_is_accepted():
    assert Handshake(B, SECRET, initiator=False).receive(hello(node="x" * limits.NAME_BYTES_MAX))


def test_an_empty_secret_is_refused():
    with pytest.raises(ValueError, match="secret"):
        Handshake(A, b"", initiator=True)


def test_sockets_come_back_with_nothing_read_beyond_the_handshake():
    async def main() -> None:
        one, two = socket.socketpair()
        (sock_a, peer_b), (sock_b, peer_a) = await asyncio.gather(
            connect(one, A, SECRET), accept(two, B, SECRET)
        )
        assert (peer_b.node, peer_a.node) == ("b", "a")
        sock_a.send(b"frame")
        assert await asyncio.get_running_loop().sock_recv(sock_b, 16) == b"frame"
        sock_a.close()
        sock_b.close()

    asyncio.run(main())


def test_the_refused_side_learns_why():
    async def main() -> None:
        one, two = socket.socketpair()
        results = await asyncio.gather(
            connect(one, A, SECRET), accept(two, B, b"other"), return_exceptions=True
        )
        assert isinstance(results[1], PeerProtocolError)
        assert isinstance(results[0], PeerProtocolError) and "refused" in str(results[0])
        assert one.fileno() == two.fileno() == -1

    asyncio.run(main())


def test_a_silent_peer_meets_the_deadline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "HANDSHAKE_S", 0.05)

    async def main() -> None:
        one, two = socket.socketpair()
        with pytest.raises(DeadlineExceeded, match="await hello"):
            await connect(one, A, SECRET)
        two.close()

    asyncio.run(main())


def test_a_closing_peer_is_broken():
    async def main() -> None:
        one, two = socket.socketpair()
        two.close()
        with pytest.raises(BrokenError):
            await connect(one, A, SECRET)

    asyncio.run(main())
