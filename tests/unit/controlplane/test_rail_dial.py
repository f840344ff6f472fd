"""How long dialling a rail may take: soon given up where it was quick before, never for ever."""

from __future__ import annotations

import pytest

from fabric import limits
from fabric.controlplane import rail_dial
from fabric.controlplane.rail_dial import Dial, attempt_s, handshake_s, pause_s


def test_rail_that_was_up_is_given_up_soon_and_sooner_where_nothing_else_is_left():
    known = Dial(took_s=0.001)
    assert attempt_s(known, 2, is_cut_off=False) == limits.RAIL_DIAL_MS / 1000
    assert attempt_s(known, 2, is_cut_off=True) < attempt_s(known, 2, is_cut_off=False)


def test_slow_network_gets_the_time_that_it_needed_before():
    assert attempt_s(Dial(took_s=0.4), 2, is_cut_off=True) == pytest.approx(1.6)
    assert attempt_s(Dial(took_s=60.0), 2, is_cut_off=True) == rail_dial.DIAL_S


def test_rail_that_never_answered_gets_longer_each_time_up_to_a_bound():
    times = [attempt_s(Dial(failures=n), 2, is_cut_off=False) for n in (0, 1, 2, 3, 1000)]
    assert times == sorted(times) and times[0] < times[1]
    assert times[-1] == rail_dial.FIRST_DIAL_S


def test_only_rail_of_a_peer_is_waited_for_as_long_as_ever():
    assert attempt_s(Dial(), 1, is_cut_off=True) == rail_dial.DIAL_S
    assert handshake_s(Dial(), 1) == limits.HANDSHAKE_S
    assert handshake_s(Dial(), 2) < handshake_s(Dial(failures=1), 2)
    assert handshake_s(Dial(failures=1000), 2) == limits.HANDSHAKE_S


def test_pauses_grow_to_their_bound_and_never_beyond():
    first, longest = (ms / 1000 for ms in limits.RAIL_PAUSE_MS)
    pauses = [pause_s(n, is_cut_off=False) for n in range(1, 100)]
    assert pauses[0] == first and pauses[1] == 2 * first
    assert pauses == sorted(pauses) and pauses[-1] == longest
    longest_return = longest + limits.RAIL_DIAL_MS / 1000
    assert longest_return < 1.0, "a rail that returns is used again within a second"


def test_pauses_stay_short_while_nothing_leads_to_the_peer_but_not_for_ever():
    first, longest = (ms / 1000 for ms in limits.RAIL_PAUSE_MS)
    assert {pause_s(n, is_cut_off=True) for n in range(1, 20)} == {first}
    assert pause_s(100_000, is_cut_off=True) == longest


def test_every_eighth_attempt_is_a_long_one_since_the_machine_may_have_become_slow():
    times = [attempt_s(Dial(failures=n, took_s=0.001), 2, is_cut_off=False) for n in range(16)]
    soon = limits.RAIL_DIAL_MS / 1000
    assert times == ([soon] * 7 + [rail_dial.FIRST_DIAL_S]) * 2
