"""fabricctl events, metrics and schema: what they ask for, and what they print."""

import json
import time

import pytest

from fabric.config import json_schema
from fabric.testing.fake_control import EVENTS


def test_events_are_a_table_with_channel_reason_and_count(fabricctl, control):
    result = fabricctl("events")
    assert result.status == 0
    lines = result.out.splitlines()
    assert lines[0].split()[:4] == ["AT", "NODE", "SEVERITY", "EVENT"]
    assert "messages dropped  kv" in lines[1]
    assert "overflow_newest" in lines[1]
    assert "144" in lines[1]


def test_events_as_json_are_the_records_themselves(fabricctl, control):
    rows = json.loads(fabricctl("events", "-o", "json").out)
    assert [row["kind"] for row in rows] == ["messages dropped", "view held"]
    assert rows[0]["count"] == 144
    assert rows[1]["more"] == {"age_s": 12.5}


def test_the_options_of_events_reach_the_node(fabricctl, control):
    before = time.time()
    fabricctl("events", "--drops", "--reason", "expired", "--channel", "kv", "--since", "5m")
    ((verb, query),) = [call for call in control.calls if call[0] == "events"]
    assert verb == "events"
    assert (query["drops"], query["reason"], query["channel"]) == (True, "expired", "kv")
    assert before - 300 <= query["since"] <= time.time() - 300


@pytest.mark.parametrize("since", ["5", "soon", "5 weeks", "-5m"])
def test_a_duration_that_is_none_is_refused_with_the_units(fabricctl, control, since):
    result = fabricctl("events", f"--since={since}")
    assert result.status == 1
    assert "is not a duration" in result.err
    assert "do:  write for example --since 5m" in result.err


def test_following_shows_what_comes_and_asks_only_for_what_is_new(fabricctl, control, monkeypatch):
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("fabric.cli.events.time.sleep", pause)
    result = fabricctl("events", "--follow")
    assert result.status == 130
    assert (
        "messages dropped  channel=kv  port=prefill  reason=overflow_newest  count=144"
        in result.out
    )
    assert [query["after"] for _, query in control.calls] == [{}, {"a": 2}]


def test_metrics_are_printed_as_they_are(fabricctl, control):
    assert fabricctl("metrics").out == "# HELP fabric_info A node.\nfabric_info 1.0\n"


def test_schema_needs_no_node(fabricctl):
    assert fabricctl("schema").out == json_schema.text()


@pytest.mark.parametrize("verb", ["events", "metrics"])
def test_without_a_node_the_verb_says_how_to_start_one(fabricctl, verb):
    result = fabricctl(verb)
    assert result.status == 1
    assert "start one: fabricctl up" in result.err


@pytest.mark.parametrize("follow", [(), ("--follow",)])
def test_an_event_without_a_text_shows_what_else_is_known_of_it(
    fabricctl, control, monkeypatch, follow
):
    def stop(seconds):
        raise KeyboardInterrupt

    row = {**dict.fromkeys(EVENTS[0], ""), "at": 1.0, "more": {"process": "module-w", "code": 1}}
    monkeypatch.setattr("fabric.testing.fake_control.EVENTS", [row])
    monkeypatch.setattr("fabric.cli.events.time.sleep", stop)
    assert "code 1, process module-w" in fabricctl("events", *follow).out
