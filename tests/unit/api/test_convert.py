"""Plain dicts survive the trip through protobuf messages."""

import pytest

from fabric.controlplane.api import convert
from fabric.controlplane.api.v1 import control_pb2 as pb


def round_trip(values):
    return convert.from_struct(convert.to_struct(values))


def test_plain_values_come_back_equal():
    values = {
        "text": "x",
        "none": None,
        "yes": True,
        "whole": 7,
        "part": 0.5,
        "list": [1, ["a"]],
        "map": {"k": {}},
    }
    assert round_trip(values) == values
    assert type(round_trip({"yes": True})["yes"]) is bool


@pytest.mark.parametrize(
    ("number", "expected"),
    [(2**53, 2**53), (2**53 + 1, str(2**53 + 1)), (2**64 - 1, str(2**64 - 1))],
)
def test_integers_that_a_double_cannot_hold_become_decimal_text(number, expected):
    assert round_trip({"n": number}) == {"n": expected}


def test_declared_integers_stay_exact_at_64_bits():
    message = convert.to_message({"incarnation": 2**63 + 1}, pb.StatusReply())
    assert (
        convert.from_message(pb.StatusReply.FromString(message.SerializeToString()))["incarnation"]
        == 2**63 + 1
    )


def test_fields_the_proto_does_not_know_come_back_beside_the_known_ones():
    message = convert.to_message({"node": "a", "colour": {"rgb": [1, 2]}}, pb.StatusReply())
    assert convert.from_message(message) == {"node": "a", "colour": {"rgb": [1, 2]}}


def test_missing_and_null_fields_are_left_out():
    assert convert.from_message(convert.to_message({"node": None}, pb.StatusReply())) == {}


def test_repeated_messages_keep_their_own_unknown_fields():
    values = {"name": "p", "exports": [{"kind": "route", "name": "sticky", "cost_us": 3}]}
    assert convert.from_message(convert.to_message(values, pb.PluginLoadReply())) == values


def test_a_value_of_the_wrong_type_is_refused():
    with pytest.raises((TypeError, ValueError)):
        convert.to_message({"generation": "three"}, pb.ApplyReply())


def test_an_unknown_field_without_a_place_is_refused():
    with pytest.raises(ValueError, match="surprise"):
        convert.to_message({"surprise": 1}, pb.Problem())
