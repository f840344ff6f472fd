"""Built-in policies and remembered decisions in a real sender, on two ports and a lane."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from fabric import errors
from tests.unit.native.pair import AT_LEAST_ONCE, QUEUE, STREAM, Pair, pair, soon

ENDS = (21, 22, 23)


@pytest.fixture
def joined() -> Iterator[Pair]:
    with pair() as both:
        yield both


def opened(
    joined: Pair, pattern: int = QUEUE, delivery: int = AT_LEAST_ONCE, credit: int = 256
) -> Any:
    out = joined.sender(pattern=pattern, delivery=delivery)
    for endpoint in ENDS:
        joined.receiver(endpoint, pattern=pattern, delivery=delivery)
        joined.flow(receiver=endpoint, messages=credit)
    return out


def shares(out: Any) -> dict[int, int]:
    return {f["target_endpoint"]: f["outstanding"] for f in out.flows()}


def send(out: Any, count: int, key: bytes | None = None) -> None:
    for _ in range(count):
        out.send(b"x", [], key, soon())


def test_round_robin_on_a_queue_gives_every_message_the_next_target(joined):
    out = opened(joined)
    out.set_route("round_robin")
    send(out, 7)
    assert shares(out) == {21: 3, 22: 2, 23: 2}


def test_weights_that_the_daemon_gives_count_from_the_next_message_on(joined):
    out = opened(joined)
    out.set_route("weighted")
    out.set_target(21, weight=3.0)
    out.set_target(23, weight=0.0)
    send(out, 8)
    assert shares(out) == {21: 6, 22: 2, 23: 0}


def test_what_is_told_before_a_flow_is_there_holds_when_it_comes(joined):
    out = joined.sender(pattern=QUEUE)
    out.set_route("locality")
    out.set_target(22, distance=0)
    out.set_target(21, distance=1)
    for endpoint in ENDS[:2]:
        joined.receiver(endpoint, pattern=QUEUE)
        joined.flow(receiver=endpoint)
    send(out, 5)
    assert shares(out) == {21: 0, 22: 5}


def test_the_load_of_other_senders_draws_messages_away(joined):
    out = opened(joined)
    out.set_route("deadline")
    out.set_target(21, load=50)
    out.set_target(22, load=50)
    send(out, 10)
    assert shares(out) == {21: 0, 22: 0, 23: 10}


def test_failover_waits_for_its_active_target_and_leaves_a_suspect_one(joined):
    out = opened(joined, credit=2)
    out.set_route("failover")
    send(out, 2)
    with pytest.raises(errors.WouldBlock):
        out.send(b"x", [], None, 0)
    joined.a.port.suspect_flow(1, True)
    send(out, 2)
    assert shares(out) == {21: 2, 22: 2, 23: 0}


def test_other_policies_pass_over_a_target_without_room(joined):
    out = opened(joined, credit=2)
    out.set_route("hash_key", load_factor=100.0)
    send(out, 6, b"one key")
    assert set(shares(out).values()) == {2}


def test_a_policy_on_a_stream_places_keys_which_then_stay(joined):
    out = opened(joined, STREAM)
    out.set_route("round_robin")
    for key in (b"a", b"b", b"c", b"a", b"a"):
        send(out, 1, key)
    assert Counter(shares(out).values()) == {1: 2, 3: 1}


def test_a_decision_is_made_without_sending(joined):
    out = opened(joined)
    out.set_route("hash_key")
    chosen = out.decide(b"k")
    send(out, 1, b"k")
    assert {f["flow"]: f["outstanding"] for f in out.flows()}[chosen] == 1


def test_a_fallback_decides_for_a_while(joined):
    out = opened(joined)
    out.fall_back("round_robin", time.monotonic_ns() + 10**12)
    send(out, 3)
    assert set(shares(out).values()) == {1}


@pytest.mark.parametrize("name", ["nope", "broadcast", "asked"])
def test_a_name_that_is_no_built_in_policy_is_refused(joined, name):
    out = joined.sender(pattern=QUEUE)
    with pytest.raises(ValueError, match="no built-in policy"):
        out.set_route(name)
