"""What turns one plan into another, and what a plan may do to channels in use: pure, field by field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.config import ChannelSpec, CreditSpec, ModuleSpec
from fabric.controlplane.chain_rules import negotiate
from fabric.controlplane.plan_diff import compare, content, differences, is_different, live_content
from fabric.controlplane.plan_rules import channel_record, records_of
from fabric.errors import ConfigError, TypeMismatchError
from fabric.registry.plans import Plan, PluginPlan
from fabric.registry.records import ChannelRecord, EndpointRecord, NodeRecord, View


def plugin(name: str, source: str = "x = 1") -> PluginPlan:
    return PluginPlan(name=name, path=f"/{name}.py", source=source, node="a")


def spec(name: str = "c", **more) -> ChannelSpec:
    return ChannelSpec(name=name, type="t.text", **more)


def live(name: str = "c", number: int = 1, **more) -> ChannelRecord:
    return ChannelRecord(
        number=number, name=name, type_name="t.text", messages=256, bytes=64 << 20, **more
    )


def view(*channels: ChannelRecord, users: tuple[str, ...] = (), role: str = "receiver") -> View:
    ends = tuple(
        EndpointRecord(
            endpoint=number, channel=1, role=role, node=1, incarnation=1, port=1, port_name=name
        )
        for number, name in enumerate(users, 1)
    )
    node = NodeRecord(number=1, name="a", incarnation=1)
    return View(epoch=1, nodes=(node,), channels=channels, endpoints=ends)


def actions(old: Plan | None, new: Plan) -> dict[tuple[str, str], tuple[str, str]]:
    return {(c.kind, c.name): (c.action, c.detail) for c in compare(content(old), content(new))}


def test_each_thing_is_added_changed_unchanged_or_removed_with_the_fields_that_differ():
    old = Plan(
        plugins=(plugin("stays"), plugin("edited"), plugin("goes")),
        channels=(spec("stays"), spec("edited", credit=CreditSpec(messages=64))),
        modules=(ModuleSpec(name="m", class_path="p:C", node="a", config={"n": 1}),),
    )
    new = Plan(
        plugins=(plugin("stays"), plugin("edited", "x = 2")),
        channels=(spec("stays"), spec("edited", overflow="reject"), spec("comes")),
        modules=(ModuleSpec(name="m", class_path="p:C", node="a", config={"n": 2}),),
    )
    found = actions(old, new)
    assert {key: action for key, (action, _) in found.items()} == {
        ("plugin", "stays"): "unchanged", ("plugin", "edited"): "changed", ("plugin", "goes"): "removed",
        ("channel", "stays"): "unchanged", ("channel", "edited"): "changed", ("channel", "comes"): "added",
        ("module", "m"): "changed",
    }  # fmt: skip
    assert found["channel", "edited"][1] == "credit.messages 64 → 256, overflow block → reject"
    assert found["module", "m"][1] == "config.n 1 → 2"
    assert found["plugin", "edited"][1].startswith("source ")


def test_file_against_what_is_there_sees_what_was_changed_by_hand():
    planned = Plan(generation=1, channels=(spec(transforms=()),))
    here = live(is_planned=True, transforms=("by_hand",))
    (change,) = compare(live_content(planned, planned, [here]), content(planned))
    assert (change.action, change.detail) == ("changed", "transforms ['by_hand'] → []")


def test_channel_of_a_process_is_not_a_plans_to_remove():
    own, other = live("own", 1), live("named", 2)
    wanted = Plan(channels=(spec("named"),))
    found = compare(live_content(None, wanted, [own, other]), content(wanted))
    assert [(c.name, c.action) for c in found] == [("named", "unchanged")]
    assert records_of(wanted, view(own, other), {}, (), ()).removed == ()


@given(st.dictionaries(st.sampled_from("abc"), st.integers(0, 3) | st.none()), st.data())
def test_equal_maps_have_no_difference_and_a_changed_key_is_named(values, data):
    assert differences(values, dict(values)) == ""
    if values:
        key = data.draw(st.sampled_from(sorted(values)))
        assert f"{key} " in differences(values, {**values, key: "other"})


def test_nothing_differs_from_itself():
    plan = Plan(plugins=(plugin("p"),), channels=(spec(),))
    assert not is_different(compare(content(plan), content(plan)))


# ------------------------------------------------------------------ what it may do
@pytest.mark.parametrize(
    ("more", "field"),
    [({"pattern": "queue"}, "pattern"), ({"delivery": "at_least_once"}, "delivery")],
)  # fmt: skip
def test_what_an_open_end_relies_on_cannot_change_under_it(more, field):
    wanted = Plan(channels=(spec(**more),))
    with pytest.raises(ConfigError, match=f"{field} cannot change .* 'worker' has it open"):
        records_of(wanted, view(live(), users=("worker",)), {}, (), ())
    assert len(records_of(wanted, view(live()), {}, (), ()).records) == 1, "closed, it can"


@pytest.mark.parametrize(
    "more",
    [{"overflow": "reject"}, {"credit": CreditSpec(messages=4)}, {"klass": "bulk"}, {"route": "sticky"}],
)  # fmt: skip
def test_what_concerns_new_flows_may_change_any_time(more):
    plan = records_of(Plan(channels=(spec(**more),)), view(live(), users=("w",)), {}, (), ())
    assert [r.name for r in plan.records] == ["c"] and plan.added == ()


def test_channel_that_stays_as_it_is_gets_no_new_generation_unless_code_on_it_changes():
    here = view(live(transforms=("up",)))
    exports = {"up": {"plugin": "p", "accepts": "any", "produces": "any"}}
    wanted = Plan(channels=(spec(transforms=("up",)),))
    assert records_of(wanted, here, exports, (), ()).records == ()
    assert [r.name for r in records_of(wanted, here, exports, ("up",), ()).records] == ["c"]


def test_removal_names_who_still_has_the_channel_but_not_those_that_leave_with_it():
    here = view(live(is_planned=True), users=("m-0", "client"))
    with pytest.raises(ConfigError, match="no longer in the file, and 'client' has it open"):
        records_of(Plan(), here, {}, (), ("m", "m-0"))
    alone = view(live(is_planned=True), users=("m-0",))
    assert records_of(Plan(), alone, {}, (), ("m", "m-0")).removed == ("c",)


TEXT_TO_NUMBER = {"plugin": "a", "accepts": "t.text@1", "produces": "t.number@1"}
NUMBERS = {"plugin": "b", "accepts": "t.number@1", "produces": "t.number@1"}
ANY = {"plugin": "c", "accepts": "any", "produces": "any"}


def test_types_are_followed_along_the_chain():
    exports = {"parse": TEXT_TO_NUMBER, "add": NUMBERS, "tap": ANY}
    assert negotiate(spec(transforms=("tap", "parse", "add")), exports).delivers == "t.number"
    assert negotiate(spec(transforms=("tap",)), exports).delivers == ""
    with pytest.raises(
        TypeMismatchError, match=r"'add' accepts t\.number, channel 'c' carries t\.text there"
    ):
        negotiate(spec(transforms=("add",)), exports)
    with pytest.raises(ConfigError, match="there is no transform 'lost'"):
        negotiate(spec(transforms=("lost",)), exports)


def test_type_that_a_waiting_receiver_does_not_expect_is_refused_naming_it():
    wanted = Plan(channels=(spec(transforms=("parse",)),))
    with pytest.raises(TypeMismatchError, match=r"deliver t\.number, and 'in' receives t\.text"):
        records_of(wanted, view(live(), users=("in",)), {"parse": TEXT_TO_NUMBER}, (), ())


def test_record_of_a_file_is_what_is_declared():
    made = channel_record(spec(credit=CreditSpec(messages=3), transforms=("a",), klass="bulk"))
    assert (made.messages, made.transforms, made.klass, made.schema) == (3, ("a",), "bulk", "")
