"""The asyncio face: same values and errors as the synchronous one, no thread per call."""

import asyncio
import threading
import time

import numpy as np
import pytest

import fabric
from fabric import aio, errors


@pytest.fixture
async def loops(node):
    async with aio.attach("left", node.path) as left, aio.attach("right", node.path) as right:
        yield left, right


async def pair(loops, types, name="notes", **options):
    left, right = loops
    await left.declare(name, types.note, pattern="queue", **options)
    return await left.sender(name, types.note), await right.receiver(name, types.note)


async def flow_made(node):
    """Wait until sender and receiver are connected, before a short deadline counts."""
    deadline = time.monotonic() + 5
    while not node.flows:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_messages_arrive_in_order(loops, types):
    sender, receiver = await pair(loops, types)
    for number in range(50):
        await sender.send(types.note("n", number), deadline=5)
    assert [(await receiver.receive(5)).number for _ in range(50)] == list(range(50))
    await sender.flush(5)
    assert sender.stats()["delivered"] == 50


async def test_waiting_receiver_wakes_promptly_for_each_message(loops, types):
    sender, receiver = await pair(loops, types)
    await sender.send(types.note("warm"), deadline=5)
    await receiver.receive(5)
    started = time.monotonic()
    for number in range(20):
        waiting = asyncio.ensure_future(receiver.receive(5))
        await asyncio.sleep(0)
        await sender.send(types.note("n", number), deadline=5)
        assert (await waiting).number == number
    assert time.monotonic() - started < 2, "twenty wake-ups, none by the fallback timer"


async def test_waiting_tasks_use_no_threads(loops, types):
    _, receiver = await pair(loops, types)
    before = threading.active_count()
    waiting = [asyncio.ensure_future(receiver.receive(5)) for _ in range(50)]
    await asyncio.sleep(0.05)
    assert threading.active_count() <= before
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_cancelled_receive_loses_no_message(loops, types):
    sender, receiver = await pair(loops, types)
    waiting = asyncio.ensure_future(receiver.receive(5))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await sender.send(types.note("kept"), deadline=5)
    assert (await receiver.receive(5)).text == "kept"


async def test_sender_waits_for_credit_and_names_what_was_full(node, loops, types):
    left, right = loops
    await left.declare("few", types.note, pattern="queue")
    sender = await left.sender("few", types.note)
    receiver = await right.receiver("few", types.note, messages=4)
    await flow_made(node)
    with pytest.raises(errors.DeadlineExceeded, match="few"):
        for _ in range(1000):
            await sender.send(types.note("x"), deadline=0.1)
    with pytest.raises(errors.WouldBlock):
        await sender.send(types.note("x"), deadline=0)

    async def drain():
        await asyncio.sleep(0.05)
        while await receiver.receive(0) is not None:
            pass

    draining = asyncio.ensure_future(drain())
    await sender.send(types.note("x"), deadline=5)
    await draining


async def test_tensors_and_batches_travel(loops, types):
    left, right = loops
    await left.declare("blocks", types.block)
    sender, receiver = (
        await left.sender("blocks", types.block),
        await right.receiver("blocks", types.block),
    )
    assert await sender.send_many([types.make_block(n, 400) for n in range(4)], deadline=5) == 4
    with sender.loan(data=(10, 10), deadline=5) as draft:
        draft.step = 4
        draft.data[...] = 2
    seen = []
    while len(seen) < 5:
        seen += await receiver.receive_many(5, 5)
    assert [m.step for m in seen] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(seen[3].data, types.make_block(3, 400).data)


async def serve(responder, types):
    async for request in responder:
        if request.message.n < 0:
            await request.fail(ValueError("negative"))
        elif request.message.n >= 100:

            async def answers(n=request.message.n):
                for i in range(n - 100):
                    yield types.answer(i)

            await request.stream(answers())
        else:
            await request.reply(types.answer(request.message.n * 2))


async def test_calls_streams_and_errors(loops, types):
    left, right = loops
    await left.declare("embed", types.query, reply=types.answer)
    requester = await left.requester("embed", types.query, types.answer)
    responder = await right.responder("embed", types.query, types.answer)
    serving = asyncio.ensure_future(serve(responder, types))
    answers = await asyncio.gather(
        *(requester.call(types.query(n), deadline=10) for n in range(40))
    )
    assert [a.value for a in answers] == [2 * n for n in range(40)]
    assert [a.value async for a in requester.stream(types.query(105), deadline=5)] == [
        0,
        1,
        2,
        3,
        4,
    ]
    with pytest.raises(errors.RemoteError, match="negative"):
        await requester.call(types.query(-1), deadline=5)
    await responder.close()
    await serving
    assert requester.sync.in_flight() == []


async def test_cancelled_task_cancels_the_request(loops, types):
    left, right = loops
    await left.declare("embed", types.query, reply=types.answer)
    requester = await left.requester("embed", types.query, types.answer)
    responder = await right.responder("embed", types.query, types.answer)
    asking = asyncio.ensure_future(requester.call(types.query(1), deadline=10))
    request = await responder.receive(5)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    deadline = time.monotonic() + 5
    while not request.cancelled and time.monotonic() < deadline:
        await asyncio.sleep(0.005)
    with pytest.raises(errors.CancelledRequestError):
        await request.reply(types.answer(1))


async def test_call_ends_at_its_deadline(node, loops, types):
    left, right = loops
    await left.declare("embed", types.query, reply=types.answer)
    requester = await left.requester("embed", types.query, types.answer)
    with pytest.raises(errors.DeadlineExceeded, match="no responder"):
        await requester.call(types.query(1), deadline=0.1)
    await right.responder("embed", types.query, types.answer)
    await flow_made(node)
    with pytest.raises(errors.DeadlineExceeded, match="answer request"):
        await requester.call(types.query(1), deadline=0.2)


