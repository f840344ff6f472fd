"""Channels of a measurement: gone with their ends, with their counts, whoever forgets them."""

import math

import pytest

from fabric import limits
from fabric.errors import StorageError
from fabric.registry.client import serve_registry
from fabric.registry.cluster import Registry
from fabric.registry.records import ArchivedCounts, ChannelRecord, EndpointRecord, NodeRecord
from fabric.registry.store import RegistryStore

pytestmark = pytest.mark.promise("P9")

IDLE_S = limits.TRANSIENT_IDLE_S


@pytest.fixture
def store(short_dir):
    opened = RegistryStore(short_dir / "registry.db")
    yield opened
    opened.close()


@pytest.fixture
def registry(store):
    made = Registry(store, 0.0)
    made.join(NodeRecord(number=0, name="a", incarnation=1), (), 0.0)
    return made


def declare(registry: Registry, name: str, *, is_transient: bool = True) -> int:
    record = ChannelRecord(name=name, type_name="bytes", is_transient=is_transient)
    return registry.declare(record).number


def end(number: int, channel: int) -> EndpointRecord:
    return EndpointRecord(
        endpoint=number, channel=channel, role="receiver", node=1, incarnation=1, port=1
    )


def names(registry: Registry) -> list[str]:
    return [c.name for c in registry.channels()]


def look(registry: Registry, now_s: float) -> None:
    registry.pardon(now_s)  # its node stays
    registry.tick(now_s)


def test_released_channel_without_ends_is_gone_at_once_with_its_counts(registry, store):
    number, other = declare(registry, "t"), declare(registry, "stays", is_transient=False)
    registry.archive(ArchivedCounts(endpoint=n, channel=n, accepted=1) for n in (number, other))
    serve_registry(registry, "release", {"names": ["t", "stays", "unknown"]})
    assert names(registry) == ["stays"]
    assert [c.name for c in store.channels()] == ["stays"]
    assert [final.channel for final in registry.archived()] == [other]


def test_released_channel_that_is_in_use_goes_with_its_last_end(registry):
    registry.open(end(7, declare(registry, "t")))
    registry.release(["t"])
    look(registry, 1.0)
    assert names(registry) == ["t"]
    registry.close([7])
    look(registry, 2.0)
    assert names(registry) == []


def test_channel_that_nobody_releases_goes_after_a_while_without_ends(registry):
    number = declare(registry, "t")
    look(registry, 1.0)
    look(registry, IDLE_S)
    registry.open(end(7, number))
    look(registry, 2 * IDLE_S)
    registry.close([7])
    look(registry, 2 * IDLE_S + 1)
    look(registry, 3 * IDLE_S)
    assert names(registry) == ["t"], "it begins anew with the last end"
    look(registry, 3 * IDLE_S + 1)
    assert names(registry) == []


def test_restarted_registry_still_sweeps_what_the_last_one_left(registry, store):
    declare(registry, "t")
    again = Registry(store, 0.0)
    look(again, 0.0)
    look(again, IDLE_S)
    assert names(again) == []


def test_channel_that_was_not_declared_as_transient_stays_unused_for_ever(registry):
    declare(registry, "c", is_transient=False)
    for now_s in (0.0, IDLE_S, 100 * IDLE_S):
        look(registry, now_s)
    assert names(registry) == ["c"]


def test_counts_that_come_when_their_channel_is_gone_are_not_kept(registry):
    number = declare(registry, "t")
    registry.release(["t"])
    registry.archive([ArchivedCounts(endpoint=1, channel=number, accepted=1)])
    assert registry.archived() == []


def test_number_of_a_channel_that_went_is_not_used_again(registry):
    first = declare(registry, "t")
    registry.release(["t"])
    assert declare(registry, "t") > first


def test_full_disk_keeps_the_channel_until_a_later_look(registry, store, monkeypatch):
    declare(registry, "t")

    def refuse(*_: object, **__: object) -> None:
        raise StorageError("full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "drop_channel", refuse)
        registry.release(["t"])
    assert names(registry) == ["t"]
    look(registry, -math.inf)
    look(registry, 1.0)
    assert names(registry) == []
