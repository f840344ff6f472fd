"""kill -9 at any instant: what a dead sender or receiver left behind is settled to the last message."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fabric import _native
from tests.unit.native.pair import AT_LEAST_ONCE, AT_MOST_ONCE, DELIVERED, FAILED, soon

ROOT = Path(__file__).parents[3]
SENDER_LOST, PEER_LOST, OUTCOME_UNKNOWN = 15, 6, 7

VICTIM = """
import sys
from fabric import _native
from tests.unit.native.pair import soon
role, delivery, state, doorbell, event, lane, peer_doorbell, peer_event = sys.argv[1], *map(int, sys.argv[2:])
port = _native.Port(100, 1, state, doorbell, event)
port.add_lane(1, lane, 0, 1, 200, 1, peer_doorbell, peer_event)
if role == "sender":
    out = port.open_sender(11, 7, 99, 0, delivery, 1)
    port.add_flow_out(11, 1, 1, 21, 64, 1 << 20, 1, False)
    print("ready", flush=True)
    while True:
        out.send_many([b"a", b"b" * 500, b"c"], [[], [], []], [None, b"k", None], soon(30))
else:
    inn = port.open_receiver(21, 7, 99, 0, delivery)
    port.add_flow_in(21, 1, 1, 200, 64, 1 << 20)
    print("ready", flush=True)
    while True:
        message = inn.receive(soon(30))
        if message is not None and delivery:
            message.ack()
"""


class Victim:
    """Port 100 in a process that will be killed; port 200 is ours."""

    def __init__(self, role: str, delivery: int) -> None:
        self.fds = [
            _native.create_state(100, 1, 0),
            _native.create_doorbell(),
            os.eventfd(0, os.EFD_NONBLOCK),
        ]
        own = [
            _native.create_state(200, 1, 0),
            _native.create_doorbell(),
            os.eventfd(0, os.EFD_NONBLOCK),
        ]
        self.lane = _native.create_lane_pair(1, 100, 1, 200, 1)
        self.port: Any = _native.Port(200, 1, *own, service_thread=False)
        self.port.add_lane(1, self.lane, 1, 1, 100, 1, self.fds[1], self.fds[2])
        given = [*self.fds, self.lane, *own[1:]]
        self.state, self.own_state = self.fds[0], own[0]
        self.fds += [*own, self.lane]
        command = [sys.executable, "-c", VICTIM, role, str(delivery), *map(str, given)]
        self.process = subprocess.Popen(command, pass_fds=given, cwd=ROOT, stdout=subprocess.PIPE)

    def wait_ready(self) -> None:
        assert self.process.stdout is not None and self.process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.port.close()
        for fd in self.fds:
            os.close(fd)


@pytest.mark.parametrize("milliseconds", [3, 11, 23])
@pytest.mark.parametrize("delivery", [AT_MOST_ONCE, AT_LEAST_ONCE])
def test_killed_sender_is_settled_to_the_last_message(delivery: int, milliseconds: int) -> None:
    with Victim("sender", delivery) as victim:
        inn = victim.port.open_receiver(21, 7, 99, 0, delivery)
        victim.port.add_flow_in(21, 1, 1, 100, 64, 1 << 20)
        victim.wait_ready()
        # A victim that got no processor yet has sent nothing: its first message is waited for.
        received, until, wait_s = 0, time.monotonic() + milliseconds / 1e3, 20.0
        while time.monotonic() < until:
            for message in inn.receive_many(64, soon(wait_s)):
                wait_s = 0.01
                received += 1
                assert message.sequence == received
                message.ack()
        victim.kill()
        victim.port.close_flow_in(1, True)
        while messages := inn.receive_many(64, 0):
            received += len(messages)
            for message in messages:
                message.ack()
        victim.port.progress()
        adopter = _native.Adopter(victim.state)
        adopter.add_lane(victim.lane, 0)
        assert adopter.step() == 0
        row = _native.inspect_state(victim.state)["ledgers"][0]
        assert row["accepted"] == row["tail"] == received > 0
        assert row["counts"] == {(DELIVERED, 0): received}


@pytest.mark.parametrize("milliseconds", [3, 11, 23])
@pytest.mark.parametrize("delivery", [AT_MOST_ONCE, AT_LEAST_ONCE])
def test_every_message_to_a_killed_receiver_ends_once(delivery: int, milliseconds: int) -> None:
    with Victim("receiver", delivery) as victim:
        out = victim.port.open_sender(11, 7, 99, 0, delivery, 1)
        victim.port.add_flow_out(11, 1, 1, 21, 64, 1 << 20, 1, False)
        victim.wait_ready()
        sent, until = 0, time.monotonic() + milliseconds / 1e3
        while time.monotonic() < until:
            sent += out.send_many([b"x"] * 16, [[]] * 16, [None] * 16, soon(5))
        victim.kill()
        handed = _native.inspect_state(victim.state)["flows"][0]["handed"]
        victim.port.lose_flow_out(1, handed, PEER_LOST)
        if delivery == AT_LEAST_ONCE:
            out.close()  # nobody else is there: what waits for a consumer ends here
        counts = out.counts()
        assert sum(counts.values()) == sent == out.ended_upto() > 0
        if delivery == AT_MOST_ONCE:
            assert counts[DELIVERED, 0] == handed
            assert counts.get((FAILED, PEER_LOST), 0) == sent - handed
        else:
            assert (
                handed - 1
                <= counts[DELIVERED, 0] + counts.get((FAILED, OUTCOME_UNKNOWN), 0)
                <= handed
            )
