"""Requests of an idempotent channel outlive their responder; replies of two responders are never mixed."""

import threading

import numpy as np
import pytest

import fabric
from fabric import errors
from fabric.messages import Tensor, message
from tests.unit.dataplane.waiting import until


@message("again.query")
class Query:
    n: int


@message("again.answer")
class Answer:
    n: int
    who: str
    data: Tensor["n", "f32"] | None = None


class Workers:
    """Ports that answer; worker i runs `handle(i, query)` on a thread of its own."""

    def __init__(self, node, handle, count=2):
        self.ports, self.responders, self.seen = [], [], []
        for number in range(count):
            self.add(node, handle, number)

    def add(self, node, handle, number):
        port = fabric.attach(f"worker-{number}", node.path)
        responder = port.responder("again", Query, Answer)

        def serve():
            try:
                responder.serve(lambda q: self.seen.append((number, q.n)) or handle(number, q))
            except errors.FabricError:
                return  # given up by the test

        threading.Thread(target=serve, daemon=True).start()
        self.ports.append(port)
        self.responders.append(responder)

    def close(self):
        for port in self.ports:
            port.close()


@pytest.fixture
def again(node):
    made = []

    def make(handle, delivery="at_least_once", count=2):
        port = fabric.attach("asker", node.path)
        made.append(port)
        port.declare("again", Query, reply=Answer, delivery=delivery, idempotent=True)
        requester = port.requester("again", Query, Answer)
        workers = Workers(node, handle, count)
        made.append(workers)
        until(lambda: len(requester.targets()) == count)
        return requester, workers

    yield make
    for each in reversed(made):
        each.close()


class Stuck:
    """The first worker that is asked gets stuck; `free` lets it go on."""

    def __init__(self, answer):
        self.who = None
        self.begun = threading.Event()
        self.free = threading.Event()
        self.answer = answer

    def __call__(self, number, query):
        if self.who is None:
            self.who = number
            self.begun.set()
            self.free.wait(10)
        return self.answer(number, query)


def simple(number, query):
    return Answer(query.n, f"worker-{number}", np.full(3, query.n, np.float32))


def lose_when_begun(node, stuck):
    def lose():
        stuck.begun.wait(5)
        node.lose(f"worker-{stuck.who}")

    threading.Thread(target=lose, daemon=True).start()


@pytest.mark.promise("P1", "P3")
def test_request_of_a_dead_responder_is_answered_by_another(node, again):
    stuck = Stuck(simple)
    requester, _ = again(stuck)
    lose_when_begun(node, stuck)
    answer = requester.call(Query(7), deadline=5)
    assert answer.who == f"worker-{1 - stuck.who}" and answer.data[0] == 7
    stuck.free.set()  # the first one's answer is nobody's any more
    for n in range(20):
        assert requester.call(Query(n), deadline=5).n == n


def test_request_of_a_dead_responder_fails_where_it_may_not_be_repeated(node, again):
    stuck = Stuck(simple)
    requester, workers = again(stuck, delivery="at_most_once")
    lose_when_begun(node, stuck)
    with pytest.raises(errors.PeerLostError, match=r"channel 'again'.*may have acted"):
        requester.call(Query(7), deadline=5)
    assert [n for _, n in workers.seen] == [7]
    stuck.free.set()


def test_request_waits_for_a_new_responder_until_its_deadline(node, again):
    stuck = Stuck(simple)
    requester, workers = again(stuck, count=1)
    lose_when_begun(node, stuck)

    def come_back():
        stuck.begun.wait(5)
        until(lambda: not requester.targets())
        workers.add(node, simple, 5)

    threading.Thread(target=come_back, daemon=True).start()
    assert requester.call(Query(1), deadline=5).who == "worker-5"
    stuck.free.set()


def test_request_without_another_responder_ends_at_its_deadline(node, again):
    stuck = Stuck(simple)
    requester, _ = again(stuck, count=1)
    lose_when_begun(node, stuck)
    with pytest.raises(errors.DeadlineExceeded, match="waited for a responder"):
        requester.call(Query(1), deadline=0.5)
    assert requester.in_flight() == []
    stuck.free.set()


