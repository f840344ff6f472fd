"""The registry's state: joins, leases, declarations, endpoints, and what survives its own restart."""

from __future__ import annotations

import msgspec
import pytest

from fabric import limits
from fabric.errors import BusyError, ConfigError, StaleHandleError, TypeMismatchError
from fabric.messages.schema import FieldSchema, Schema
from fabric.registry.client import RegistryClient, serve_registry
from fabric.registry.cluster import Registry
from fabric.registry.records import (
    ArchivedCounts,
    ChannelRecord,
    EndpointRecord,
    NodeRecord,
    View,
    view_from,
)
from fabric.registry.store import RegistryStore

LEASE_S = limits.LEASE_MS / 1000
SUSPECT_S = limits.SUSPECT_MS / 1000
TEXT = Schema("t.text", 1, [FieldSchema("text", "str")])
OTHER = Schema("t.text", 1, [FieldSchema("text", "int")])
FOREIGN = Schema("t.other", 1, [FieldSchema("text", "str")])


@pytest.fixture
def store(short_dir):
    opened = RegistryStore(short_dir / "registry.db")
    yield opened
    opened.close()


@pytest.fixture
def registry(store):
    return Registry(store, 0.0)


def node(name: str, incarnation: int = 1) -> NodeRecord:
    return NodeRecord(number=0, name=name, incarnation=incarnation)


def end(number: int, node_number: int = 1, role: str = "receiver") -> EndpointRecord:
    return EndpointRecord(
        endpoint=number, channel=1, role=role, node=node_number, incarnation=1, port=1
    )


def channel(schema: Schema | None = TEXT, **more) -> ChannelRecord:
    text = schema.text if schema else ""
    return ChannelRecord(
        name="c", type_name="t.text", schema=text, type=schema.type_id if schema else 0, **more
    )


def states(registry: Registry) -> dict[str, str]:
    return {n.name: n.state for n in registry.view().nodes}


def test_node_gets_its_old_number_back_after_a_restart(registry):
    assert [registry.join(node(n), (), 0.0) for n in "ab"] == [1, 2]
    registry.leave(2, 1)
    assert registry.join(node("b", 9), (), 1.0) == 2


def test_name_of_a_living_node_is_refused_to_another_incarnation(registry):
    registry.join(node("a"), (), 0.0)
    with pytest.raises(BusyError, match="choose another --name"):
        registry.join(node("a", 2), (), 0.0)
    assert registry.join(node("a"), (), 0.0) == 1, "the same one may come again"


@pytest.mark.parametrize(
    ("after_s", "state"),
    [
        (SUSPECT_S - 0.01, "alive"),
        (SUSPECT_S, "silent"),
        (LEASE_S - 0.01, "silent"),
        (LEASE_S, "dead"),
    ],
)
def test_silent_node_is_suspect_and_dead_exactly_when_its_lease_is_over(registry, after_s, state):
    registry.join(node("a"), (end(5),), 0.0)
    registry.tick(after_s)
    assert states(registry) == {"a": state}
    assert bool(registry.view().endpoints) == (state != "dead")


def test_silent_node_that_is_heard_of_again_is_alive_with_what_it_had(registry):
    registry.join(node("a"), (end(5),), 0.0)
    registry.tick(SUSPECT_S)
    registry.lease(1, 1, SUSPECT_S + 0.1)
    assert states(registry) == {"a": "alive"} and registry.view().endpoints


def test_name_of_a_silent_node_is_still_its_own(registry):
    registry.join(node("a"), (), 0.0)
    registry.tick(SUSPECT_S)
    with pytest.raises(BusyError, match="choose another --name"):
        registry.join(node("a", 2), (), SUSPECT_S)


def test_registry_that_stood_still_ends_no_lease(registry):
    registry.join(node("a"), (), 0.0)
    registry.pardon(2 * LEASE_S)
    registry.tick(2 * LEASE_S + SUSPECT_S - 0.01)
    assert states(registry) == {"a": "alive"}


def test_node_whose_lease_ended_must_join_again(registry):
    registry.join(node("a"), (), 0.0)
    registry.lease(1, 1, LEASE_S - 0.1)
    registry.tick(LEASE_S + 0.1)
    assert states(registry) == {"a": "alive"}
    registry.tick(3 * LEASE_S)
    with pytest.raises(StaleHandleError):
        registry.lease(1, 1, 3 * LEASE_S)


def test_declaring_the_same_again_answers_the_same_number(registry):
    first = registry.declare(channel())
    assert registry.declare(channel()) == first and first.number == 1


@pytest.mark.parametrize(
    ("second", "error", "named"),
    [
        (channel(delivery="at_least_once"), ConfigError, "delivery"), (channel(klass="bulk"), ConfigError, "class"),
        (channel(OTHER), TypeMismatchError, "'text'"), (channel(route="x"), ConfigError, "route"),
        (channel(transforms=("x",)), ConfigError, "transforms"),
    ],
)  # fmt: skip
def test_other_declaration_is_refused_naming_the_difference(registry, second, error, named):
    registry.declare(channel())
    with pytest.raises(error, match=named):
        registry.declare(second)


