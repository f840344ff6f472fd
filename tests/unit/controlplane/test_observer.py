"""What the daemon tells of what it sees: drops once per look, a view held too long once, limits by name."""

from types import SimpleNamespace

import pytest

from fabric import errors, limits
from fabric.controlplane.observer import Observer, observed
from fabric.registry.records import ArchivedCounts, ChannelRecord, View
from fabric.telemetry.events import DROPPED, FAILED, VIEW_HELD, EventLog, Query

NOW_NS = 1_000_000_000_000


class Native:
    """Samplers that show what the test put there."""

    def __init__(self):
        self.states, self.lanes, self.segments = {}, {}, {}
        self.made = []

    def StateSampler(self, fd):
        self.made.append(fd)
        if self.states[fd] is None:
            raise errors.InternalError("not a state segment")
        return SimpleNamespace(
            sample=lambda: {"ledgers": [], "flows": [], "held": [], **self.states[fd]}
        )

    def LaneSampler(self, fd):
        return SimpleNamespace(sample=lambda side: self.lanes[fd][side])

    def sample_segment(self, fd):
        return self.segments[fd]


@pytest.fixture
def daemon(monkeypatch):
    monkeypatch.setattr(errors, "on_limit", errors.on_limit)
    monkeypatch.setattr("fabric.controlplane.observer.time.monotonic_ns", lambda: NOW_NS)
    view = View(channels=(ChannelRecord(number=7, name="kv", type_name="t"),))
    made = SimpleNamespace(
        context=SimpleNamespace(
            name="a", native=Native(), events=EventLog(), keeper=SimpleNamespace()
        ),
        ports=[],
        lanes=SimpleNamespace(all=list),
        segments=SimpleNamespace(all=list),
        registry=SimpleNamespace(view=view),
        death=SimpleNamespace(unsettled_count=0),
        wiring=SimpleNamespace(leaving_count=0),
    )
    made.observer = Observer(made)
    return made


def port(daemon, number, name, **state):
    fd = 100 + number
    daemon.context.native.states[fd] = state
    row = SimpleNamespace(
        port=number,
        name=name,
        kind="client",
        pid=number,
        state_fd=fd,
        is_alive=True,
        is_suspect=False,
    )
    daemon.ports.append(row)
    return row


def ledger(counts, endpoint=9):
    return {
        "endpoint": endpoint, "channel": 7, "accepted": 50, "delivered_bytes": 0, "outstanding": 0,
        "outstanding_bytes": 0, "waiting": 0, "counts": counts,
    }  # fmt: skip


def view_of(age_s, views=1):
    return {"channel": 7, "queued": 0, "queued_bytes": 0, "views": views, "view_bytes": 10 * views,
            "oldest_view_ns": NOW_NS - int(age_s * 1e9)}  # fmt: skip


def told(daemon, kind):
    return [event for event in daemon.context.events.find(Query()) if event.kind == kind]


@pytest.mark.promise("P1")
def test_what_was_dropped_and_failed_since_the_last_look_is_one_event_each(daemon):
    state = port(daemon, 1, "snd", ledgers=[ledger({(1, 0): 5, (2, 3): 4, (3, 6): 2})])
    daemon.observer.tick()
    daemon.observer.tick()
    (dropped,), (failed,) = told(daemon, DROPPED), told(daemon, FAILED)
    assert (dropped.channel, dropped.port, dropped.reason, dropped.count) == (
        "kv",
        "snd",
        "overflow_newest",
        4,
    )
    assert (failed.reason, failed.count) == ("peer_lost", 2)
    daemon.context.native.states[state.state_fd]["ledgers"] = [ledger({(2, 3): 9})]
    daemon.observer.tick()
    assert [event.count for event in told(daemon, DROPPED)] == [4, 5]


def test_what_a_sender_that_left_had_dropped_is_told_from_its_final_counts(daemon):
    port(daemon, 1, "snd", ledgers=[ledger({(2, 3): 4})])
    daemon.observer.tick()
    daemon.ports.clear()
    final = ArchivedCounts(endpoint=9, channel=7, accepted=8, counts=((2, 3, 6), (1, 0, 2)))
    daemon.observer.settle([final])
    daemon.observer.settle([final])
    assert [(event.port, event.count) for event in told(daemon, DROPPED)] == [
        ("snd", 4),
        ("snd", 2),
    ]
    assert daemon.observer.totals.ended == {(7, 2, 3): 6, (7, 1, 0): 2}


