"""Where uses differ in what they are: loans with much beside their tensors, batches by policy, a loop that goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fabric
from fabric import aio, errors, limits
from fabric.testing.local import LocalFabric
from tests.conformance.uses import MIXED_USES, USES, AsyncioSeat, seat
from tests.conformance.uses_content import CONTENTS, Plain
from tests.conformance.uses_places import in_a_thread, numbered, until

CREDIT = 4


@fabric.message("uses.letter")
class Letter:
    text: str
    data: fabric.Tensor["n", "u8"]


@pytest.fixture
def node() -> Iterator[LocalFabric]:
    with LocalFabric() as local:
        yield local


@pytest.fixture
async def faces(node: LocalFabric) -> Any:
    async with aio.attach("left", node.path) as left, aio.attach("right", node.path) as right:
        yield left, right


async def joined(faces: Any, type: Any = bytes, **options: Any) -> tuple[aio.Sender, aio.Receiver]:
    left, right = faces
    await left.declare("c", type, **options)
    out, inn = await left.sender("c", type), await right.receiver("c", type, messages=CREDIT)
    while not out.stats()["flows"]:
        await asyncio.sleep(0.002)
    return out, inn


# ---- loans


@pytest.mark.parametrize("size", [10, 3_000_000], ids=["page", "book"])
async def test_loan_carries_scalars_that_need_a_slot_themselves(faces: Any, size: int) -> None:
    out, inn = await joined(faces, Letter)
    text = "é" * size if size > 1000 else "é" * 5000
    text = text[: limits.STRING_BYTES_MAX // 2]
    with out.sync.loan(data=(size,), deadline=5) as draft:
        draft.text, draft.data[...] = text, 7
    async with out.loan(data=(size,), deadline=5) as draft:
        draft.text, draft.data[...] = text, 8
    for fill in (7, 8):
        got = await inn.receive(5)
        assert got.text == text and got.data.shape == (size,) and (got.data == fill).all()
        got.release()
    until("the return of every slot", lambda: slots_taken(out) == 0)


def slots_taken(out: Any) -> int:
    sync = getattr(out, "sync", out)
    return int(sync._port.native.stats()["slots_taken"])


async def test_loan_that_waits_for_room_leaves_the_loop_to_others(faces: Any) -> None:
    out, inn = await joined(faces)
    await out.send_many(numbered(CREDIT), deadline=5)
    turns = []

    async def lend() -> None:
        async with out.loan(100, key="k", deadline=10) as memory:
            memory[:] = b"L" * 100
        turns.append("sent")

    lending = asyncio.ensure_future(lend())
    await asyncio.sleep(0.05)
    assert turns == [] and not lending.done()
    assert await inn.receive_many_bytes(CREDIT, 5) == numbered(CREDIT)  # in the same loop
    assert await inn.receive_bytes(5) == b"L" * 100
    await lending
    assert turns == ["sent"]


async def test_loan_without_room_ends_at_its_deadline_and_gives_its_slot_back(faces: Any) -> None:
    out, inn = await joined(faces)
    await out.send_many(numbered(CREDIT), deadline=5)
    with pytest.raises(errors.DeadlineExceeded, match="'c'"):
        async with out.loan(10, deadline=0.05):
            pass
    with pytest.raises(errors.WouldBlock, match="'c'"):
        async with out.loan(10, deadline=0):
            pass
    assert slots_taken(out) == 0
    assert await inn.receive_many_bytes(9, 5) == numbered(CREDIT)


async def test_cancelled_or_failed_loan_sends_nothing_and_gives_its_slot_back(faces: Any) -> None:
    out, inn = await joined(faces)
    await out.send_many(numbered(CREDIT), deadline=5)

    async def lend(failure: BaseException | None = None) -> None:
        async with out.loan(10, deadline=10):
            if failure is not None:
                raise failure

    waiting = asyncio.ensure_future(lend())
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(RuntimeError, match="the writer"):
        await lend(RuntimeError("the writer failed"))
    assert slots_taken(out) == 0
    assert await inn.receive_many_bytes(9, 5) == numbered(CREDIT)
    assert await inn.receive(0) is None


def test_closed_sender_lends_nothing(node: LocalFabric) -> None:
    with fabric.attach("left", node.path) as left:
        for content in CONTENTS.values():
            left.declare(content.name, content.type)
            sender = left.sender(content.name, content.type)
            sender.close()
            with pytest.raises(errors.ClosedError, match=content.name):
                content.lend(sender, 10).__enter__()


# ---- policies


@pytest.mark.parametrize("use", [*USES, *MIXED_USES])
def test_message_whose_policy_chose_a_flow_that_is_gone_goes_another_way(
    node: LocalFabric, use: str
) -> None:
    left, right = seat(use, "left", node.path), seat(use, "right", node.path)
    try:
        node.routes["c"] = lambda fields, flows: (12_345, 60.0)
        left.declare("c", Plain, route="late")
        out, inn = left.sender("c", Plain), right.receiver("c", Plain)
        until("the flow", lambda: out.flow_count() == 1)
        values = [b"one", b"2" * 9000, b"three"]
        assert out.send(values, key="k", deadline=5.0) == 3
        assert inn.read(3) == values
        until("the return of every slot", lambda: slots_taken(out.end) == 0)
    finally:
        left.close()
        right.close()


# ---- batches


@pytest.mark.parametrize("overflow", ["block", "reject"])
@pytest.mark.parametrize("use", ["batched", "asyncio batched"], ids=["batched", "asyncio_batched"])
def test_batch_that_a_policy_routes_tells_how_many_found_room(
    node: LocalFabric, use: str, overflow: str
) -> None:
    left, right = seat(use, "left", node.path), seat(use, "right", node.path)
    try:
        node.routes["c"] = lambda fields, flows: (flows[0], 60.0)
        left.declare("c", Plain, route="mine", overflow=overflow)
        out = left.sender("c", Plain)
        inn = right.receiver("c", Plain, messages=CREDIT)
        until("the flow", lambda: out.flow_count() == 1)
        assert out.send(numbered(10), deadline=0.2) == CREDIT
        with pytest.raises((errors.DeadlineExceeded, errors.RejectedError)):
            out.send(numbered(10), deadline=0.05)
        inn.read(CREDIT, 0.2)
        assert out.send(numbered(CREDIT), deadline=5.0) == CREDIT
        with pytest.raises(errors.TypeMismatchError):
            out.send([b"good", None])  # type: ignore[list-item]
        assert inn.read(CREDIT) == numbered(CREDIT)
        assert inn.take(1, 0.0) == []
    finally:
        left.close()
        right.close()


# ---- the loop


async def test_bytes_and_arrays_are_received_in_the_loop_as_outside_of_it(faces: Any) -> None:
    out, inn = await joined(faces)
    assert await inn.receive_bytes(0) is None and await inn.receive_many_bytes(3, 0.01) == []
    await out.send_many([b"one", b"", b"3" * 9000], deadline=5)
    assert await inn.receive_bytes(5) == b"one" and await inn.receive_bytes(5) == b""
    assert await inn.receive_many_bytes(3, 5) == [b"3" * 9000]
    left, right = faces
    await left.declare("letters", Letter)
    letters = await left.sender("letters", Letter)
    box = await right.receiver("letters", Letter)
    await letters.send(Letter("t", np.arange(100, dtype=np.uint8)), deadline=5)
    target = np.zeros(100, np.uint8)
    with pytest.raises(errors.TypeMismatchError, match="no tensor field other"):
        await box.receive_into(5, other=target)
    got = await box.receive_into(5, data=target)
    assert got.text == "t" and (target == np.arange(100)).all()


def test_loop_rests_when_its_port_breaks(node: LocalFabric, monkeypatch: Any) -> None:
    """Nobody drains the descriptor of a broken port: a loop that went on looking at it would not rest any more."""
    monkeypatch.setattr(limits, "RECONNECT_S", 0.1)
    left = AsyncioSeat("left", node.path, "adaptive")
    left.declare("c", Plain)
    inn = left.receiver("c", Plain)
    waiting, ended = in_a_thread(lambda: inn.take(1, 20.0))
    node.stop_listening()
    waiting.join(10.0)
    assert isinstance(ended[0], errors.FabricError)
    clock = time.pthread_getcpuclockid(left.loop.thread.ident)
    before = time.clock_gettime(clock)
    time.sleep(0.5)
    assert time.clock_gettime(clock) - before < 0.02  # also where others want the core
    left.close()


# ---- a daemon that is away


@pytest.mark.parametrize("use", USES)
def test_messages_flow_on_while_the_daemon_is_away(node: LocalFabric, use: str) -> None:
    left, right = seat(use, "left", node.path), seat(use, "right", node.path)
    try:
        for content in CONTENTS.values():
            left.declare(content.name, content, delivery="at_least_once")
        outs = [left.sender(name, content) for name, content in CONTENTS.items()]
        inns = [
            right.receiver(name, content, messages=CREDIT) for name, content in CONTENTS.items()
        ]
        for out, inn in zip(outs, inns, strict=True):
            out.send([b"before" * 2000], deadline=5.0)
            inn.read(1)
        node.stop_listening()
        until("the daemon's absence", lambda: not left.port.connection.is_connected)
        for out, inn in zip(outs, inns, strict=True):
            values = [*numbered(3 * CREDIT), b"in a slot" * 1000]
            sending = threading.Thread(target=out.send, args=(values,), kwargs={"deadline": 10.0})
            sending.start()
            assert inn.read(len(values)) == values
            sending.join()
            out.flush()
        node.listen()
        until("its return", lambda: left.port.connection.is_connected)
        left.declare("after", Plain)
    finally:
        left.close()
        right.close()