def test_undeclared_channel_is_refused_with_the_nearest_name(registry):
    registry.declare(channel())
    registry.declare(msgspec.structs.replace(channel(), name="prompts"))
    with pytest.raises(ConfigError, match="did you mean 'prompts'"):
        registry.settle("promts", TEXT.text)


def test_channel_known_by_type_name_gets_its_schema_from_the_first_endpoint(registry):
    registry.declare(channel(None))
    with pytest.raises(TypeMismatchError, match=r"t\.other"):
        registry.settle("c", FOREIGN.text)
    assert registry.settle("c", TEXT.text).type == TEXT.type_id
    with pytest.raises(TypeMismatchError, match="'text'"):
        registry.settle("c", OTHER.text)


def test_receiver_behind_a_transform_brings_the_type_it_produces(registry):
    registry.declare(channel())
    registry.change("c", transforms=("f",), delivers="t.other")
    assert registry.settle("c", FOREIGN.text, is_last=True).type == TEXT.type_id
    with pytest.raises(TypeMismatchError):
        registry.settle("c", FOREIGN.text, is_last=False)


def test_epochs_grow_over_a_restart_and_nodes_are_silent_until_they_are_back(store, registry):
    registry.join(node("a"), (), 0.0)
    registry.join(node("b"), (end(5, 2),), 0.0)
    registry.declare(channel())
    before = registry.view()
    again = Registry(store, 100.0)
    assert again.view().epoch > before.epoch
    assert states(again) == {"a": "silent", "b": "silent"}
    assert again.view().channels == before.channels
    again.join(node("b"), (end(5, 2),), 100.1)
    again.tick(100.0 + LEASE_S)
    assert states(again) == {"a": "dead", "b": "silent"}, "each from its own last sign"
    assert [e.endpoint for e in again.view().endpoints] == [5]


def test_every_change_is_told_once(registry):
    told = []
    registry.on_change = lambda: told.append(registry.view().epoch)
    registry.join(node("a"), (), 0.0)
    registry.declare(channel())
    registry.declare(channel())
    registry.open(end(5))
    registry.close([5])
    registry.close([5])
    assert len(told) == 4 and told == sorted(set(told))


def test_archived_counts_are_kept_once_and_added_up_when_many(store, monkeypatch):
    monkeypatch.setattr(limits, "ARCHIVED_ENDPOINTS_MAX", 10)
    for number in range(1, 26):
        final = ArchivedCounts(
            endpoint=number, channel=1 + number % 2, accepted=4, counts=((1, 0, 3), (2, 1, 1))
        )
        store.archive(final)
        store.archive(final)
    kept = store.archived()
    assert len(kept) <= 10 and sum(a.accepted for a in kept) == 100
    assert sum(n for a in kept for end_, _, n in a.counts if end_ == 1) == 75


async def test_calls_by_request_answer_what_calls_in_process_answer(registry):
    registry.join(node("a"), (), 0.0)
    local, remote = RegistryClient(registry), RegistryClient()

    async def request(op, fields):
        return serve_registry(registry, op, msgspec.msgpack.decode(msgspec.msgpack.encode(fields)))

    remote.request = request
    assert await remote.declare(channel()) == await local.declare(channel())
    await remote.open(end(5))
    await remote.archive([ArchivedCounts(endpoint=5, channel=1, accepted=1, counts=((1, 0, 1),))])
    assert await local.archived() == await remote.archived() != []
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(registry.view()))
    assert view_from(plain) == registry.view() != View()


@pytest.mark.promise("P3")
def test_node_behind_interfaces_that_are_down_here_gets_one_lease_more_and_is_suspect_meanwhile(
    registry,
):
    number = registry.join(node("b"), (), 0.0)
    look_s = limits.LIVENESS_MS / 1000
    looks = [n * look_s for n in range(1, round(3 * LEASE_S / look_s))]
    seen = {}
    for now in looks:
        registry.excuse(number, now)
        registry.tick(now)
        seen[now] = registry.view().node(number).state
    assert seen[looks[0]] == "alive"
    assert {s for now, s in seen.items() if SUSPECT_S <= now < 2 * LEASE_S} == {"silent"}
    assert {s for now, s in seen.items() if now >= 2 * LEASE_S} == {"dead"}, "not for ever"


def test_node_that_is_heard_again_after_it_was_excused_has_its_whole_lease(registry):
    number = registry.join(node("b"), (), 0.0)
    registry.excuse(number, 2.9)
    registry.lease(number, 1, 4.0)
    registry.tick(4.0 + LEASE_S - 0.1)
    assert registry.view().node(number).state == "silent"
    registry.tick(4.0 + LEASE_S)
    assert registry.view().node(number).state == "dead"
