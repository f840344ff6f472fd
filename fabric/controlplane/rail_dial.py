"""How long an attempt to connect to a rail, its handshake and the pause after it may take. Pure: no IO, no clock."""

from __future__ import annotations

from dataclasses import dataclass

from fabric import limits

DIAL_S = 3.0  #: the longest attempt, to a peer that nothing is known of
FIRST_DIAL_S = 1.0  #: the longest attempt to one rail of several, before it was ever up
HANDSHAKE_S = 1.0  #: of one rail of several; doubled with each failure
LONG_EVERY = 8  #: one of so many attempts is a long one
ROUND_TRIPS = 4  #: an attempt may take as many times what the last one took
CUT_OFF_TRIES = 60  #: as often, a peer that no rail leads to is tried without growing pauses


@dataclass(eq=False, slots=True)
class Dial:
    """How dialling one connection goes. `took_s` is of the last that succeeded; 0: none has."""

    failures: int = 0  #: in a row
    took_s: float = 0.0
    error: str = ""
    since_s: float = 0.0  #: when it was connected last
    short: int = 0  #: connections in a row that were lost within `STEADY_S`


def attempt_s(dial: Dial, rails: int, is_cut_off: bool) -> float:
    """Return how long one attempt to connect may take, in seconds.

    One of several rails is given up soon, since trying anew beats the back-off of one attempt; sooner where nothing
    else leads to the peer. One that never was up gets longer each time, up to `FIRST_DIAL_S`: its path may be slow. So
    does every eighth attempt: the network may have become slow, or this machine.
    """
    soon = limits.RAIL_DIAL_MS / 1000
    if dial.took_s and dial.failures % LONG_EVERY == LONG_EVERY - 1:
        return max(FIRST_DIAL_S, min(ROUND_TRIPS * dial.took_s, DIAL_S))
    if dial.took_s:
        return min(max(soon / 2 if is_cut_off else soon, ROUND_TRIPS * dial.took_s), DIAL_S)
    return min(soon * (1 << min(dial.failures, 8)), FIRST_DIAL_S) if rails > 1 else DIAL_S


def handshake_s(dial: Dial, rails: int) -> float:
    """Return how long the handshake after it may take, in seconds."""
    if rails <= 1:
        return limits.HANDSHAKE_S
    return min(HANDSHAKE_S * (1 << min(dial.failures, 8)), limits.HANDSHAKE_S)


def pause_s(failures: int, is_cut_off: bool) -> float:
    """Return the pause after so many failures in a row, in seconds."""
    first, longest = (ms / 1000 for ms in limits.RAIL_PAUSE_MS)
    if is_cut_off and failures <= CUT_OFF_TRIES:
        return first
    return min(first * (1 << min(max(failures - 1, 0), 16)), longest)
