"""How a thread waits is the port's choice; what it waits for, how long, and what ends the wait is the same for all."""

import asyncio
import signal
import threading
import time

import pytest

import fabric
import fabric.aio
from fabric import errors
from fabric.dataplane.client import WAITS


@pytest.fixture(params=WAITS)
def ends(node, request):
    with (
        fabric.attach("left", node.path, wait=request.param) as left,
        fabric.attach("right", node.path, wait=request.param) as right,
    ):
        left.declare("there", bytes)
        left.declare("back", bytes)
        yield (
            left.sender("there"),
            right.receiver("there"),
            right.sender("back"),
            left.receiver("back"),
        )


def idle_cpu_s(node, wait, seconds):
    """CPU time that a thread takes while it waits for nothing."""
    with (
        fabric.attach("idle", node.path, wait=wait) as port,
        fabric.attach("peer", node.path) as peer,
    ):
        port.declare("idle", bytes)
        receiver, sender = port.receiver("idle"), peer.sender("idle")
        sender.send(b"x")
        receiver.receive_bytes(5)
        before = time.thread_time()
        assert receiver.receive_bytes(seconds) is None
        return time.thread_time() - before


def test_round_trips_work_under_every_policy(ends):
    sender, receiver, answer, answers = ends

    def echo():
        for _ in range(300):
            answer.send(receiver.receive_bytes(10))

    thread = threading.Thread(target=echo)
    thread.start()
    for number in range(300):
        sender.send(b"%d" % number)
        assert answers.receive_bytes(10) == b"%d" % number
    thread.join()


def test_a_wait_ends_at_its_deadline(ends):
    _, receiver, _, _ = ends
    begun = time.monotonic()
    assert receiver.receive(0.05) is None
    assert 0.05 <= time.monotonic() - begun < 5


def test_room_is_waited_for(node, ends):
    sender, receiver, _, _ = ends
    sent = []
    thread = threading.Thread(
        target=lambda: sent.append(sender.send_many([b"x"] * 5000, deadline=20))
    )
    thread.start()
    got = 0
    while got < 5000:
        got += len(receiver.receive_many_bytes(64, 10))
    thread.join()
    assert sent == [5000]


def test_closing_ends_every_wait(ends):
    _, receiver, _, answers = ends
    ended = []

    def wait(end):
        with pytest.raises(errors.ClosedError):
            end.receive(20)
        ended.append(end)

    threads = [threading.Thread(target=wait, args=(end,)) for end in (receiver, receiver, answers)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    receiver.close()
    answers._port.close()
    for thread in threads:
        thread.join(10)
    assert len(ended) == 3


def test_a_signal_handler_that_raises_ends_the_wait(ends):
    _, receiver, _, _ = ends

    class Alarm(Exception):
        pass

    def ring(*_):
        raise Alarm

    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    begun = time.monotonic()
    try:
        with pytest.raises(Alarm):
            receiver.receive(20)
    finally:
        signal.signal(signal.SIGALRM, former)
    assert time.monotonic() - begun < 10


def test_several_threads_wait_on_one_port(ends):
    sender, receiver, _, _ = ends
    got = []
    threads = [
        threading.Thread(target=lambda: got.append(receiver.receive_bytes(10))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for number in range(3):
        sender.send(b"%d" % number)
    for thread in threads:
        thread.join()
    assert sorted(got) == [b"0", b"1", b"2"]


def test_only_poll_takes_a_core_while_nothing_comes(node):
    polled, adaptive, slept = (
        idle_cpu_s(node, wait, 1.0) for wait in ("poll", "adaptive", "sleep")
    )
    assert adaptive <= 0.01 and slept <= 0.01
    assert polled > 4 * max(adaptive, slept)  # however many want the core


def test_the_asyncio_face_takes_a_policy(node):
    async def talk():
        async with fabric.aio.attach("loop", node.path, wait="poll") as port:
            assert port.sync.wait == "poll"

    asyncio.run(talk())


def test_the_environment_names_the_default(node, monkeypatch):
    monkeypatch.setenv("FABRIC_WAIT", "sleep")
    with fabric.attach("from environment", node.path) as port:
        assert port.wait == "sleep"
    with fabric.attach("said", node.path, wait="adaptive") as port:
        assert port.wait == "adaptive"
    monkeypatch.delenv("FABRIC_WAIT")
    with fabric.attach("default", node.path) as port:
        assert port.wait == "adaptive"


@pytest.mark.parametrize("wrong", ["spin", "", 3, b"poll"])
def test_an_unknown_policy_is_refused(node, monkeypatch, wrong):
    with pytest.raises(errors.ConfigError, match="adaptive, poll, sleep"):
        fabric.attach("wrong", node.path, wait=wrong)
    monkeypatch.setenv("FABRIC_WAIT", "fast")
    with pytest.raises(errors.ConfigError, match="FABRIC_WAIT"):
        fabric.attach("wrong", node.path)
