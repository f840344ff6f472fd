"""Who holds what since when: the port's own answer, and what its state says from outside."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from fabric import _native
from tests.unit.native.pair import AT_LEAST_ONCE, AT_MOST_ONCE, Pair, pair, send_each, soon


@pytest.fixture
def joined() -> Iterator[Pair]:
    with pair() as both:
        yield both


@pytest.mark.parametrize("delivery", [AT_MOST_ONCE, AT_LEAST_ONCE])
def test_views_are_listed_from_hand_over_to_release(joined: Pair, delivery: int) -> None:
    out, inn = joined.sender(delivery=delivery), joined.receiver(delivery=delivery)
    flow = joined.flow()
    joined.segment()
    for _ in range(2):
        out.send(b"m", [b"x" * 20_000], None, soon())
    joined.b.port.progress()
    assert joined.b.port.views() == []
    before = _native.monotonic_ns() - 20_000_000  # the coarse clock lags by a tick
    view = inn.receive(soon())
    (row,) = joined.b.port.views()
    assert (row["channel"], row["flow"], row["flow_seq"]) == (7, flow, 1)
    assert row["bytes"] == view.payload_bytes >= 20_000
    assert before <= row["since_ns"] <= _native.monotonic_ns()
    view.ack()
    assert len(joined.b.port.views()) == 1  # its slot is still read
    view.release()
    assert joined.b.port.views() == []


def test_view_collected_without_acknowledgement_stays_listed(joined: Pair) -> None:
    out, inn = joined.sender(delivery=AT_LEAST_ONCE), joined.receiver(delivery=AT_LEAST_ONCE)
    joined.flow()
    send_each(out, [b"1", b"2"])
    inn.receive(soon())
    gc.collect()
    assert [row["flow_seq"] for row in joined.b.port.views()] == [1]
    inn.receive(soon()).ack()
    assert [row["flow_seq"] for row in joined.b.port.views()] == [1]


def test_state_shows_the_same_from_outside(joined: Pair) -> None:
    out, inn = joined.sender(delivery=AT_LEAST_ONCE), joined.receiver(delivery=AT_LEAST_ONCE)
    joined.flow()
    joined.segment()
    for _ in range(2):
        out.send(b"m", [b"x" * 20_000], None, soon())
    kept = inn.receive(soon())
    handed, queued = _native.inspect_state(joined.b.state)["held"]
    (view,) = joined.b.port.views()
    assert (handed["state"], queued["state"]) == ("handed", "queued")
    assert {key: handed[key] for key in ("channel", "flow", "flow_seq", "since_ns")} == {
        key: view[key] for key in ("channel", "flow", "flow_seq", "since_ns")
    }
    assert handed["payload_bytes"] == view["bytes"] == kept.payload_bytes
    assert handed["segments"] == queued["segments"] == 1
