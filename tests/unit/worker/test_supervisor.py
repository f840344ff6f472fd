"""The life of a supervised process, step by step, on a clock of numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.worker.supervisor import START_S, STEADY_S, Act, Event, Life, State, begin, next_state


def live(now: float = 0.0) -> Life:
    life, act = begin(Life(), now)
    assert act is Act.SPAWN
    life, _ = next_state(life, Event.ATTACHED, now)
    life, _ = next_state(life, Event.READY, now)
    assert life.state is State.READY
    return life


def crash(life: Life, now: float) -> tuple[Life, float]:
    life, act = next_state(life, Event.EXITED, now)
    assert (life.state, act) == (State.WAITING, Act.NONE)
    return life, life.at_s - now


def test_crashed_process_waits_its_pause_and_is_spawned_again():
    life, pause = crash(live(), 1.0)
    assert pause == pytest.approx(0.2)
    assert next_state(life, Event.TIME, 1.1) == (life, Act.NONE)
    life, act = next_state(life, Event.TIME, 1.2)
    assert (life.state, act, life.restarts) == (State.STARTING, Act.SPAWN, 1)


def test_pauses_double_up_to_the_longest():
    life, now, pauses = live(), 1.0, []
    for _ in range(7):
        life, pause = crash(life, now)
        pauses.append(round(pause, 3))
        now = life.at_s
        life, _ = next_state(life, Event.TIME, now)
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


@pytest.mark.parametrize(("lived_s", "pause_s"), [(STEADY_S - 0.1, 0.4), (STEADY_S, 0.2)])
def test_process_that_was_live_long_enough_starts_with_the_first_pause(lived_s, pause_s):
    life, _ = crash(live(), 0.0)
    life, _ = next_state(life, Event.TIME, 1.0)
    life, _ = next_state(life, Event.ATTACHED, 1.0)
    _, pause = crash(life, 1.0 + lived_s)
    assert pause == pytest.approx(pause_s)


def test_stop_asks_first_and_kills_after_the_grace():
    life, act = next_state(live(), Event.STOP, 1.0, grace_s=2.0)
    assert (life.state, act) == (State.STOPPING, Act.ASK_TO_STOP)
    assert next_state(life, Event.TIME, 2.9)[1] is Act.NONE
    assert next_state(life, Event.TIME, 3.0)[1] is Act.KILL
    life, act = next_state(life, Event.EXITED, 3.1)
    assert (life.state, act, life.restarts) == (State.STOPPED, Act.NONE, 0)


def test_process_stopped_while_it_waits_never_comes_back():
    life, _ = crash(live(), 0.0)
    life, act = next_state(life, Event.STOP, 0.1)
    assert (life.state, act) == (State.STOPPED, Act.NONE)
    assert next_state(life, Event.TIME, 99.0)[1] is Act.NONE


def test_process_that_never_gets_ready_is_killed():
    life, _ = begin(Life(), 0.0)
    assert next_state(life, Event.TIME, START_S - 0.1)[1] is Act.NONE
    assert next_state(life, Event.TIME, START_S)[1] is Act.KILL


@given(st.lists(st.tuples(st.sampled_from(Event), st.floats(0, 3)), max_size=40))
def test_after_a_stop_nothing_is_ever_spawned(events):
    life, now, stopped = begin(Life(), 0.0)[0], 0.0, False
    for event, pause in events:
        now += pause
        life, act = next_state(life, event, now)
        stopped = stopped or event is Event.STOP
        assert not (stopped and act is Act.SPAWN)
        assert 0 <= life.pause_s <= life.longest_s
