"""Arena growth and give-back; pins of routing policies."""

import time

import pytest

from fabric import errors, limits
from fabric.dataplane.routes import RoutePins, header_fields
from fabric.dataplane.segments import plan_segment


@pytest.mark.parametrize(
    "size",
    [1, 4097, 8192, 8193, 1 << 20, (1 << 20) + 1, 5 << 20, 300 << 20, limits.SEGMENT_BYTES_MAX],
)
def test_planned_segment_holds_the_payload_within_the_limits(size):
    slot, count = plan_segment(size)
    assert slot >= size and slot < 2 * max(size, limits.SLOT_BYTES_MIN) + (1 << 20)
    assert 1 <= count <= limits.SLOTS_PER_SEGMENT_MAX
    assert slot * count <= max(256 << 20, slot)


def test_payload_above_the_largest_segment_is_refused():
    with pytest.raises(errors.CapacityError, match="SEGMENT_BYTES_MAX"):
        plan_segment(limits.SEGMENT_BYTES_MAX + 1)


def test_arena_grows_by_need_and_idle_segments_are_given_back(
    node, ports, blocks, types, monkeypatch
):
    left, _ = ports
    sender, receiver = blocks
    sender.send(types.make_block(1, 3000), deadline=5)
    assert len(node.segments) == 1
    message = receiver.receive(5)
    assert message.data.shape == (3000, 8)
    monkeypatch.setattr(limits, "SEGMENT_IDLE_S", 0.0)
    left.segments.give_back_idle()
    assert len(left.segments._own) == 1, "a slot in use keeps its segment"
    message.ack()
    del message
    sender.flush(5)
    deadline = time.monotonic() + 5
    while node.segments and time.monotonic() < deadline:
        left.segments.give_back_idle()
        time.sleep(0.01)
    assert not node.segments
    sender.send(types.make_block(2, 3000), deadline=5)
    assert receiver.receive(5).data[0, 0] == 2


def test_sender_waits_for_a_slot_when_arena_memory_is_limited(
    node, ports, blocks, types, monkeypatch
):
    sender, receiver = blocks
    monkeypatch.setattr(limits, "SEGMENTS_PER_PORT_MAX", 0)
    with pytest.raises(errors.DeadlineExceeded, match="slot"):
        sender.send(types.make_block(1, 3000), deadline=0.1)
    monkeypatch.undo()
    sender.send(types.make_block(1, 3000), deadline=5)
    assert receiver.receive(5).data.shape == (3000, 8)


# ---- routes


def test_policy_is_asked_once_per_key_and_its_flow_is_used(node, ports, types):
    left, right = ports
    left.declare("routed", types.note, pattern="queue", route="sticky")
    headers = []

    def decide(fields, flows):
        headers.append(fields)
        return flows[0], 60.0

    node.routes["routed"] = decide
    sender, receiver = left.sender("routed", types.note), right.receiver("routed", types.note)
    deadline = time.monotonic() + 5
    while not left.flows_of(sender.endpoint) and time.monotonic() < deadline:
        time.sleep(0.005)
    for key in ("a", "a", "b", "a"):
        sender.send(types.note("x", 7), key=key, deadline=5)
    assert len(receiver.receive_many(4, 5)) >= 1
    assert [h["key"] for h in headers] == [b"a", b"b"]
    assert headers[0]["fields"] == {"text": "x", "number": 7} and headers[0]["size"] > 0


def test_policy_that_fails_leaves_the_choice_to_the_default(node, ports, types):
    left, right = ports
    left.declare("routed", types.note, pattern="queue", route="broken")

    def decide(fields, flows):
        raise errors.PluginError("no")

    node.routes["routed"] = decide
    sender, receiver = left.sender("routed", types.note), right.receiver("routed", types.note)
    sender.send(types.note("x"), key="k", deadline=5)
    assert receiver.receive(5).text == "x"
    assert sender._pins.fallback_count == 1


def test_pins_age_and_are_bounded_and_go_with_their_flow(monkeypatch):
    asked = []

    def ask(header):
        asked.append(header["key"])
        return 10 + len(asked), header["ttl"]

    pins = RoutePins(ask)
    assert pins.pinned(b"a") == 0
    assert pins.flow_for(b"a", lambda: {"key": b"a", "ttl": 60}) == 11
    assert pins.pinned(b"a") == 11 and len(asked) == 1
    assert pins.flow_for(b"a", lambda: {"key": b"a", "ttl": 60}) == 11
    assert pins.flow_for(b"b", lambda: {"key": b"b", "ttl": 0}) == 12
    assert pins.flow_for(b"b", lambda: {"key": b"b", "ttl": 0}) == 13
    pins.forget_flow(11)
    assert pins.flow_for(b"a", lambda: {"key": b"a", "ttl": 60}) == 14
    monkeypatch.setattr(limits, "PINS_PER_SENDER_MAX", 2)
    for key in (b"c", b"d", b"e"):
        pins.flow_for(key, lambda key=key: {"key": key, "ttl": 60})
    assert len(pins._pins) == 2


def test_policy_sees_scalars_short_text_and_short_lists_of_numbers_only():
    class Message:
        a, b, c, d, e, f = 1, "short", "x" * 1000, [1, 2], [1] * 5000, ["x"]

    assert header_fields(Message, list("abcdef")) == {"a": 1, "b": "short", "d": [1, 2]}
