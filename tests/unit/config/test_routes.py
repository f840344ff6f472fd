"""A route in fabric.yaml and in a declaration: one text, checked by name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric import limits
from fabric.config import parse, routes, validate

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def of(route: str, pattern: str = "queue") -> list[str]:
    text = f"version: 1\nchannels:\n  c: {{type: t, pattern: {pattern}, route: {route}}}\n"
    return [str(p) for p in validate(parse(text)) if p.where == "channels.c.route"]


@settings(max_examples=50)
@given(params=st.dictionaries(st.text(min_size=1, max_size=8), VALUES, max_size=4))
def test_a_route_survives_its_text_whatever_its_parameters(params):
    spec = routes.RouteSpec("mine", params)
    assert routes.parse(spec.text) == spec
    assert routes.parse(routes.text_of({"name": "mine", **params})).name == "mine"


@given(text=st.text(max_size=80))
def test_any_other_text_is_read_or_refused_with_a_reason(text):
    try:
        assert routes.parse(text).name
    except ValueError as error:
        assert str(error)


def test_order_of_parameters_makes_no_other_route():
    one = routes.text_of({"name": "r", "a": 1, "b": 2})
    assert one == routes.text_of({"b": 2, "a": 1, "name": "r"}) == 'r {"a":1,"b":2}'


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ("{name: weighted, wieghts: {a: 1}}", "no parameter 'wieghts'; did you mean 'weights'"),
        ("{name: weighted, weights: {a: -1}}", "weights: the weight of 'a' is -1"),
        ("{name: weighted, weights: {a: 0}}", "every weight is 0"),
        ("{name: weighted, weights: 3}", "expected a map"),
        ("{name: hash_key, load_factor: 1}", "no number above 1"),
        ("{name: locality, spill: 0}", "no count of messages"),
        ("{name: failover, order: a}", "expected a list"),
        ("{name: round_robin, x: 1}", "It takes: none"),
        ("broadcast", "route broadcast on pattern queue"),
    ],
)
def test_what_a_built_in_policy_cannot_be_given_is_said(route, said):
    assert any(said in problem for problem in of(route)), of(route)


def test_pattern_broadcast_takes_its_own_route_only():
    assert not of("broadcast", "broadcast")
    assert of("round_robin", "broadcast")


def test_a_policy_of_a_plugin_may_take_anything():
    assert not of("{name: mine, rules: [{a: 1}], deep: {x: [1, 2]}}")


def test_a_route_is_bounded():
    assert any(
        "ROUTE_BYTES_MAX" in p for p in of(f"{{name: mine, x: {'y' * limits.ROUTE_BYTES_MAX}}}")
    )
