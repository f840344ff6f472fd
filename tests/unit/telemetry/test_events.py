"""The log of events: numbered, bounded, counted when pushed out, found by what is asked for."""

import logging

import pytest

from fabric import limits
from fabric.telemetry.events import DROPPED, FAILED, EventLog, Query, merged


def log_of(node="a", kept=limits.EVENTS_KEPT, at=lambda: 1000.0):
    log = EventLog(kept, at)
    log.node = node
    return log


def test_an_event_has_its_fields_and_the_rest_in_more():
    event = log_of().add(
        DROPPED, channel="kv", port="p", reason="expired", count=7, text="t", flow=3
    )
    assert (event.number, event.at, event.node, event.channel, event.port) == (
        1,
        1000.0,
        "a",
        "kv",
        "p",
    )
    assert (event.reason, event.count, event.text, event.more) == ("expired", 7, "t", {"flow": 3})
    assert event.severity == "warning"


@pytest.mark.promise("P8")
def test_the_log_is_bounded_and_counts_what_it_pushed_out():
    log = log_of(kept=4)
    for number in range(10):
        log.add("process ended", pid=number)
    assert [event.number for event in log.find(Query())] == [7, 8, 9, 10]
    assert (log.total, log.lost) == (10, 6)
    assert log.by_kind == {"process ended": 10}


def test_foreign_kinds_cannot_make_the_table_of_kinds_grow():
    log = log_of()
    for number in range(1000):
        log.add(f"kind {number}")
    assert len(log.by_kind) <= 65
    assert sum(log.by_kind.values()) == 1000


def test_a_long_text_is_cut():
    event = log_of().add("x", text="y" * 10_000, reason="z" * 10_000)
    assert len(event.text) <= 500
    assert len(event.reason) <= 500


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ({}, [1, 2, 3, 4]),
        ({"drops": True}, [1, 2]),
        ({"reason": "expired"}, [1]),
        ({"channel": "kv"}, [1, 3]),
        ({"channel": "kv", "drops": True}, [1]),
        ({"after": 2}, [3, 4]),
        ({"since": 1002.0}, [3, 4]),
        ({"reason": "none such"}, []),
    ],
)
def test_a_query_takes_what_it_names(query, numbers):
    moments = iter((1000.0, 1001.0, 1002.0, 1003.0))
    log = log_of(at=lambda: next(moments))
    log.add(DROPPED, channel="kv", reason="expired")
    log.add(FAILED, channel="x", reason="rejected")
    log.add("view held", channel="kv")
    log.add("process ended")
    assert [event.number for event in log.find(Query(**query))] == numbers


def test_events_of_nodes_come_in_the_order_of_their_time():
    first, second = iter((1.0, 3.0)), iter((2.0, 4.0))
    a, b = log_of("a", at=lambda: next(first)), log_of("b", at=lambda: next(second))
    for log in (a, b, a, b):
        log.add("x")
    found = merged({"a": a.find(Query()), "b": b.find(Query())})
    assert [(event.node, event.at) for event in found] == [
        ("a", 1.0),
        ("b", 2.0),
        ("a", 3.0),
        ("b", 4.0),
    ]


def test_every_event_is_logged_with_its_fields_and_severity(caplog):
    with caplog.at_level(logging.INFO, logger="fabricd.events"):
        log_of().add("process ended", name="worker", reason="exit")
    (record,) = caplog.records
    assert (record.levelname, record.message, record.of_name, record.reason) == (
        "INFO",
        "process ended",
        "worker",
        "exit",
    )


def test_a_row_of_the_status_leaves_out_what_is_empty():
    (row,) = [event.row() for event in (log_of().add("x", pid=4),)]
    assert row == {"at_s": 1000.0, "event": "x", "severity": "warning", "pid": 4}


def test_a_process_is_named_by_its_name():
    event = log_of().add("process ended", port=4294967297, port_name="prefill", pid=7)
    assert event.port == "prefill"
    assert event.more == {"port_id": 4294967297, "pid": 7}


def test_port_known_by_its_name_alone_is_an_event_too():
    event = log_of().add("messages of a dead sender given up", port_name="p", messages=2)
    assert event.port == "p" and event.more == {"port_id": 0, "messages": 2}
