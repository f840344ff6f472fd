"""Cycles of credit: which graphs of modules are refused, and what the refusal says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import config
from fabric.config.cycles import Hop, check_cycles, find_cycles
from fabric.config.ends import End, ModuleEnds, check_ends


def graph(channels, modules, known):
    """A file of channels (name → extra keys) and modules (name → class), with what the classes say of themselves."""
    lines = [f"  {name}: {{type: t{extra and ', ' + extra}}}" for name, extra in channels.items()]
    lines += ["modules:"] + [f"  {name}: {{class: 'f.py:{cls}'}}" for name, cls in modules.items()]
    spec = config.parse("version: 1\nchannels:\n" + "\n".join(lines) + "\n", source="f.yaml")
    ends = {
        f"f.py:{cls}": ModuleEnds(
            ends=tuple(End(field, kind, ("t",)) for field, kind in fields.items())
        )
        for cls, fields in known.items()
    }
    return spec, ends


def cycles(*arguments):
    spec, ends = graph(*arguments)
    return list(check_cycles(spec, ends, spec.channels))


RING = {
    "A": {"ab": "out", "ca": "in"},
    "B": {"ab": "in", "bc": "out"},
    "C": {"bc": "in", "ca": "out"},
}
RING_MODULES = {"a": "A", "b": "B", "c": "C"}


@pytest.mark.promise("P3")
def test_a_ring_of_blocking_channels_is_refused_hop_by_hop_with_the_fix():
    (problem,) = cycles({"ab": "", "bc": "", "ca": ""}, RING_MODULES, RING)
    assert problem.what == (
        "a cycle of credit, in which all can wait for each other's room for ever: a.ab -> channel 'ab' -> b.ab, "
        "b.bc -> channel 'bc' -> c.bc, c.ca -> channel 'ca' -> a.ca"
    )
    assert problem.fix == (
        "Give one of 'ab', 'bc', 'ca' a deadline (deadline: 5s) or overflow: reject, "
        "or overflow: drop_oldest or drop_newest (on 'ab', 'bc', 'ca')"
    )
    assert problem.severity == "error"


@pytest.mark.parametrize("which", ["ab", "bc", "ca"])
@pytest.mark.parametrize(
    "breaks", ["deadline: 5s", "overflow: reject", "overflow: drop_oldest", "overflow: drop_newest"]
)
def test_one_edge_that_cannot_wait_for_ever_breaks_the_ring(which, breaks):
    channels = {name: breaks if name == which else "" for name in ("ab", "bc", "ca")}
    assert cycles(channels, RING_MODULES, RING) == []


def test_a_fix_offers_dropping_only_where_it_is_legal():
    (problem,) = cycles(
        {"ab": "delivery: at_least_once", "ba": "delivery: at_least_once"},
        {"a": "A", "b": "B"},
        {"A": {"ab": "out", "ba": "in"}, "B": {"ab": "in", "ba": "out"}},
    )
    assert "drop" not in problem.fix


def test_a_line_of_modules_and_a_diamond_have_no_cycle():
    assert (
        cycles(
            {"x": "", "y": ""},
            {"a": "A", "b": "B"},
            {"A": {"x": "out"}, "B": {"x": "in", "y": "out"}},
        )
        == []
    )
    diamond = {
        "A": {"l": "out", "r": "out"},
        "B": {"l": "in", "z": "out"},
        "C": {"r": "in", "z": "out"},
        "D": {"z": "in"},
    }
    modules = {"a": "A", "b": "B", "c": "C", "d": "D"}
    assert cycles({"l": "", "r": "", "z": ""}, modules, diamond) == []


def test_a_request_is_no_cycle_by_itself_but_two_that_call_each_other_are():
    ask = {"ask": "pattern: request, reply: t"}
    assert cycles(ask, {"a": "A", "b": "B"}, {"A": {"ask": "call"}, "B": {"ask": "serve"}}) == []
    both = {**ask, "back": "pattern: request, reply: t"}
    known = {"A": {"ask": "call", "back": "serve"}, "B": {"ask": "serve", "back": "call"}}
    (problem,) = cycles(both, {"a": "A", "b": "B"}, known)
    assert "a.ask -> channel 'ask' -> b.ask, b.back -> channel 'back' -> a.back" in problem.what


def test_a_cycle_through_a_channel_that_was_declared_before_is_found_too():
    known = {"A": {"ab": "out", "ba": "in"}, "B": {"ab": "in", "ba": "out"}}
    spec, ends = graph({"ab": ""}, {"a": "A", "b": "B"}, known)
    declared = {"ba": config.ChannelSpec(name="ba", type="t")}
    (problem,) = check_cycles(spec, ends, {**declared, **spec.channels})
    assert problem.where == "channels.ab"
    assert spec.place(problem.where).startswith("f.yaml:3:")


def test_two_rings_are_two_refusals():
    hops = [
        Hop("a", "o", "x", "b", "i"),
        Hop("b", "o", "y", "a", "i"),
        Hop("c", "o", "z", "c", "i"),
    ]
    assert [len(cycle) for cycle in find_cycles(hops)] == [2, 1]


EDGES = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=24)


@given(EDGES)
def test_a_cycle_is_reported_exactly_when_there_is_one(edges):
    hops = [Hop(str(a), "o", f"c{i}", str(b), "i") for i, (a, b) in enumerate(edges)]
    found = find_cycles(hops)
    reach = {a: {b for x, b in edges if x == a} for a in range(8)}
    for _ in range(8):
        reach = {a: bs | {c for b in bs for c in reach[b]} for a, bs in reach.items()}
    assert bool(found) is any(a in bs for a, bs in reach.items())
    for cycle in found:
        assert [hop.target for hop in cycle] == [hop.source for hop in cycle[1:] + cycle[:1]]


def ends_problems(channels, modules, known):
    spec, ends = graph(channels, modules, known)
    return [(p.where, p.severity) for p in check_ends(spec, ends, spec.channels)]


def test_a_class_and_a_file_that_disagree_are_refused_at_the_field():
    modules = {"a": "A"}
    assert ends_problems({"x": ""}, modules, {"A": {"x": "serve"}}) == [
        ("modules.a.channels.x", "error")
    ]
    assert ends_problems({"x": "pattern: request"}, modules, {"A": {"x": "in"}}) == [
        ("modules.a.channels.x", "error")
    ]
    assert ends_problems({"x": "pattern: request"}, modules, {"A": {"x": "serve"}}) == []
    assert ends_problems({"x": ""}, modules, {"A": {"y": "in"}}) == [
        ("modules.a.channels.y", "warning")
    ]


def test_another_type_than_the_channels_is_refused_unless_a_transform_makes_it():
    known = {"f.py:A": ModuleEnds(ends=(End("x", "in", ("u",)),))}
    for extra, problems in (("", 1), (", transforms: [up]", 0)):
        text = f"version: 1\nchannels: {{x: {{type: t{extra}}}}}\nmodules: {{a: {{class: 'f.py:A'}}}}\n"
        spec = config.parse(text)
        assert len(list(check_ends(spec, known, spec.channels))) == problems


def test_a_class_that_was_not_looked_at_is_a_warning_and_one_found_wanting_an_error():
    spec = config.parse("version: 1\nmodules: {a: {class: 'f.py:A'}}\n")
    for ends, severity in (
        (ModuleEnds(error="importing it took longer than 20 s"), "warning"),
        (ModuleEnds(error="no file f.py", is_refused=True), "error"),
    ):
        (problem,) = check_ends(spec, {"f.py:A": ends}, {})
        assert (problem.where, problem.severity) == ("modules.a.class", severity)
        assert ends.error in problem.what