def test_a_view_held_too_long_is_one_event_that_names_channel_holder_and_age(daemon):
    port(daemon, 4, "holder", held=[view_of(limits.VIEW_HELD_WARN_S + 2.5, views=3)])
    for _ in range(3):
        daemon.observer.tick()
    (event,) = told(daemon, VIEW_HELD)
    assert (event.channel, event.port, event.more["pid"]) == ("kv", "holder", 4)
    assert event.more["age_s"] == limits.VIEW_HELD_WARN_S + 2.5
    assert "holder (pid 4) holds 3 messages of kv" in event.text


def test_the_next_view_is_told_of_when_the_oldest_was_released_and_a_young_one_never(daemon):
    state = port(daemon, 4, "holder", held=[view_of(30)])
    daemon.observer.tick()
    daemon.context.native.states[state.state_fd]["held"] = [view_of(20)]
    daemon.observer.tick()
    assert len(told(daemon, VIEW_HELD)) == 2
    daemon.context.native.states[state.state_fd]["held"] = [view_of(limits.VIEW_HELD_WARN_S - 0.5)]
    daemon.observer.tick()
    assert len(told(daemon, VIEW_HELD)) == 2


def test_holders_are_listed_oldest_first_and_bounded(daemon):
    for number in range(limits.HOLDERS_SHOWN + 5):
        port(daemon, number + 1, f"p{number}", held=[view_of(number)])
    status = observed(daemon.observer)
    assert [row["holder"] for row in status["holders"]][:2] == ["p24", "p23"]
    assert (len(status["holders"]), status["holders_more"]) == (limits.HOLDERS_SHOWN, 5)


def test_status_names_suspects_what_settles_and_memory_by_tenant_and_group(daemon):
    port(daemon, 3, "still").is_suspect = True
    daemon.death.unsettled_count = 2
    daemon.segments.all = lambda: [
        SimpleNamespace(tenant=5, group=group, fd=group, size_bytes=4096) for group in (0, 1, 1)
    ]
    daemon.context.native.segments = {
        0: {"slot_count": 4, "taken": 1},
        1: {"slot_count": 4, "taken": 4},
    }
    status = observed(daemon.observer)
    assert status["suspects"] == ["still (pid 3)"]
    assert status["unsettled"] == 2
    assert [
        (a["tenant"], a["group"], a["segments"], a["bytes"], a["slots_taken"])
        for a in status["arenas"]
    ] == [
        (5, "control", 1, 4096, 1),
        (5, "bulk", 2, 8192, 8),
    ]


@pytest.mark.promise("P8")
def test_a_limit_that_an_error_names_is_counted_and_a_foreign_name_is_other(daemon):
    daemon.observer.start()
    errors.CapacityError("too many", limit="PORTS_PER_NODE_MAX")
    errors.CapacityError("too many", limit="PORTS_PER_NODE_MAX")
    errors.ConfigError("too long", limit="x" * 1000)
    errors.CapacityError("without a name")
    assert daemon.observer.limits == {"PORTS_PER_NODE_MAX": 2, "other": 1}
    assert observed(daemon.observer)["limits_reached"] == {"PORTS_PER_NODE_MAX": 2, "other": 1}


@pytest.mark.promise("P4")
def test_a_port_that_cannot_be_read_is_told_once_and_the_others_are_sampled(daemon):
    bad = port(daemon, 9, "bad")
    daemon.context.native.states[bad.state_fd] = None
    port(daemon, 1, "good", ledgers=[ledger({(2, 3): 4})])
    daemon.observer.tick()
    daemon.observer.tick()
    assert [event.port for event in told(daemon, "state unreadable")] == ["bad"]
    assert len(told(daemon, DROPPED)) == 1


def test_a_mapping_is_made_once_for_a_port_and_given_back_with_it(daemon):
    port(daemon, 1, "p")
    for _ in range(3):
        daemon.observer.tick()
    assert daemon.context.native.made == [101]
    daemon.ports.clear()
    daemon.observer.tick()
    port(daemon, 1, "p")
    daemon.observer.tick()
    assert daemon.context.native.made == [101, 101]
