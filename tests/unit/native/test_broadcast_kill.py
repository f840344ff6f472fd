"""A process that dies in the middle of a broadcast: what reached its lanes is in the ledger, nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fabric import _native
from tests.unit.native.pair import DELIVERED, Attached, soon

ROOT = Path(__file__).parents[3]
RECEIVERS = ((200, 21), (200, 22), (300, 31))  # port, endpoint: two share a lane
LANES = {200: 1, 300: 2}

VICTIM = """
import sys
from fabric import _native
from tests.unit.native.pair import soon
state, doorbell, event, *lanes = map(int, sys.argv[1:])
port = _native.Port(100, 1, state, doorbell, event, service_thread=False)
out = port.open_sender(11, 7, 99, 2, 0, 1)
for n, peer in ((1, 200), (2, 300)):
    port.add_lane(n, lanes[3 * n - 3], 0, 1, peer, 1, *lanes[3 * n - 2:3 * n])
for endpoint in (21, 31, 22):
    port.add_flow_out(11, endpoint, 2 if endpoint == 31 else 1, endpoint, 64, 1 << 20, 1, False)
while True:
    out.send(b"m", [], None, soon(30))
"""


@pytest.mark.promise("P1")
@pytest.mark.parametrize(
    ("step", "accepted"),
    [
        ("send.pending:kill:7", 6),  # the first copy of the third message is being written
        ("send.pending:kill:9", 6),
        (
            "send.published:kill:5",
            8,
        ),  # of the third message only the first lane's two copies are visible
        ("send.published:kill:6", 9),
        ("send.accepted:kill:3", 9),
    ],
)
def test_broadcast_killed_between_any_two_lanes_is_settled(step: str, accepted: int) -> None:
    fds = [_native.create_state(100, 1, 0), _native.create_doorbell(), os.eventfd(0)]
    state, doorbell, event = fds
    places = {number: Attached.open(number) for number in LANES}
    lanes = {number: _native.create_lane_pair(1, 100, 1, number, 1) for number in LANES}
    ends = []
    for number, place in places.items():
        place.port.add_lane(LANES[number], lanes[number], 1, 1, 100, 1, doorbell, event)
        fds += [lanes[number], place.doorbell, place.event]
    for number, endpoint in RECEIVERS:
        ends.append(places[number].port.open_receiver(endpoint, 7, 99, 2, 0))
        places[number].port.add_flow_in(endpoint, endpoint, LANES[number], 100, 64, 1 << 20)
    environment = {**os.environ, "FABRIC_FAULTS": "1", "FABRIC_STEP": step}
    command = [sys.executable, "-c", VICTIM, *map(str, fds)]
    try:
        done = subprocess.run(
            command, pass_fds=fds, cwd=ROOT, env=environment, timeout=20, check=False
        )
        assert done.returncode == -9
        got = sum(len(inn.receive_many(9, soon(0.05))) for inn in ends)
        for place in places.values():
            place.port.progress()
        adopter = _native.Adopter(state)
        for number, lane in lanes.items():
            adopter.add_lane(lane, 0, LANES[number])
        assert adopter.step() == 0
        row = _native.inspect_state(state)["ledgers"][0]
        assert row["accepted"] == row["tail"] == got == accepted
        assert row["counts"] == {(DELIVERED, 0): accepted}
    finally:
        for place in places.values():
            place.close()
        for fd in (state, doorbell, event, *lanes.values()):
            os.close(fd)
