"""A daemon that goes away: data goes on, requests wait or fail typed, the port resumes or ends."""

import threading
import time

import pytest

import fabric
from fabric import errors, limits
from fabric.dataplane import connection
from fabric.testing.local import LocalFabric


def until(condition, seconds=5):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_data_goes_on_while_the_daemon_is_away_and_the_port_resumes(node, ports, notes, types):
    left, _ = ports
    sender, receiver = notes
    sender.send(types.note("before"), deadline=5)
    assert receiver.receive(5).text == "before"
    node.stop_listening()
    until(lambda: not left.connection.is_connected)
    for number in range(20):
        sender.send(types.note("away", number), deadline=5)
    assert [receiver.receive(5).number for _ in range(20)] == list(range(20))
    node.listen()
    until(lambda: left.stats()["reconnects"] == 1 and left.connection.is_connected)
    left.declare("after", types.note)
    assert "after" in node.channels


def test_request_made_while_the_daemon_is_away_is_answered_when_it_is_back(node, ports, types):
    left, _ = ports
    node.stop_listening()
    until(lambda: not left.connection.is_connected)
    thread = threading.Thread(target=lambda: left.declare("later", types.note))
    thread.start()
    node.listen()
    thread.join(5)
    assert "later" in node.channels


def test_unanswered_request_that_must_not_be_repeated_fails_typed(node, ports, types, monkeypatch):
    left, _ = ports
    left.declare("notes", types.note)
    entered = threading.Event()

    def swallow(*_):
        entered.set()
        raise errors.BrokenError("the daemon dies here")

    monkeypatch.setattr(node, "_ask_open", swallow)
    monkeypatch.setattr(
        node,
        "_take",
        lambda port, frames, fields: swallow() if fields.get("op") == "open" else None,
    )
    with pytest.raises(errors.BrokenError, match="ask again") as info:
        left.sender("notes", types.note)
    assert entered.is_set() and info.value.retryable


def test_port_that_a_new_daemon_does_not_know_ends_as_stale(node, ports, types):
    left, _ = ports
    node.ports[left.number].incarnation += 1
    node.restart()
    until(lambda: left._broken is not None)
    with pytest.raises(errors.StaleHandleError, match="attach anew"):
        left.declare("x", types.note)


def test_daemon_gone_for_good_breaks_the_port_within_the_limit(monkeypatch, types):
    monkeypatch.setattr(limits, "RECONNECT_S", 0.2)
    with LocalFabric() as node:
        port = fabric.attach("left", node.path)
        node.stop_listening()
        until(lambda: port._broken is not None)
        with pytest.raises(errors.BrokenError, match="fabricctl up"):
            port.declare("x", types.note)
        port.close()


def test_close_while_a_flow_is_made_waits_for_it(monkeypatch, types):
    node = LocalFabric()
    closing = threading.Thread(target=node.close)
    push = node._push

    def push_then_close(port, op, fields, fds=()):
        answer = push(port, op, fields, fds)
        if op == "lane" and fields["side"] == 1:
            closing.start()
            closing.join(0.2)  # a close that did not wait would have taken the lanes away by then
            assert node.lanes
        return answer

    monkeypatch.setattr(node, "_push", push_then_close)
    with fabric.attach("left", node.path) as left, fabric.attach("right", node.path) as right:
        left.declare("notes", types.note, pattern="queue")
        left.sender("notes", types.note)
        right.receiver("notes", types.note)
        until(lambda: closing.ident is not None)
        closing.join(5)
    assert not closing.is_alive() and not node.lanes


def test_request_names_itself_at_its_deadline(node, ports, types, monkeypatch):
    monkeypatch.setattr(node, "_take", lambda *_: None)
    with pytest.raises(errors.DeadlineExceeded, match="route_ask"):
        ports[0].request("route_ask", {}, 0.05)


def test_unanswered_requests_are_bounded(node, ports, monkeypatch):
    monkeypatch.setattr(node, "_take", lambda *_: None)
    monkeypatch.setattr(limits, "CONTROL_REQUESTS_MAX", 3)
    for _ in range(3):
        ports[0].connection.post("ready", {})
    with pytest.raises(errors.CapacityError, match="CONTROL_REQUESTS_MAX"):
        ports[0].connection.post("ready", {})
    ports[0].connection._fail_all(errors.ClosedError("end of test"))


def test_registered_push_is_answered_from_its_own_thread_and_may_ask(node, ports, types):
    left, _ = ports
    left.on_push(
        "stage_load",
        lambda fields: (
            left.declare(fields["channel"], types.note) or {"exports": [fields["channel"]]}
        ),
    )
    assert node.push_to("left", "stage_load", {"channel": "made"})["exports"] == ["made"]
    assert "made" in node.channels
    left.on_push("stage_run", lambda fields: 1 / 0)
    with pytest.raises(errors.InternalError, match="ZeroDivision"):
        node.push_to("left", "stage_run", {})
    with pytest.raises(errors.ConfigError, match="no handler"):
        node.push_to("left", "unheard_of", {})