@pytest.mark.promise("P2")
def test_interrupted_stream_ends_with_an_error_and_is_never_spliced(node, again):
    stuck = threading.Event()
    asked = []

    def handle(number, query):
        def replies():
            asked.append(number)
            for n in range(4):
                if n == 2 and len(asked) == 1:
                    stuck.wait(10)
                yield Answer(n, f"worker-{number}")

        return replies()

    requester, _ = again(handle)
    stream = requester.stream(Query(1), deadline=5)
    got = [next(stream), next(stream)]
    node.lose(f"worker-{asked[0]}")
    with pytest.raises(errors.PeerLostError):
        while True:
            got.append(next(stream))
    assert len({answer.who for answer in got}) == 1 and [a.n for a in got] == [0, 1]
    stuck.set()
    assert [a.n for a in requester.stream(Query(2), deadline=5)] == [0, 1, 2, 3]


def test_stream_of_which_nothing_came_is_begun_again_elsewhere(node, again):
    def replies(number, query):
        yield from (Answer(n, f"worker-{number}") for n in range(3))

    stuck = Stuck(replies)
    requester, _ = again(stuck)
    lose_when_begun(node, stuck)
    got = list(requester.stream(Query(1), deadline=5))
    assert [a.n for a in got] == [0, 1, 2]
    assert {a.who for a in got} == {f"worker-{1 - stuck.who}"}
    stuck.free.set()


def test_cancelled_request_that_was_repeated_stops_at_its_new_responder(node, again):
    stuck = Stuck(simple)
    second = threading.Event()
    cancelled = threading.Event()

    def handle(number, query):
        if stuck.who is not None:
            second.set()
            cancelled.wait(10)
        return stuck(number, query)

    requester, workers = again(handle)
    lose_when_begun(node, stuck)
    calls = []

    def ask():
        try:
            requester.call(Query(1), deadline=10)
        except errors.CancelledRequestError as error:
            calls.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert second.wait(5)
    requester.cancel(requester.in_flight()[0])
    asking.join(5)
    assert len(calls) == 1 and requester.in_flight() == []
    cancelled.set()
    stuck.free.set()
    del workers


def test_cancelled_request_that_waits_its_turn_is_not_served(node, again):
    stuck = Stuck(simple)
    requester, workers = again(stuck, delivery="at_most_once", count=1)
    first = threading.Thread(target=lambda: requester.call(Query(1), deadline=5))
    first.start()
    stuck.begun.wait(5)
    ends = []

    def ask():
        try:
            requester.call(Query(2), deadline=5)
        except errors.CancelledRequestError as error:
            ends.append(error)

    second = threading.Thread(target=ask)
    second.start()
    until(lambda: len(requester.in_flight()) == 2)
    until(lambda: workers.responders[0].pending() >= 1)
    requester.cancel(requester.in_flight()[1])
    second.join(5)
    assert len(ends) == 1
    stuck.free.set()
    first.join(5)
    assert requester.call(Query(3), deadline=5).n == 3
    assert 2 not in [n for _, n in workers.seen]


def test_reply_of_a_lost_requester_reaches_no_other(node, again):
    """Numbers of calls coincide among requesters: a reply sent on to another would be taken for its own."""
    free = threading.Event()

    def handle(number, query):
        if query.n == 2:
            free.wait(10)
        return simple(number, query)

    requester, _ = again(handle, count=1)
    with fabric.attach("other", node.path) as other_port:
        other = other_port.requester("again", Query, Answer)
        until(lambda: other.targets())
        unread = requester.begin(Query(1), None, 5)
        until(lambda: requester.replies.pending() == 1)
        waiting = other.begin(Query(2), None, 5)
        assert waiting.correlation == unread.correlation
        node.lose("asker")
        threading.Timer(0.2, free.set).start()
        assert other.result(waiting).n == 2
        other.finish(waiting)
