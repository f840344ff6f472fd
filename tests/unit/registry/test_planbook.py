"""The generations of the registry: moves, what a restart finds, what a full disk leaves."""

from __future__ import annotations

import msgspec
import pytest

from fabric import limits
from fabric.config import ChannelSpec
from fabric.errors import BusyError, CapacityError, ConfigError, InternalError, StorageError
from fabric.registry.cluster import Registry
from fabric.registry.planbook import INTERRUPTED
from fabric.registry.plans import Plan, PluginPlan
from fabric.registry.records import ChannelRecord, EndpointRecord, NodeRecord
from fabric.registry.store import RegistryStore

HERE = NodeRecord(number=0, name="a", incarnation=1)


@pytest.fixture
def store(short_dir):
    opened = RegistryStore(short_dir / "registry.db")
    yield opened
    opened.close()


@pytest.fixture
def registry(store):
    made = Registry(store, 0.0)
    made.join(HERE, (), 0.0)
    return made


def record(name: str = "c", **more) -> ChannelRecord:
    return ChannelRecord(name=name, type_name="t.text", is_planned=True, **more)


def plan(*records: ChannelRecord, removed: tuple[str, ...] = (), **more) -> Plan:
    specs = tuple(ChannelSpec(name=r.name, type=r.type_name) for r in records)
    return Plan(by="1@a", channels=specs, records=records, removed=removed, **more)


def carried_out(registry: Registry, *records: ChannelRecord, **more) -> Plan:
    registry.plans.begin(plan(*records, **more))
    registry.plans.switch()
    return registry.plans.finish()


def end(channel: int, number: int = 5) -> EndpointRecord:
    return EndpointRecord(
        endpoint=number, channel=channel, role="receiver", node=1, incarnation=1, port=1
    )


def test_generations_count_from_one_and_the_channels_are_of_the_one_that_changed_them(registry):
    assert carried_out(registry, record("c"), record("d")).generation == 1
    assert carried_out(registry, record("c", route="sticky")).generation == 2
    seen = {c.name: (c.generation, c.route) for c in registry.view().channels}
    assert seen == {"c": (2, "sticky"), "d": (1, None)}
    assert registry.view().generation == 2


def test_superseded_graph_is_live_until_it_is_forgotten(registry):
    carried_out(registry, record(transforms=("one",)))
    carried_out(registry, record(transforms=("one", "two")))
    channel = registry.view().channels[0]
    assert channel.graph(1) == ("one",) and channel.graph(2) == ("one", "two")
    assert channel.graph(3) is None
    assert registry.view().live == (1, 2)
    registry.plans.forget_graphs([("c", 1)])
    assert registry.view().live == (2,) and registry.view().channels[0].graph(1) is None


def test_nothing_of_a_plan_shows_before_it_is_switched(registry):
    carried_out(registry, record())
    before = registry.view()
    registry.plans.begin(plan(record(route="sticky"), record("new")))
    assert registry.view() == before
    registry.plans.switch()
    assert {c.name for c in registry.view().channels} == {"c", "new"}
    assert registry.view().generation == 2


def test_second_plan_is_refused_naming_who_applies_the_first(registry):
    registry.plans.begin(plan(record()))
    with pytest.raises(BusyError, match="being applied by 1@a"):
        registry.plans.begin(plan(record()))


def test_rolled_back_plan_leaves_the_channels_as_they_were(registry):
    carried_out(registry, record(transforms=("one",), route="old"))
    registry.plans.begin(plan(record(transforms=("two",), route="new"), record("added")))
    registry.plans.switch()
    ended = registry.plans.roll_back("module 'x' did not start")
    assert (ended.outcome, ended.why) == ("rolled_back", "module 'x' did not start")
    (channel,) = registry.view().channels
    assert (channel.transforms, channel.route, channel.generation) == (("one",), "old", 1)
    assert channel.graph(2) == ("two",), "what went through it meanwhile still has to come out"
    assert registry.view().generation == 1
    assert [p.outcome for p in registry.plans.history()] == ["rolled_back", "committed"]


def test_added_channel_that_somebody_uses_already_stays_and_is_no_plans_any_more(registry):
    registry.plans.begin(plan(record()))
    registry.plans.switch()
    registry.open(end(registry.view().channels[0].number))
    registry.plans.roll_back("why")
    (channel,) = registry.view().channels
    assert not channel.is_planned


def test_removed_channel_goes_at_the_end_and_its_number_never_comes_back(registry):
    carried_out(registry, record("c"), record("d"))
    number = registry.channel("d").number
    registry.plans.begin(plan(removed=("d",)))
    registry.plans.switch()
    assert registry.channel("d") is not None, "modules that use it are still being stopped"
    registry.plans.finish()
    assert registry.channel("d") is None
    assert registry.declare(record("e")).number > number


@pytest.mark.promise("P7")
@pytest.mark.parametrize("is_switched", [False, True])
def test_registry_killed_in_the_middle_rolls_back_when_it_is_there_again(
    store, registry, is_switched
):
    carried_out(registry, record(transforms=("one",)))
    registry.plans.begin(plan(record(transforms=("two",)), record("added")))
    if is_switched:
        registry.plans.switch()
    again = Registry(store, 1.0)
    assert again.view().generation == 1
    assert [(c.name, c.transforms) for c in again.view().channels] == [("c", ("one",))]
    newest = again.plans.history()[0]
    assert (newest.generation, newest.outcome, newest.why) == (2, "rolled_back", INTERRUPTED)
    assert carried_out(again, record(transforms=("two",))).generation == 3


