"""What the daemon reads and settles: inspection, faults that an audit must see, adoption of the dead."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric import _native, errors
from tests.unit.native.pair import AT_LEAST_ONCE, DELIVERED, FAILED, Pair, pair, send_each, soon

pytestmark = pytest.mark.promise("P1")

ROOT = Path(__file__).parents[3]


@pytest.fixture
def joined() -> Iterator[Pair]:
    with pair() as both:
        yield both


@pytest.fixture
def faulty(joined: Pair, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setenv("FABRIC_FAULTS", "1")
    return joined


def places(joined: Pair) -> dict[str, list[tuple[int, int]]]:
    """Every (flow, flow_seq) by where it was found."""
    lane = _native.inspect_lane(joined.lane_fd, 0)
    held = _native.inspect_state(joined.b.state)["held"]
    ends = [
        (flow, seq)
        for kind, flow, a, b, _, _ in lane["returns"]
        if kind == 1
        for seq in range(a, b + 1)
    ]
    return {
        "lane": [(flow, seq) for flow, seq, _, _ in lane["records"]],
        "held": [(row["flow"], row["flow_seq"]) for row in held],
        "returned": ends,
    }


def ledger(joined: Pair) -> dict[str, Any]:
    return _native.inspect_state(joined.a.state)["ledgers"][0]


def test_every_outstanding_message_is_found_where_it_is(joined: Pair) -> None:
    out, inn = joined.sender(delivery=AT_LEAST_ONCE), joined.receiver(delivery=AT_LEAST_ONCE)
    flow = joined.flow()
    send_each(out, [b"1", b"2", b"3"])
    assert places(joined) == {"lane": [(flow, 1), (flow, 2), (flow, 3)], "held": [], "returned": []}
    first = inn.receive(soon())
    assert places(joined) == {"lane": [], "held": [(flow, 1), (flow, 2), (flow, 3)], "returned": []}
    first.ack()
    assert places(joined) == {"lane": [], "held": [(flow, 2), (flow, 3)], "returned": [(flow, 1)]}
    row = ledger(joined)
    assert (row["accepted"], row["tail"]) == (3, 0)
    assert [entry["state"] for entry in row["outstanding"]] == ["accepted"] * 3
    assert out.ended_upto() == 1
    row = ledger(joined)
    assert (row["tail"], row["counts"], len(row["outstanding"])) == (1, {(DELIVERED, 0): 1}, 2)
    held = _native.inspect_state(joined.b.state)
    assert held["flows"][0]["handed"] == 1 and held["flows"][0]["reported"] == [0, 1, 0, 0]


def test_lost_record_is_found_nowhere(faulty: Pair) -> None:
    out, _ = faulty.sender(), faulty.receiver()
    flow = faulty.flow()
    faulty.b.port.inject("lose_drained", 1)
    send_each(out, [b"1", b"2"])
    faulty.b.port.progress()
    assert places(faulty)["held"] == [(flow, 2)] and len(ledger(faulty)["outstanding"]) == 2


def test_repeated_record_is_held_twice(faulty: Pair) -> None:
    out, _ = faulty.sender(), faulty.receiver()
    flow = faulty.flow()
    faulty.b.port.inject("repeat_drained", 1)
    send_each(out, [b"1"])
    faulty.b.port.progress()
    assert places(faulty)["held"] == [(flow, 1)] * 2


def test_miscounted_fold_disagrees_with_its_tail(faulty: Pair) -> None:
    out, inn = faulty.sender(), faulty.receiver()
    faulty.flow()
    faulty.a.port.inject("miscount_fold", 1)
    send_each(out, [b"1"])
    inn.receive(soon())
    assert out.flush(soon())
    row = ledger(faulty)
    assert (row["tail"], sum(row["counts"].values())) == (1, 2)


def test_corrupt_cursor_is_refused_by_inspection(faulty: Pair) -> None:
    out, _ = faulty.sender(), faulty.receiver()
    faulty.flow()
    faulty.b.port.inject("corrupt_cursor", 1)
    send_each(out, [b"1"])
    faulty.b.port.progress()
    with pytest.raises(errors.InternalError, match="head lies before tail"):
        _native.inspect_lane(faulty.lane_fd, 0)


def test_lying_record_breaks_its_lane_and_names_what_is_wrong(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    joined.flow()
    send_each(out, [b"1"])
    records = 4096 * 2  # layout.hpp: LaneHead page, cursors page, then direction 0's ring
    os.pwrite(joined.lane_fd, b"\x09", records)
    with pytest.raises(errors.PeerProtocolError, match="record version is unknown"):
        inn.receive(soon())
    assert joined.b.port.stats()["lying"] == 1


def test_adopter_settles_a_dead_sender_from_its_return_rings(joined: Pair) -> None:
    out, inn = joined.sender(), joined.receiver()
    flow = joined.flow()
    send_each(out, [b"x"] * 5)
    joined.a.port.close()
    taken = inn.receive_many(2, soon())
    adopter = _native.Adopter(joined.a.state)
    adopter.add_lane(joined.lane_fd, 0)
    assert adopter.step() == 3
    taken += inn.receive_many(1, soon())
    joined.b.port.close_flow_in(flow, True)
    assert adopter.step() == 2
    adopter.finish(15)
    row = ledger(joined)
    assert (row["tail"], row["counts"]) == (5, {(DELIVERED, 0): 3, (FAILED, 15): 2})
    assert len(taken) == 3


def test_adopter_splits_a_lost_flow_at_what_was_handed_over(joined: Pair) -> None:
    out = joined.sender(delivery=AT_LEAST_ONCE)
    flow = joined.flow()
    send_each(out, [b"x"] * 5)
    joined.a.port.close()
    adopter = _native.Adopter(joined.a.state)
    adopter.add_lane(joined.lane_fd, 0)
    adopter.lose_flow(flow, 2, 6)
    assert adopter.step() == 0
    assert ledger(joined)["counts"] == {(FAILED, 7): 2, (FAILED, 6): 3}


OTHER = """
import os, sys
from fabric import _native
from tests.unit.native.pair import soon
state, doorbell, event, lane, peer_doorbell, peer_event = map(int, sys.argv[1:])
port = _native.Port(200, 1, state, doorbell, event)
port.add_lane(1025, lane, 1, 2, 100, 1, peer_doorbell, peer_event)
inn, back = port.open_receiver(21, 7, 99, 0, 0), port.open_sender(12, 8, 99, 0, 0, 1)
port.add_flow_in(21, 1, 1025, 100, 256, 1 << 24)
port.add_flow_out(12, 2, 1025, 22, 256, 1 << 24, 1, False)
print("ready", flush=True)  # what came before its flow would be a stray
held = []
for _ in range(100):
    message = inn.receive(soon())
    held.append(message.tensor(0, "uint8", (64,)))
    back.send(message.meta + b"!", [held[-1]], None, soon())
