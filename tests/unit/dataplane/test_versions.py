"""Ends of other versions of a type on one channel: requests and replies, asyncio, batches, and what nobody knows."""

import contextlib
import threading

import numpy as np
import pytest

import fabric
from fabric import aio, errors
from fabric.messages import message_type
from tests.unit.dataplane.waiting import until


@fabric.message("versions.ask")
class Ask:
    n: int


@fabric.message("versions.ask", version=2)
class NewAsk:
    number: int = fabric.field(alias="n")
    why: str = "because"


@fabric.message("versions.told")
class Told:
    data: fabric.Tensor["n", "f32"] | None
    n: int


@fabric.message("versions.told", version=2)
class NewTold:
    n: int
    last: fabric.Tensor["m", "f32"] | None = None
    extra: list[fabric.Tensor["n", "f32"]] = fabric.field(default_factory=list)
    data: fabric.Tensor["n", "f32"] | None = None


def test_requester_and_responder_of_two_versions_understand_each_other(ports):
    left, right = ports
    left.declare("talk", Ask, reply=NewTold)
    asking = left.requester("talk", Ask, Told)
    answering = right.responder("talk", NewAsk, NewTold)
    seen = []

    def answer(ask):
        seen.append((ask.number, ask.why))
        return NewTold(ask.number, None, [np.float32([9]), np.float32([])], np.float32([1, 2]))

    def serve():
        with contextlib.suppress(errors.FabricError):  # its port was closed
            answering.serve(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    until(lambda: asking.targets())
    got = asking.call(Ask(4), deadline=20)
    assert (got.n, got.data.tolist(), seen) == (4, [1, 2], [(4, "because")])
    right.close()
    thread.join(20)


def test_batches_and_copies_of_other_versions_are_read(ports):
    left, right = ports
    left.declare("told", NewTold)
    out, inn = left.sender("told", NewTold), right.receiver("told", Told)
    sent = [NewTold(n, None, [np.float32([5])] * n, np.float32([n])) for n in range(3)]
    until(lambda: out.stats()["flows"])
    out.send_many(sent, deadline=20)
    many = []
    while len(many) < 3:
        many += inn.receive_many(3, timeout=20)
    assert [(m.n, m.data.tolist()) for m in many] == [(n, [n]) for n in range(3)]
    into = np.zeros(1, np.float32)
    out.send(sent[2], deadline=20)
    assert inn.receive_into(timeout=20, data=into).n == 2 and into.tolist() == [2]


async def test_an_event_loop_reads_other_versions_too(node):
    async with aio.attach("left", node.path) as left, aio.attach("right", node.path) as right:
        await left.declare("told", NewTold)
        out, inn = await left.sender("told", NewTold), await right.receiver("told", Told)
        await out.send(NewTold(3, None, [np.float32([5])], np.float32([7])), deadline=20)
        got = await inn.receive(20)
        assert (got.n, got.data.tolist()) == (3, [7])


def test_message_of_a_type_that_nobody_knows_ends_as_failed_and_is_named(node, ports, monkeypatch):
    left, right = ports
    left.declare("odd", Told, delivery="at_least_once")
    out, inn = left.sender("odd", Told), right.receiver("odd", Told)
    monkeypatch.setattr(
        node, "_ask_schema", lambda *_: {"schema": message_type(Ask).schema.text}, raising=True
    )
    inn._decode.__self__._decoders.clear()
    inn._decode.__self__._schemas.clear()
    native = type(
        "Native", (), {"type": 1, "meta": b"", "nack": lambda *_: None, "release": lambda _: None}
    )()
    with pytest.raises(
        errors.PeerProtocolError, match=r"channel 'odd'.*no versions.told@1.*'versions.ask'"
    ):
        inn.decode(native)
    out.close()
