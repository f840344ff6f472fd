"""Requests follow the policy of their channel, where the responder that it prefers is there and has room."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

import fabric

ASKED = 24


@pytest.fixture
def three(node):
    """A port that asks, and three that answer with their own name."""
    names = ("asker", "one", "two", "three")
    ports = {name: fabric.attach(name, node.path) for name in names}
    yield ports
    for port in ports.values():
        port.close()


def serve(ports, types, channel="ask", hold=None):
    """Let every port but the asker answer with its number; `hold` keeps each answer back."""
    for number, name in enumerate(("one", "two", "three")):

        def answer(query, number=number):
            if hold is not None:
                hold.wait(20)
            return types.answer(number)

        responder = ports[name].responder(channel, types.query, types.answer)
        threading.Thread(target=responder.serve, args=(answer,), daemon=True).start()


def connected(requester):
    """Wait until all three can be asked."""
    poll = threading.Event()
    for _ in range(2000):
        if len(requester.targets()) == 3:
            return requester
        poll.wait(0.01)
    raise AssertionError(f"{len(requester.targets())} of 3 responders are there")


def asked(ports, types, route):
    ports["asker"].declare("ask", types.query, reply=types.answer, route=route)
    serve(ports, types)
    return connected(ports["asker"].requester("ask", types.query, types.answer))


def test_requests_of_a_key_go_to_one_responder_and_keys_to_all(three, types):
    requester = asked(three, types, "hash_key")
    by_key = {
        key: {requester.call(types.query(n), key=f"k{key}", deadline=20).value for n in range(4)}
        for key in range(ASKED)
    }
    assert all(len(answered) == 1 for answered in by_key.values())
    assert len(set.union(*by_key.values())) == 3


def test_without_a_policy_requests_of_a_key_go_to_whoever_is_free(three, types):
    three["asker"].declare("ask", types.query, reply=types.answer)
    hold = threading.Event()
    serve(three, types, hold=hold)
    requester = connected(three["asker"].requester("ask", types.query, types.answer))
    calls = [requester.begin(types.query(n), "same", 20) for n in range(3)]
    assert len({call.flow for call in calls}) == 3
    hold.set()
    for call in calls:
        requester.result(call)
        requester.finish(call)


def test_round_robin_gives_each_responder_its_turn(three, types):
    requester = asked(three, types, "round_robin")
    answered = Counter(requester.call(types.query(n), deadline=20).value for n in range(ASKED))
    assert set(answered.values()) == {ASKED // 3}


def test_policy_in_python_is_asked_for_requests(three, types, node):
    def last(fields, flows):
        return max(flows), 60.0

    node.routes["ask"] = last
    requester = asked(three, types, "own_policy")
    answered = {requester.call(types.query(n), key="k", deadline=20).value for n in range(6)}
    assert len(answered) == 1


async def test_asyncio_requests_follow_the_policy(three, types):
    requester = asked(three, types, "hash_key")
    again = await fabric.aio.Port(three["asker"]).requester("ask", types.query, types.answer)
    connected(again.sync)
    for key in range(6):
        wanted = requester.call(types.query(1), key=f"k{key}", deadline=20).value
        for _ in range(3):
            answer = await again.call(types.query(1), key=f"k{key}", deadline=20)
            assert answer.value == wanted
