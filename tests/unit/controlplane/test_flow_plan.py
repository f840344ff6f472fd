"""Flows planned from a view: who meets whom, what opens and closes, in which generation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.controlplane.flow_plan import Changes, FlowState, NewFlow, hop_of, plan_flows
from fabric.registry.records import ChannelRecord, EndpointRecord, Graph, NodeRecord, View


def end(number: int, role: str = "receiver", node: int = 1, **more) -> EndpointRecord:
    return EndpointRecord(
        endpoint=node << 32 | number,
        channel=1,
        role=role,
        node=node,
        incarnation=7,
        port=node << 32 | number,
        **more,
    )


def view(*ends: EndpointRecord, states: dict[int, str] | None = None, **channel) -> View:
    states = states or {}
    numbers = {e.node for e in ends} | {1} | set(states)
    nodes = tuple(
        NodeRecord(number=n, name=str(n), incarnation=7, state=states.get(n, "alive"))
        for n in sorted(numbers)
    )
    record = ChannelRecord(number=1, name="c", type_name="t", **channel)
    return View(epoch=1, nodes=nodes, channels=(record,), endpoints=ends)


SENDER = end(1, "sender")


def test_sender_gets_one_flow_to_every_receiver_of_its_channel():
    other = EndpointRecord(endpoint=99, channel=2, role="receiver", node=1, incarnation=7, port=9)
    changes = plan_flows(view(SENDER, end(2), end(3, node=2), other), SENDER, [])
    assert [new.target.endpoint for new in changes.opens] == [
        end(2).endpoint,
        end(3, node=2).endpoint,
    ]
    assert changes.closes == () and not any(new.after_drain for new in changes.opens)


def test_nothing_changes_when_flows_are_as_the_view_asks():
    assert not plan_flows(view(SENDER, end(2)), SENDER, [FlowState(5, end(2).endpoint, 0)])


def test_queue_adds_and_removes_targets_one_by_one():
    here = view(SENDER, end(3), pattern="queue")
    changes = plan_flows(here, SENDER, [FlowState(5, end(2).endpoint, 0)])
    assert changes == Changes((NewFlow(end(3), 0, False),), (5,))


@pytest.mark.parametrize("route", [None, "sticky"])
def test_stream_replaces_all_flows_together_and_stays_in_its_generation(route):
    """A key waits natively for its closed flow; where a policy names the flow, the new flow waits for the old ones."""
    existing = [FlowState(5, end(2).endpoint, 7)]
    here = view(SENDER, end(2), end(3), pattern="stream", generation=7, route=route)
    changes = plan_flows(here, SENDER, existing)
    assert [(n.target.endpoint, n.generation, n.after_drain) for n in changes.opens] == [
        (end(2).endpoint, 7, route is not None),
        (end(3).endpoint, 7, route is not None),
    ]
    assert changes.closes == (5,)


def test_stream_that_lost_its_only_receiver_drains_before_the_next_one():
    existing = [FlowState(5, end(2).endpoint, 0, is_open=False)]
    changes = plan_flows(view(SENDER, end(3), pattern="stream", route="sticky"), SENDER, existing)
    assert changes.opens == (NewFlow(end(3), 0, True),)


def test_target_that_cannot_be_set_up_is_tried_again_without_touching_the_others():
    """The other targets of a stream keep their flows while one does not answer."""
    here = view(SENDER, end(2), end(3), pattern="stream")
    existing = [FlowState(5, end(2).endpoint, 0)]
    again = plan_flows(here, SENDER, existing, failing=frozenset({end(3).endpoint}))
    assert [n.target for n in again.opens] == [end(3)] and again.closes == ()
    more = plan_flows(
        view(SENDER, end(2), end(3), end(4), pattern="stream"), SENDER, existing, frozenset({end(3).endpoint})
    )  # fmt: skip
    assert [n.target for n in more.opens] == [end(2), end(4)] and more.closes == (5,)


def test_next_generation_replaces_every_flow_and_is_stamped_on_the_new_ones():
    here = view(SENDER, end(2), pattern="queue", generation=8)
    changes = plan_flows(here, SENDER, [FlowState(5, end(2).endpoint, 7)])
    assert changes == Changes((NewFlow(end(2), 8, False),), (5,))


def graphs(present: tuple[str, ...], before: tuple[str, ...], **more) -> dict[str, object]:
    return {
        "transforms": present,
        "generation": 2,
        "older": (Graph(generation=1, transforms=before),),
        **more,
    }


def stage(number: int, role: str, hop: int, name: str, generation: int) -> EndpointRecord:
    return end(number, role, stage=hop, transform=name, generation=generation)


@pytest.mark.promise("P7")
def test_message_leaves_through_the_hops_of_the_graph_that_it_entered():
    """What a stage of the older generation holds does not meet the transform that the newer one has put behind it."""
    old_out = stage(6, "sender", 1, "one", 1)
    new_in, new_out = stage(7, "receiver", 0, "one", 2), stage(8, "sender", 1, "one", 2)
    two_in, two_out = stage(9, "receiver", 1, "two", 2), stage(10, "sender", 2, "two", 2)
    old_in = stage(5, "receiver", 0, "one", 1)
    ends = (SENDER, end(2), old_in, old_out, new_in, new_out, two_in, two_out)
    here = view(*ends, pattern="queue", **graphs(("one", "two"), ("one",)))
    met = {
        e.endpoint: [n.target for n in plan_flows(here, e, []).opens]
        for e in ends
        if e.role == "sender"
    }
    assert met[SENDER.endpoint] == [new_in]
    assert met[old_out.endpoint] == [end(2)]
    assert met[new_out.endpoint] == [two_in] and met[two_out.endpoint] == [end(2)]


def test_stages_made_for_a_plan_that_is_not_in_force_yet_get_nothing():
    early_in, early_out = stage(5, "receiver", 0, "one", 3), stage(6, "sender", 1, "one", 3)
    here = view(SENDER, end(2), early_in, early_out, pattern="queue", generation=2)
    assert [n.target for n in plan_flows(here, SENDER, []).opens] == [end(2)]
    assert not plan_flows(here, early_out, [])


def test_stream_waits_until_its_older_graph_is_empty():
    """A message that the older chain still holds must not be overtaken by a later one of its key."""
    old_in = stage(5, "receiver", 0, "one", 1)
    stream = graphs((), ("one",), pattern="stream")
    existing = [FlowState(5, old_in.endpoint, 1)]
    assert plan_flows(view(SENDER, end(2), old_in, **stream), SENDER, existing) == Changes((), (5,))
    gone = plan_flows(
        view(SENDER, end(2), **stream), SENDER, [FlowState(5, old_in.endpoint, 1, False)]
    )
    assert [n.target for n in gone.opens] == [end(2)]


def test_receivers_of_a_silent_node_are_kept_but_get_nothing_new():
    remote, late = end(3, node=2), end(4, node=2)
    silent = view(SENDER, remote, late, states={2: "silent"}, pattern="queue")
    assert not plan_flows(silent, SENDER, [FlowState(5, remote.endpoint, 0)])
    assert not plan_flows(silent, SENDER, [])


def test_flows_to_a_silent_node_survive_a_registry_that_does_not_know_its_endpoints_yet():
    restarted = view(SENDER, states={2: "silent"}, pattern="queue")
    assert not plan_flows(restarted, SENDER, [FlowState(5, end(3, node=2).endpoint, 0)])


def test_flows_to_a_dead_node_are_closed():
    gone = view(SENDER, states={2: "dead"}, pattern="queue")
    assert plan_flows(gone, SENDER, [FlowState(5, end(3, node=2).endpoint, 1)]).closes == (5,)


def test_transform_takes_its_place_only_when_the_channel_names_it():
    inlet, outlet = end(5, stage=0, transform="up"), end(6, "sender", stage=1, transform="up")
    ends = (SENDER, end(2), inlet, outlet)
    before = view(*ends)
    assert [n.target for n in plan_flows(before, SENDER, []).opens] == [end(2)]
    assert not plan_flows(before, outlet, [])
    after = view(*ends, transforms=("up",))
    assert [n.target for n in plan_flows(after, SENDER, []).opens] == [inlet]
    assert [n.target for n in plan_flows(after, outlet, []).opens] == [end(2)]


def test_second_transform_receives_what_the_first_sends():
    channel = ChannelRecord(number=1, name="c", type_name="t", transforms=("one", "two"))
    assert hop_of(end(5, "sender", stage=1, transform="one"), channel) == 1
    assert hop_of(end(6, stage=1, transform="two"), channel) == 1
    assert hop_of(end(2), channel) == 2
    assert hop_of(end(6, stage=1, transform="gone"), channel) is None


def test_sender_of_an_unknown_channel_closes_what_it_has():
    empty = View(epoch=1, nodes=view().nodes)
    assert plan_flows(empty, SENDER, [FlowState(5, 9, 1)]) == Changes((), (5,))


@given(
    receivers=st.lists(st.sets(st.integers(2, 9)), min_size=1, max_size=6),
    pattern=st.sampled_from(["stream", "queue"]),
)
def test_applying_the_plan_once_always_reaches_the_view(receivers, pattern):
    """After any history of receiver sets, one plan leads to exactly the present set, and a second changes nothing."""
    flows: dict[int, FlowState] = {}
    number = 0
    for present in receivers:
        now = view(SENDER, *(end(n) for n in sorted(present)), pattern=pattern)
        changes = plan_flows(now, SENDER, flows.values())
        for flow in changes.closes:
            old = flows[flow]
            flows[flow] = FlowState(flow, old.target_endpoint, old.generation, False)
        for new in changes.opens:
            number += 1
            assert new.generation == 0
            flows[number + 1000] = FlowState(number + 1000, new.target.endpoint, new.generation)
        is_open = sorted(f.target_endpoint for f in flows.values() if f.is_open)
        assert is_open == sorted(end(n).endpoint for n in present)
        assert not plan_flows(now, SENDER, flows.values())