assert back.flush(soon())
sys.exit(0)  # views, endpoints and port are alive: the interpreter's exit collects them
"""


def test_second_process_answers_and_leaves_with_live_views(joined: Pair) -> None:
    joined.b.port.close()
    state = _native.create_state(200, 1, os.getuid())
    doorbell, event = _native.create_doorbell(), os.eventfd(0, os.EFD_NONBLOCK)
    lane = _native.create_lane_pair(2, 100, 1, 200, 1)
    a = joined.a
    fds = [state, doorbell, event, lane, a.doorbell, a.event]
    a.port.add_lane(1025, lane, 0, 2, 200, 1, doorbell, event)
    out, inn = joined.sender(), a.port.open_receiver(22, 8, 99, 0, 0)
    a.port.add_flow_in(22, 2, 1025, 200, 256, 1 << 24)
    a.port.add_flow_out(11, 1, 1025, 21, 256, 1 << 24, 1, False)
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, *map(str, fds)],
        pass_fds=fds,
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == b"ready\n"
        for i in range(100):
            out.send(b"%d" % i, [bytes([i]) * 64], None, soon(20))
            answer = inn.receive(soon(20))
            assert answer.meta == b"%d!" % i and answer.tensor(0, "uint8", (64,))[0] == i
        a.port.progress()
        assert other.wait(20) == 0
    finally:
        other.kill()
        other.communicate()
        joined.a.fds += [state, doorbell, event, lane]
