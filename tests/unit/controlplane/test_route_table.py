"""What senders are told of the targets of built-in policies, and what policies in Python cost. Values only."""

from __future__ import annotations

import pytest

from fabric import limits
from fabric.config.routes import parse
from fabric.controlplane.route_costs import RouteCost
from fabric.controlplane.route_table import base_name, rows_of
from fabric.registry.records import EndpointRecord


def target(number: int, name: str, node: int = 1) -> EndpointRecord:
    return EndpointRecord(
        endpoint=number, channel=1, role="receiver", node=node, incarnation=1, port=number, port_name=name
    )  # fmt: skip


TARGETS = [target(1, "stable"), target(2, "stable-1", 2), target(3, "canary"), target(4, "guest")]


def column(route: str, index: int) -> list[float]:
    return [row[index] for row in rows_of(parse(route), TARGETS, 1).values()]


def test_a_module_s_weight_is_divided_by_its_replicas_and_who_is_not_named_has_none():
    assert column('weighted {"weights":{"stable":9,"canary":1}}', 1) == [4.5, 4.5, 1.0, 0.0]


def test_a_replica_may_be_named_by_itself():
    assert column('weighted {"weights":{"stable":1,"stable-1":3}}', 1) == [1.0, 3.0, 0.0, 0.0]


def test_without_weights_all_are_equal():
    assert column("weighted", 1) == [1.0] * 4


def test_order_gives_ranks_and_who_is_not_named_comes_last():
    assert column('failover {"order":["canary","stable"]}', 2) == [1, 1, 0, 2]


def test_another_node_is_farther():
    assert column("locality", 3) == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("name", "base"), [("a", "a"), ("a-1", "a"), ("a-b", "a-b"), ("a-1-2", "a-1")]
)
def test_a_replica_has_its_module_s_name(name, base):
    assert base_name(name) == base


def test_a_cost_says_means_maxima_and_what_was_saved():
    cost = RouteCost("mine")
    cost.decided({"us": 10.0}, 1, 500.0)
    cost.decided({"us": 30.0}, 8, 700.0)
    cost.cached(7, 90)
    cost.cached(7, 100)
    cost.cached(8, 5)
    cost.failed("x" * 1000)
    row = cost.row()
    assert (row["decisions"], row["messages"], row["cache_hits"], row["fallbacks"]) == (
        2,
        9,
        105,
        1,
    )
    assert (row["policy_us_mean"], row["policy_us_max"], row["ask_us_mean"]) == (20.0, 30.0, 600.0)
    assert len(row["last_error"]) == 400


def test_senders_that_are_counted_are_bounded(monkeypatch):
    monkeypatch.setattr(limits, "CHANNELS_MAX", 4)
    cost = RouteCost("mine")
    for sender in range(10):
        cost.cached(sender, 1)
    assert cost.row()["cache_hits"] == 4
