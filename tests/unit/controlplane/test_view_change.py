"""What differs between two views: found for every way in which a view changes, and nothing else is."""

from __future__ import annotations

import msgspec
import pytest

from fabric.controlplane.view_change import compare
from fabric.registry.records import ChannelRecord, EndpointRecord, NodeRecord, View

NODES = (
    NodeRecord(number=1, name="a", incarnation=1),
    NodeRecord(number=2, name="b", incarnation=1),
)
CHANNELS = tuple(ChannelRecord(number=n, name=f"c{n}", type_name="t") for n in (1, 2, 3))


def end(number, channel, **more):
    return EndpointRecord(
        endpoint=number, channel=channel, role="sender", node=1, incarnation=1, port=1, **more
    )


ENDS = (end(10, 1), end(11, 1), end(12, 2), end(13, 3))
OLD = View(epoch=1, generation=1, live=(1,), nodes=NODES, channels=CHANNELS, endpoints=ENDS)


def after(**changed):
    """A newer view as another node gets it: of other objects."""
    newer = msgspec.structs.replace(OLD, epoch=2, **changed)
    return msgspec.convert(msgspec.to_builtins(newer), View)


@pytest.mark.parametrize(
    ("changed", "channels"),
    [
        ({}, set()),
        ({"endpoints": (*ENDS, end(14, 2))}, {2}),
        ({"endpoints": ENDS[:-1]}, {3}),
        ({"endpoints": ENDS[1:]}, {1}),
        ({"endpoints": (ENDS[0], end(11, 1, messages=7), *ENDS[2:])}, {1}),
        ({"endpoints": (ENDS[0], end(11, 3), *ENDS[2:])}, {1, 3}),
        ({"endpoints": ENDS[::-1]}, set()),
        ({"channels": CHANNELS[:2]}, {3}),
        ({"channels": (CHANNELS[0], msgspec.structs.replace(CHANNELS[1], route="r"), CHANNELS[2])}, {2}),
    ],
)  # fmt: skip
def test_channels_that_differ_are_named_and_no_others(changed, channels):
    change = compare(OLD, after(**changed))
    assert change.channels == channels
    assert not change.is_general
    assert change.has_records is ("channels" in changed)
    assert {c.number for c in change.among(CHANNELS)} == channels
    assert {e.channel for e in change.ends_among(ENDS)} == channels


@pytest.mark.parametrize(
    "changed",
    [
        {"nodes": (NODES[0], msgspec.structs.replace(NODES[1], state="silent"))},
        {"generation": 2},
        {"live": (1, 2)},
    ],
)
def test_a_change_of_nodes_or_of_the_plan_concerns_every_channel(changed):
    change = compare(OLD, after(**changed))
    assert change.is_general
    assert change.among(CHANNELS) == list(CHANNELS)
    assert change.ends_among(ENDS) == list(ENDS)