def test_committed_plan_is_there_after_a_restart_with_the_text_of_its_plugins(store, registry):
    plugin = PluginPlan(name="p", path="/p.py", source="x = 1", node="a")
    carried_out(registry, record(), plugins=(plugin,))
    again = Registry(store, 1.0)
    assert again.plans.current.plugins == (plugin,)
    assert again.plans.get(1).by == "1@a"


def test_history_is_bounded_and_a_forgotten_generation_says_which_are_kept(registry, monkeypatch):
    monkeypatch.setattr(limits, "PLANS_KEPT", 3)
    for number in range(5):
        carried_out(registry, record(messages=number + 1))
    assert [p.generation for p in registry.plans.history()] == [5, 4, 3]
    with pytest.raises(ConfigError, match="generations 3 to 5 are kept"):
        registry.plans.get(1)


def test_rollback_without_an_earlier_plan_is_refused(registry):
    carried_out(registry, record())
    with pytest.raises(ConfigError, match="no earlier generation"):
        registry.plans.before(1)


def test_plan_larger_than_the_limit_is_refused_and_nothing_is_begun(registry):
    source = "#" * limits.PLAN_BYTES_MAX
    large = PluginPlan(name="p", path="/p.py", source=source, node="a")
    with pytest.raises(CapacityError, match="PLAN_BYTES_MAX"):
        registry.plans.begin(plan(record(), plugins=(large,)))
    assert registry.plans.pending is None and not registry.plans.history()


def test_move_out_of_turn_is_our_bug(registry):
    with pytest.raises(InternalError):
        registry.plans.switch()


# ------------------------------------------------------------------ the disk
def full(store: RegistryStore) -> None:
    """Let the file grow no more, as on a full disk."""
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")


def freed(store: RegistryStore) -> None:
    store._db.execute("PRAGMA max_page_count = 1000000")


def large(name: str) -> ChannelRecord:
    return record(name, schema="", delivers="d" * 3000)


def fill(registry: Registry, store: RegistryStore) -> None:
    """Declare until the last free page is used."""
    full(store)
    for number in range(200):
        try:
            registry.declare(large(f"fill{number}"))
        except StorageError:
            return
    raise AssertionError("the disk did not fill")


@pytest.mark.promise("P8")
def test_full_disk_refuses_typed_changes_nothing_and_is_over_when_there_is_space(store, registry):
    carried_out(registry, record())
    fill(registry, store)
    before = registry.view()
    with pytest.raises(
        StorageError, match=r"registry\.db cannot be written: .*full; free some space"
    ):
        registry.declare(large("late"))
    assert registry.view() == before, "no half state in memory"
    stored = {c.name for c in store.channels()}
    assert stored == {c.name for c in before.channels}, "nor on the disk"
    freed(store)
    assert registry.declare(large("late")).name == "late"


def test_full_disk_in_the_middle_of_a_plan_leaves_the_channels_and_can_be_rolled_back(
    store, registry
):
    carried_out(registry, record())
    registry.plans.begin(plan(*(large(f"n{number}") for number in range(40))))
    full(store)
    before = registry.view()
    with pytest.raises(StorageError):
        registry.plans.switch()
    assert registry.view() == before
    freed(store)
    registry.plans.roll_back("no space")
    assert registry.view().generation == 1 and len(registry.view().channels) == 1


def test_lease_ends_although_the_disk_is_full(store, registry):
    registry.join(msgspec.structs.replace(HERE, name="b"), (), 0.0)
    fill(registry, store)
    registry.tick(limits.LEASE_MS / 1000)
    assert {n.state for n in registry.view().nodes} == {"dead"}


def test_read_only_registry_refuses_typed(short_dir):
    path = short_dir / "registry.db"
    opened = RegistryStore(path)
    opened._db.execute("PRAGMA query_only = ON")
    with pytest.raises(StorageError, match="make its folder writable"):
        Registry(opened, 0.0)
    opened.close()


@pytest.mark.promise("P2")
@pytest.mark.parametrize("damage", ["text", "page", "record"])
def test_damaged_registry_is_refused_naming_file_and_remedy_never_begun_empty(short_dir, damage):
    path = short_dir / "registry.db"
    opened = RegistryStore(path)
    made = Registry(opened, 0.0)
    for number in range(60):
        made.declare(large(f"c{number}"))
    if damage == "record":
        opened._db.execute("UPDATE channels SET record = x'c1' WHERE number = 7")
    opened._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    opened.close()
    data = bytearray(path.read_bytes())
    if damage == "text":
        data[:64] = b"this is no registry".ljust(64, b".")
    elif damage == "page":
        data[4096 * 3 : 4096 * 4] = bytes(4096)
    path.write_bytes(bytes(data))
    with pytest.raises(ConfigError, match=r"registry\.db is damaged .* move it away") as refused:
        RegistryStore(path)
    assert refused.value.context["path"] == str(path)
    assert path.read_bytes() == bytes(data), "what may be saved by hand is not touched"
