"""The exposition: every metric moves, names and labels are as Prometheus wants them, label sets are bounded."""

import re

from prometheus_client.parser import text_string_to_metric_families

from fabric.controlplane.audit import REASON_NAMES
from fabric.telemetry.prometheus import SESSION_COUNTERS, Readings, exposition
from fabric.telemetry.samples import (
    ArenaSample,
    HeldSample,
    LaneSample,
    LedgerSample,
    NodeSample,
    PortSample,
)
from fabric.telemetry.totals import Totals


def readings(channel="kv", counts=None):
    ledger = LedgerSample(9, 1, 20, 4096, 5, 500, 2, counts or {(1, 0): 10, (2, 1): 3, (3, 6): 2})
    held = HeldSample(1, 4, 400, 3, 300, 5_000_000_000)
    sample = NodeSample(
        "a",
        17_500_000_000,
        (PortSample(1, "p", "client", 12, "ready", (ledger,), (held,)),),
        (LaneSample("p", "q", "bulk", 700, 9), LaneSample("q", "p", "bulk", 200, 3)),
        (ArenaSample(1000, "bulk", 2, 8192, 8, 6),),
        {1: channel},
        3,
    )
    totals = Totals()
    totals.take([ledger])
    groups = [
        {"session": 4, "group": group, "up": True, "bytes_in": 1, "bytes_out": 2, "frames_in": 3, "frames_out": 4,
         "rtt_ns": 200_000, "backlog_bytes": 5}
        for group in (0, 1, 2, 3)
    ]  # fmt: skip
    session = {"session": 4, **{name: index + 1 for index, name in enumerate(SESSION_COUNTERS)}}
    return Readings(
        sample=sample, totals=totals, reasons=REASON_NAMES, version="1", uptime_s=2.5, credit={1: (16, 4096)},
        engine={"groups": groups, "sessions": [session]}, peers={4: "b"}, restarts={("module", "m"): 1},
        rails=[
            {"peer": "b", "rail": 1, "state": "up", "rate": 125e6, "rate_now": 1e6, "base_ns": 200_000, "inflight": 7,
             "window": 9, "penalty": 0.5, "is_primary": True, "delivered": 11, "resent": 12, "failures": 13},
        ],
        rail_changes={("b", 1, "suspect"): 2},
        archived={(1, 1): 6}, limits={"NAME_BYTES_MAX": 2}, events={"view held": 1}, events_lost=8, downgrades=1,
        joins={"pair": {"waiting": 1, "waiting_bytes": 2, "fused": 3, "dropped_incomplete": 4, "late": 5}},
        caches={1000: {"entries": 1, "bytes": 2, "capacity_bytes": 3, "hits": 4, "misses": 5, "puts": 6, "refused": 7,
                       "evictions": 8, "torn": 9}},
    )  # fmt: skip


def families(text):
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def value(found, name, **labels):
    (one,) = [
        s.value
        for family in found.values()
        for s in family.samples
        if s.name == name and s.labels == labels
    ]
    return one


def test_every_metric_has_a_sample_that_is_not_zero():
    found = families(exposition(readings()))
    still = [name for name, family in found.items() if not any(s.value for s in family.samples)]
    assert still == []
    assert len(found) >= 35


def test_names_types_and_units_are_prometheus_own():
    text = exposition(readings()).decode()
    for family in families(text.encode()).values():
        assert re.fullmatch(r"fabric_[a-z_]+", family.name)
        assert family.documentation
        assert not re.search(r"_(ms|us|ns|kb|mb)(_|$)", family.name), "base units only"
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
    assert "# HELP fabric_messages_ended_total" in text


def test_values_are_those_that_were_read():
    found = families(exposition(readings()))
    assert value(found, "fabric_messages_accepted_total", channel="kv") == 20
    assert (
        value(found, "fabric_messages_ended_total", channel="kv", end="dropped", reason="expired")
        == 3
    )
    assert (
        value(found, "fabric_messages_ended_total", channel="kv", end="failed", reason="peer_lost")
        == 2
    )
    assert value(found, "fabric_outstanding_messages", channel="kv") == 5
    assert value(found, "fabric_credit_left_messages", channel="kv") == 16 - (5 - 2)
    assert value(found, "fabric_queue_messages", channel="kv") == 4
    assert value(found, "fabric_view_oldest_seconds", channel="kv") == 12.5
    assert value(found, "fabric_lane_bytes", **{"class": "bulk"}) == 900
    assert value(found, "fabric_lane_bytes_most", **{"class": "bulk"}) == 700
    assert value(found, "fabric_link_rtt_seconds", peer="b", rail="1", group="bulk") == 0.0002
    assert value(found, "fabric_arena_slots_taken", tenant="1000", group="bulk") == 6
    assert value(found, "fabric_rail_base_seconds", peer="b", rail="1") == 0.0002
    assert value(found, "fabric_rail_delivered_bytes_total", peer="b", rail="1") == 11
    assert value(found, "fabric_rail_state", peer="b", rail="1", state="up") == 1
    assert value(found, "fabric_rail_changes_total", peer="b", rail="1", state="suspect") == 2
    assert value(found, "fabric_limits_reached_total", limit="NAME_BYTES_MAX") == 2


def test_a_hostile_channel_name_is_escaped_and_stays_one_label():
    name = 'a"b\\c\nd{e="f"} 1'
    assert value(families(exposition(readings(name))), "fabric_queue_messages", channel=name) == 4


def test_no_label_is_a_process_or_a_message():
    labels = {
        key
        for family in families(exposition(readings())).values()
        for sample in family.samples
        for key in sample.labels
    }
    assert labels <= {
        "channel", "class", "direction", "end", "event", "group", "join", "kind", "limit", "name", "node", "outcome",
        "peer", "rail", "what",
        "reason",
        "state", "tenant", "version",
    }  # fmt: skip