def test_stop_that_came_early_reaches_the_handler_registered_later(node, ports):
    left, _ = ports
    node.push_to("left", "stop", {"grace_s": 1.5})
    told = threading.Event()
    grace = []
    left.on_stop(lambda seconds: (grace.append(seconds), told.set()))
    assert told.wait(5) and grace == [1.5]


def test_module_calls_reach_the_supervisor(node, ports):
    ports[0].ready()
    assert node.is_ready == {"left"}
    ports[0].stopped()
    assert node.is_ready == set()


def test_repeated_pushes_are_confirmed_not_repeated(node, ports, notes, types):
    sender, receiver = notes
    sender.send(types.note("one"), deadline=5)
    until(lambda: node.flows)
    flow = next(iter(node.flows.values()))
    lane = next(iter(node.lanes.values()))[0]
    fields = {
        "endpoint": flow.source.endpoint,
        "flow": flow.flow,
        "lane": lane,
        "target_endpoint": flow.target.endpoint,
    }
    node.push_to(
        "left",
        "flow_out",
        {**fields, "messages": 1, "bytes": 1, "generation": 1, "after_drain": False},
    )
    sender.send(types.note("two"), deadline=5)
    assert [receiver.receive(5).text for _ in range(2)] == ["one", "two"]


def test_forked_child_cannot_use_the_port(notes, types):
    import os

    sender, _ = notes
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sender.send(types.note("child"), deadline=1)
        except errors.ClosedError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    sender.send(types.note("parent"), deadline=5)


def test_socket_served_by_another_user_is_not_trusted(node, monkeypatch):
    monkeypatch.setattr(connection, "_owner_of", lambda sock: 12345)
    with pytest.raises(errors.BrokenError, match="served by uid 12345"):
        fabric.attach("me", socket=node.path)


def test_endpoint_whose_open_was_never_answered_is_closed_when_the_port_resumes(
    node, ports, notes, types, monkeypatch
):
    _, right = ports
    opened = node._ask_open

    def open_and_die(port, fields, fds):
        opened(port, fields, fds)
        monkeypatch.undo()
        port.frames.shutdown()
        raise errors.BrokenError("the daemon dies here")

    monkeypatch.setattr(node, "_ask_open", open_and_die)
    before = set(node.endpoints)
    with pytest.raises(errors.BrokenError, match="ask again"):
        right.receiver("notes", types.note)
    until(lambda: right.connection.is_connected and right.stats()["reconnects"] == 1)
    until(lambda: set(node.endpoints) == before)


def test_segment_that_comes_after_its_caller_gave_up_is_given_back(node, ports, monkeypatch):
    _, right = ports
    made, gate, before = node._ask_segment_new, threading.Event(), set(node.segments)

    def make_late(port, fields, fds):
        answer = made(port, fields, fds)
        assert gate.wait(5)
        return answer

    monkeypatch.setattr(node, "_ask_segment_new", make_late)
    with pytest.raises(errors.DeadlineExceeded):
        right.connection.request("segment_new", {"slot_bytes": 4096, "slot_count": 1}, 0.05)
    assert set(node.segments) != before
    gate.set()
    until(lambda: set(node.segments) == before)


@pytest.mark.promise("P3")
def test_send_that_lacks_memory_waits_for_an_absent_daemon_no_longer_than_its_deadline(
    node, ports, blocks, types
):
    left, right = ports
    out, inn = blocks
    out.send(types.make_block(), deadline=10)  # the way is there
    inn.receive(10).ack()
    node.stop_listening()
    until(lambda: not left.connection.is_connected)
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        out.send(types.make_block(rows=400, columns=400), deadline=0.3)
    with pytest.raises((errors.DeadlineExceeded, errors.WouldBlock)):
        out.send(types.make_block(rows=400, columns=400), deadline=0)
    assert time.monotonic() - started < limits.CONTROL_CALL_S / 2
    node.listen()
    until(lambda: left.connection.is_connected and right.connection.is_connected)
    out.send(types.make_block(rows=400, columns=400), deadline=10)


def test_endpoint_that_comes_after_its_caller_gave_up_is_closed(
    node, ports, notes, types, monkeypatch
):
    _, right = ports
    opened, gate = node._ask_open, threading.Event()
    before = set(node.endpoints)

    def open_late(port, fields, fds):
        answer = opened(port, fields, fds)
        assert gate.wait(5)
        return answer

    monkeypatch.setattr(node, "_ask_open", open_late)
    with pytest.raises(errors.DeadlineExceeded):
        right.connection.request(
            "open",
            {
                "role": "receiver",
                "channel": "notes",
                "schema": fabric.messages.message_type(types.note).schema.text,
            },
            0.05,
        )
    assert set(node.endpoints) != before
    gate.set()
    until(lambda: set(node.endpoints) == before)
