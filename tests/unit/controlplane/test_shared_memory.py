"""Memory that outlives its users: who gets which, how much there is, and that a successor finds it."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from fabric import limits
from fabric.controlplane.shared_memory import SharedMemories
from fabric.errors import CapacityError, ConfigError
from fabric.worker.join_journal import Journal, journal_bytes
from fabric.worker.join_matcher import Ended
from fabric.worker.supervisor import State


class Keeper:
    def __init__(self):
        self.items = {}

    def put(self, key, value, fd=-1):
        self.items[key] = value, os.dup(fd)

    def drop(self, key):
        os.close(self.items.pop(key)[1])


class Modules:
    def __init__(self):
        self.processes = {}

    def start(self, name, module):
        life = SimpleNamespace(state=State.READY)
        self.processes[name] = SimpleNamespace(name=name, about={"name": module}, life=life)

    def find(self, kind, name):
        return self.processes.get(name)

    def all(self, kind):
        return list(self.processes.values())


@pytest.fixture
def modules():
    made = Modules()
    made.start("pair", "pair")
    return made


@pytest.fixture
def keeper():
    made = Keeper()
    yield made
    for key in list(made.items):
        made.drop(key)


@pytest.fixture
def memories(keeper, modules):
    made = SharedMemories(SimpleNamespace(keeper=keeper), modules, 1 << 20)
    yield made
    for shared in made._known.values():
        os.close(shared.fd)


def port(owner="module-pair", tenant=1000):
    return SimpleNamespace(name=owner, owner=owner, tenant=tenant)


def test_a_tenant_gets_its_own_cache_and_no_other(memories):
    _, (mine,) = memories.serve(port(), {"kind": "cache"})
    _, (again,) = memories.serve(port("other"), {"kind": "cache"})
    _, (other,) = memories.serve(port(tenant=1001), {"kind": "cache"})
    assert mine == again != other
    assert os.fstat(mine).st_ino != os.fstat(other).st_ino
    with pytest.raises(OSError):
        os.ftruncate(mine, 0)  # nobody can cut it off under the others


def test_a_join_gets_its_own_journal_and_no_other(memories):
    answer, _ = memories.serve(port(), {"kind": "join", "name": "pair"})
    assert answer["bytes"] == journal_bytes()
    with pytest.raises(ConfigError, match="is not the host of join 'pair'"):
        memories.serve(port("module-thief"), {"kind": "join", "name": "pair"})
    with pytest.raises(ConfigError, match="no shared memory of kind"):
        memories.serve(port(), {"kind": "disk"})


def test_a_second_process_of_a_join_is_refused(memories, modules):
    modules.start("pair-1", "pair")
    with pytest.raises(ConfigError, match="a join is one process"):
        memories.serve(port("module-pair-1"), {"kind": "join", "name": "pair-1"})
    modules.processes["pair"].life.state = State.STOPPING
    memories.serve(port("module-pair-1"), {"kind": "join", "name": "pair-1"})


def test_a_restarted_daemon_finds_what_was_written(memories, keeper, modules):
    _, (fd,) = memories.serve(port(), {"kind": "join", "name": "pair"})
    with open(f"/proc/self/fd/{fd}", "r+b") as file:
        memory = bytearray(file.read())
        journal = Journal(memory, ("a", "b"))
        journal.put(b"k", Ended("dropped"))
        journal.count("late")
        file.seek(0)
        file.write(memory)
    successor = SharedMemories(SimpleNamespace(keeper=keeper), modules, 1 << 20)
    successor.restore({key: (value, os.dup(fd)) for key, (value, fd) in keeper.items.items()})
    assert successor.join_counters()["pair"]["late"] == 1
    for shared in successor._known.values():
        os.close(shared.fd)


def test_journals_of_joins_that_are_gone_go_when_there_are_many(memories, modules, monkeypatch):
    monkeypatch.setattr(limits, "JOINS_MAX", 2)
    for name in ("pair", "two", "three"):
        modules.start(name, name)
    memories.serve(port("module-two"), {"kind": "join", "name": "two"})
    memories.serve(port(), {"kind": "join", "name": "pair"})
    del modules.processes["two"]
    memories.serve(port("module-three"), {"kind": "join", "name": "three"})
    assert sorted(shared.name for shared in memories.all("join")) == ["pair", "three"]
    modules.start("four", "four")
    with pytest.raises(CapacityError, match="JOINS_MAX"):
        memories.serve(port("module-four"), {"kind": "join", "name": "four"})