async def test_lost_responder_fails_its_calls(node, loops, types):
    left, right = loops
    await left.declare("embed", types.query, reply=types.answer)
    requester = await left.requester("embed", types.query, types.answer)
    responder = await right.responder("embed", types.query, types.answer)
    asking = asyncio.ensure_future(requester.call(types.query(1), deadline=10))
    assert await responder.receive(5) is not None
    await asyncio.to_thread(node.lose, "right")
    with pytest.raises(errors.PeerLostError):
        await asyncio.wait_for(asking, 8)


async def test_iteration_ends_when_the_endpoint_closes(loops, types):
    sender, receiver = await pair(loops, types)
    await sender.send(types.note("x"), deadline=5)
    seen = []

    async def read():
        async for message in receiver:
            seen.append(message.text)

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0.05)
    await receiver.close()
    await asyncio.wait_for(reading, 5)
    assert seen == ["x"]


def test_sync_and_asyncio_ports_of_one_process_talk(node, types):
    async def receive(ready):
        async with aio.attach("right", node.path) as port:
            receiver = await port.receiver("mixed", types.note)
            ready.set()
            return [(await receiver.receive(5)).number for _ in range(10)]

    with fabric.attach("left", node.path) as left:
        left.declare("mixed", types.note)
        sender = left.sender("mixed", types.note)
        ready = threading.Event()
        found = []
        thread = threading.Thread(target=lambda: found.extend(asyncio.run(receive(ready))))
        thread.start()
        assert ready.wait(5)
        for number in range(10):
            sender.send(types.note("n", number), deadline=5)
        thread.join(10)
        assert found == list(range(10))


async def test_send_without_a_deadline_takes_the_one_of_its_channel(loops, types):
    left, _ = loops
    await left.declare("slow", types.note, pattern="queue")
    sender = await left.sender("slow", types.note)
    sender.sync.deadline_s = 0.2
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        await sender.send(types.note("n"))
    with pytest.raises(errors.DeadlineExceeded):
        await sender.send_many([types.note("n")])
    assert time.monotonic() - started < 5


async def test_batch_beyond_the_room_goes_on_while_a_task_receives(loops, types):
    sender, receiver = await pair(loops, types)
    await sender.send(types.note("first"))
    assert (await receiver.receive(5)).text == "first"
    sent = [types.note("n" * 500, number) for number in range(2000)]
    sending = asyncio.ensure_future(sender.send_many(sent))
    got = []
    while len(got) < len(sent):
        got += [message.number for message in await receiver.receive_many(50, 5)]
    assert await sending == len(sent)
    assert got == list(range(2000))
    assert sender.sync.send_many_at_once([]) == 0
    assert await sender.send_many(types.note("g", number) for number in range(3)) == 3
    assert [(await receiver.receive()).number for _ in range(3)] == [0, 1, 2]


async def test_batch_without_room_says_how_many_went(loops, types):
    sender, receiver = await pair(loops, types)
    await sender.send(types.note("first"))
    assert (await receiver.receive(5)).text == "first"
    sent = [types.note("n" * 500, number) for number in range(2000)]
    count = await sender.send_many(sent, deadline=0.05)
    assert 0 < count < 2000
    with pytest.raises(errors.DeadlineExceeded):
        await sender.send_many(sent, deadline=0.01)


async def test_send_that_needs_neither_waiting_nor_memory_is_done_at_once(loops, types):
    sender, receiver = await pair(loops, types)
    await sender.send(types.note("first"))
    assert sender.sync.send_at_once(types.note("at once", 2), None) == 2
    assert sender.sync.send_many_at_once([types.note("a"), types.note("b")]) == 2
    assert sender.sync.send_at_once("no note", None) is None
    assert sender.sync.send_many_at_once([types.note("a"), "no note"]) == 0
    assert [(await receiver.receive()).text for _ in range(4)] == ["first", "at once", "a", "b"]
    for wrong in (types.note(5), "no note"):
        with pytest.raises(errors.TypeMismatchError):
            await sender.send(wrong)
        with pytest.raises(errors.TypeMismatchError):
            await sender.send_many([types.note("a"), wrong])
    await sender.close()
    with pytest.raises(errors.ClosedError, match="notes"):
        await sender.send(types.note("closed"))
    with pytest.raises(errors.ClosedError, match="notes"):
        await sender.send_many([types.note("closed")])
    assert await receiver.receive(0) is None


async def test_memory_is_asked_for_beside_the_loop(loops, types):
    left, right = loops
    await left.declare("blocks", types.block)
    sender, receiver = (
        await left.sender("blocks", types.block),
        await right.receiver("blocks", types.block),
    )
    for step in range(3):
        for message in (types.make_block(step), types.make_block(step, 100, 100)):
            await sender.send(message)
            got = await receiver.receive()
            np.testing.assert_array_equal(got.data, message.data)
        assert await sender.send_many([message, types.make_block(step), message]) == 3
        received = await receiver.receive_many(9)
        while len(received) < 3:
            received += await receiver.receive_many(9)
        assert [each.data.shape for each in received] == [(100, 100), (4, 8), (100, 100)]


async def test_wrong_timeout_takes_no_message(loops, types):
    sender, receiver = await pair(loops, types)
    await sender.send(types.note("kept"))
    for wrong in (-1, "1", float("nan")):
        with pytest.raises(errors.ConfigError):
            await receiver.receive(wrong)
        with pytest.raises(errors.ConfigError):
            await receiver.receive_many(4, wrong)
    assert (await receiver.receive(5)).text == "kept"
