"""The life of one supervised process, as a pure state machine: events and time in, what to do out.

No IO, no clock, no process here: the daemon asks `next_state` and does what it says through the keeper.
Rules: a process that ends unasked comes back after a pause that doubles from `first_s` to `longest_s`; one that was
live for `STEADY_S` starts with the first pause again. A stop is polite first; what is left after the grace is killed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

STEADY_S = 10.0
START_S = 60.0  #: a process that is not ready by then is killed and counted as ended


class State(enum.Enum):
    """Where a supervised process is."""

    STARTING = "starting"  #: spawned, not attached
    LIVE = "live"  #: attached
    READY = "ready"  #: said so
    WAITING = "waiting"  #: ended unasked, comes back at `at_s`
    STOPPING = "stopping"  #: asked to leave until `at_s`
    STOPPED = "stopped"  #: ended as asked; stays so


class Event(enum.Enum):
    """What can happen to it."""

    SPAWNED = "spawned"
    ATTACHED = "attached"
    READY = "ready"
    EXITED = "exited"
    STOP = "stop"
    TIME = "time"


class Act(enum.Enum):
    """What the daemon has to do."""

    NONE = "none"
    SPAWN = "spawn"
    ASK_TO_STOP = "ask_to_stop"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class Life:
    """Everything the machine remembers. `at_s`: when the next TIME event matters (0: never)."""

    state: State = State.STOPPED
    first_s: float = 0.2
    longest_s: float = 5.0
    pause_s: float = 0.0
    live_since_s: float = 0.0
    at_s: float = 0.0
    restarts: int = 0


def begin(life: Life, now_s: float) -> tuple[Life, Act]:
    """Start a process that is stopped (or new)."""
    return replace(life, state=State.STARTING, at_s=now_s + START_S, pause_s=0.0), Act.SPAWN


def next_state(life: Life, event: Event, now_s: float, grace_s: float = 5.0) -> tuple[Life, Act]:
    """Return the life after `event` at `now_s`, and the act that follows."""
    if event is Event.EXITED:
        return _after_exit(life, now_s)
    if event is Event.STOP:
        return _after_stop(life, now_s, grace_s)
    if event is Event.TIME:
        return _after_time(life, now_s)
    if event is Event.SPAWNED and life.state is State.STARTING:
        return replace(life, at_s=now_s + START_S), Act.NONE
    if event is Event.ATTACHED and life.state is State.STARTING:
        return replace(life, state=State.LIVE, live_since_s=now_s, at_s=0.0), Act.NONE
    if event is Event.READY and life.state in (State.STARTING, State.LIVE):
        return replace(
            life, state=State.READY, live_since_s=life.live_since_s or now_s, at_s=0.0
        ), Act.NONE
    return life, Act.NONE


def _after_exit(life: Life, now_s: float) -> tuple[Life, Act]:
    if life.state in (State.STOPPING, State.STOPPED):
        return replace(life, state=State.STOPPED, at_s=0.0, live_since_s=0.0), Act.NONE
    if life.state is State.WAITING:
        return life, Act.NONE
    was_steady = life.live_since_s > 0 and now_s - life.live_since_s >= STEADY_S
    pause = (
        life.first_s if was_steady or life.pause_s == 0 else min(life.pause_s * 2, life.longest_s)
    )
    waiting = replace(
        life,
        state=State.WAITING,
        pause_s=pause,
        at_s=now_s + pause,
        live_since_s=0.0,
        restarts=life.restarts + 1,
    )
    return waiting, Act.NONE


def _after_stop(life: Life, now_s: float, grace_s: float) -> tuple[Life, Act]:
    if life.state in (State.WAITING, State.STOPPED):
        return replace(life, state=State.STOPPED, at_s=0.0), Act.NONE
    if life.state is State.STOPPING:
        return life, Act.NONE
    return replace(life, state=State.STOPPING, at_s=now_s + grace_s), Act.ASK_TO_STOP


def _after_time(life: Life, now_s: float) -> tuple[Life, Act]:
    if life.at_s == 0 or now_s < life.at_s:
        return life, Act.NONE
    if life.state is State.WAITING:
        return replace(life, state=State.STARTING, at_s=now_s + START_S), Act.SPAWN
    if life.state in (State.STOPPING, State.STARTING):
        return replace(life, at_s=now_s + 1.0), Act.KILL
    return replace(life, at_s=0.0), Act.NONE
