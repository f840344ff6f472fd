"""Any history of plans, failures and restarts leaves the channels of the last good plan, and generations only grow."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.config import ChannelSpec
from fabric.registry.cluster import Registry
from fabric.registry.plans import Plan
from fabric.registry.records import ChannelRecord, NodeRecord
from fabric.registry.store import RegistryStore

NAMES = ("a", "b", "c")
#: what happens to a plan: how far it comes, then whether it fails there or the registry is killed
ENDS = ("committed", "fails begun", "fails switched", "killed begun", "killed switched")
CHAINS = st.lists(st.sampled_from(["one", "two", "three"]), max_size=2, unique=True).map(tuple)
PLANS = st.dictionaries(st.sampled_from(NAMES), CHAINS, max_size=3)


def plan_for(wanted: dict[str, tuple[str, ...]], now: dict[str, tuple[str, ...]]) -> Plan:
    """Return the plan that makes `wanted` of what is there."""
    records = tuple(
        ChannelRecord(name=name, type_name="t", transforms=chain, is_planned=True)
        for name, chain in wanted.items()
        if now.get(name) != chain
    )
    specs = tuple(
        ChannelSpec(name=name, type="t", transforms=chain) for name, chain in wanted.items()
    )
    return Plan(channels=specs, records=records, removed=tuple(set(now) - set(wanted)))


def shown(registry: Registry) -> dict[str, tuple[str, ...]]:
    return {c.name: c.transforms for c in registry.view().channels}


def carry_out(registry: Registry, store: RegistryStore, plan: Plan, end: str) -> Registry:
    """Take a plan as far as `end` says; returns the registry that is there afterwards."""
    registry.plans.begin(plan)
    if end == "committed" or end.endswith("switched"):
        registry.plans.switch()
    if end == "committed":
        registry.plans.finish()
    elif end.startswith("fails"):
        registry.plans.roll_back("it failed")
    else:
        return Registry(store, 0.0)
    return registry


@pytest.mark.promise("P7")
@given(st.lists(st.tuples(PLANS, st.sampled_from(ENDS)), max_size=8))
def test_channels_are_those_of_the_last_good_plan_after_any_history(history):
    store = RegistryStore(Path(":memory:"))
    registry = Registry(store, 0.0)
    registry.join(NodeRecord(number=0, name="n", incarnation=1), (), 0.0)
    good: dict[str, tuple[str, ...]] = {}
    numbers: dict[str, set[int]] = {}
    for index, (wanted, end) in enumerate(history, 1):
        before = registry.view()
        registry = carry_out(registry, store, plan_for(wanted, good), end)
        view = registry.view()
        good = dict(wanted) if end == "committed" else good
        assert shown(registry) == good, end
        assert view.epoch > before.epoch or end == "fails begun"
        newest = registry.plans.history()[0]
        assert newest.generation == index
        assert newest.outcome == ("committed" if end == "committed" else "rolled_back")
        assert registry.plans.pending is None
        for channel in view.channels:
            assert channel.generation <= view.generation or view.generation == 0
            assert channel.graph(channel.generation) == channel.transforms
            older = [g.generation for g in channel.older]
            assert len(set(older)) == len(older) and channel.generation not in older
            numbers.setdefault(channel.name, set()).add(channel.number)
    taken = [number for found in numbers.values() for number in found]
    assert len(taken) == len(set(taken)), "no number ever means two channels"
    store.close()
