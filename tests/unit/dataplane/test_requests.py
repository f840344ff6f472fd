"""Requests: answers, streams, errors, cancellation, lost responders."""

import threading
import time

import numpy as np
import pytest

import fabric
from fabric import errors, limits


def serve(responder, handler):
    thread = threading.Thread(target=responder.serve, args=(handler,), daemon=True)
    thread.start()
    return thread


def until(condition, seconds=5):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_call_returns_the_answer(embed, types):
    requester, responder = embed
    serve(responder, lambda q: types.answer(q.n * 2, np.full(q.n, 1.5, np.float32)))
    for n in (0, 3, 5000):
        reply = requester.call(types.query(n), deadline=5)
        assert reply.value == 2 * n and reply.data.shape == (n,)
    assert requester.in_flight() == []


def test_concurrent_calls_of_many_threads_get_their_own_answers(embed, types):
    requester, responder = embed
    serve(responder, lambda q: types.answer(q.n + 1000))
    answers = {}

    def ask(start):
        for n in range(start, start + 25):
            answers[n] = requester.call(types.query(n), deadline=10).value

    threads = [threading.Thread(target=ask, args=(k * 25,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == {n: n + 1000 for n in range(150)}


def test_stream_yields_replies_as_they_come_and_ends(embed, types):
    requester, responder = embed
    serve(responder, lambda q: (types.answer(i) for i in range(q.n)))
    assert [a.value for a in requester.stream(types.query(7), deadline=5)] == list(range(7))
    assert list(requester.stream(types.query(0), deadline=5)) == []
    with pytest.raises(errors.RemoteError, match="empty"):
        requester.call(types.query(0), deadline=5)


def test_error_of_the_responder_reaches_the_caller_and_serving_goes_on(embed, types):
    requester, responder = embed

    def handler(query):
        if query.n < 0:
            raise ValueError("negative")
        return types.answer(query.n)

    def tolerant():
        for request in responder:
            try:
                request.reply(handler(request.message))
            except ValueError as error:
                request.fail(error)

    threading.Thread(target=tolerant, daemon=True).start()
    with pytest.raises(errors.RemoteError, match="negative") as info:
        requester.call(types.query(-1), deadline=5)
    assert info.value.context["error"] == "ValueError"
    assert requester.call(types.query(1), deadline=5).value == 1


def test_serve_reports_what_the_handler_raises(embed, types):
    requester, responder = embed

    def handler(query):
        if query.n == 0:
            raise KeyError("missing")
        return types.answer(query.n)

    serve(responder, handler)
    with pytest.raises(errors.RemoteError, match="missing"):
        requester.call(types.query(0), deadline=5)
    assert requester.call(types.query(1), deadline=5).value == 1


def test_request_left_unanswered_is_an_error_not_silence(embed, types):
    requester, responder = embed

    def forget():
        with responder.receive(5):
            pass

    threading.Thread(target=forget, daemon=True).start()
    with pytest.raises(errors.RemoteError, match="unanswered"):
        requester.call(types.query(0), deadline=5)


def test_call_names_what_it_waited_for_at_its_deadline(node, embed, types):
    requester, _ = embed
    until(lambda: node.flows)
    with pytest.raises(errors.DeadlineExceeded, match="to answer request"):
        requester.call(types.query(1), deadline=0.1)


def test_call_without_a_responder_says_so(ports, types):
    left, _ = ports
    left.declare("embed", types.query, reply=types.answer)
    with pytest.raises(errors.DeadlineExceeded, match="no responder is there"):
        left.requester("embed", types.query, types.answer).call(types.query(1), deadline=0.1)


def test_leaving_a_stream_cancels_the_request_at_the_responder(embed, types):
    requester, responder = embed
    seen = {}

    def endless():
        request = responder.receive(5)
        try:
            for i in range(1_000_000):
                request.send(types.answer(i))
                time.sleep(0.001)
        except errors.CancelledRequestError:
            seen["cancelled"] = request.cancelled

    thread = threading.Thread(target=endless)
    thread.start()
    for answer in requester.stream(types.query(1), deadline=20):
        if answer.value == 5:
            break
    thread.join(5)
    assert seen == {"cancelled": True}


def test_request_cancelled_while_it_waits_is_never_handed_over(embed, types):
    requester, responder = embed
    with pytest.raises(errors.DeadlineExceeded):
        requester.call(types.query(1), deadline=0.05)
    threading.Thread(target=lambda: requester.call(types.query(2), deadline=5), daemon=True).start()
    request = responder.receive(5)
    assert request.message.n == 2
    request.reply(types.answer(2))
    assert responder.receive(0.05) is None


def test_cancel_ends_the_waiting_call(embed, types):
    requester, responder = embed
    caught = []

    def ask():
        try:
            requester.call(types.query(1), deadline=10)
        except errors.FabricError as error:
            caught.append(type(error))

    thread = threading.Thread(target=ask)
    thread.start()
    request = responder.receive(5)
    requester.cancel(requester.in_flight()[0])
    thread.join(5)
    assert caught == [errors.CancelledRequestError]
    until(lambda: request.cancelled)
    with pytest.raises(errors.CancelledRequestError):
        request.reply(types.answer(1))


def test_responder_sees_the_time_that_is_left(embed, types):
    requester, responder = embed
    left = []

    def answer():
        request = responder.receive(5)
        left.append(request.left_s())
        request.reply(types.answer(0))

    thread = threading.Thread(target=answer)
    thread.start()
    requester.call(types.query(1), deadline=5)
    thread.join(5)
    assert 3 < left[0] <= 5


def test_lost_responder_fails_its_calls_and_the_next_goes_elsewhere(node, types):
    with fabric.attach("asks", node.path) as asks, fabric.attach("first", node.path) as first:
        asks.declare("embed", types.query, reply=types.answer)
        requester = asks.requester("embed", types.query, types.answer)
        responder = first.responder("embed", types.query, types.answer)
        caught = []

        def ask():
            try:
                requester.call(types.query(1), deadline=20)
            except errors.FabricError as error:
                caught.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert responder.receive(5) is not None
        started = time.monotonic()
        node.lose("first")
        thread.join(10)
        assert (
            isinstance(caught[0], errors.PeerLostError)
            and caught[0].context["outcome"] == "unknown"
        )
        assert time.monotonic() - started < 10, "not at its deadline of 20 s"
        with fabric.attach("second", node.path) as second:
            serve(second.responder("embed", types.query, types.answer), lambda q: types.answer(q.n))
            assert requester.call(types.query(5), deadline=5).value == 5


def test_calls_spread_over_responders(node, types):
    with (
        fabric.attach("asks", node.path) as asks,
        fabric.attach("one", node.path) as one,
        fabric.attach("two", node.path) as two,
    ):
        asks.declare("embed", types.query, reply=types.answer)
        requester = asks.requester("embed", types.query, types.answer)
        responders = [p.responder("embed", types.query, types.answer) for p in (one, two)]
        until(lambda: len(asks.flows_of(requester.endpoint)) == 2)
        threads = [
            threading.Thread(target=lambda: requester.call(types.query(1), deadline=10))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        requests = [r.receive(5) for r in responders]
        assert all(requests)
        for request in requests:
            request.reply(types.answer(1))
        for thread in threads:
            thread.join(5)


def test_requests_in_flight_are_bounded(embed, types, monkeypatch):
    requester, _ = embed
    monkeypatch.setattr(limits, "REQUESTS_IN_FLIGHT_MAX", 2)
    calls = [requester.begin(types.query(n), None, 5) for n in range(2)]
    with pytest.raises(errors.CapacityError, match="REQUESTS_IN_FLIGHT_MAX"):
        requester.begin(types.query(9), None, 5)
    for call in calls:
        requester.finish(call)
    requester.finish(requester.begin(types.query(3), None, 5))


def test_reply_that_breaks_its_type_is_refused_and_the_request_stays_open(embed, types):
    requester, responder = embed

    def answer():
        request = responder.receive(5)
        with pytest.raises(errors.TypeMismatchError, match="'value'"):
            request.reply(types.answer("no"))
        request.reply(types.answer(4))

    thread = threading.Thread(target=answer)
    thread.start()
    assert requester.call(types.query(1), deadline=5).value == 4
    thread.join(5)


def test_closing_the_requester_ends_waiting_calls(embed, types):
    requester, _ = embed
    caught = []

    def ask():
        try:
            requester.call(types.query(1), deadline=10)
        except errors.FabricError as error:
            caught.append(type(error))

    thread = threading.Thread(target=ask)
    thread.start()
    until(requester.in_flight)
    requester.close()
    thread.join(5)
    assert caught == [errors.ClosedError]
