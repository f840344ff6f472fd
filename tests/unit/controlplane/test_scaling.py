"""Which replicas of a module run: names, scale, apply, drain."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fabric import errors
from fabric.config import ModuleSpec
from fabric.controlplane.scaling import Scaling, replica_names
from fabric.worker.supervisor import Life, State


@pytest.mark.parametrize(
    ("count", "present", "names"),
    [
        (1, [], ["m"]), (2, [], ["m-0", "m-1"]), (2, ["m"], ["m", "m-1"]), (1, ["m", "m-1"], ["m"]),
        (1, ["m-0", "m-1"], ["m-0"]), (2, ["m", "m-2"], ["m", "m-2"]), (3, ["m", "m-2"], ["m", "m-2", "m-1"]),
        (0, ["m"], []), (2, ["m-1"], ["m-1", "m-0"]), (11, ["m-0"], ["m-0", *(f"m-{n}" for n in range(1, 11))]),
    ],
)  # fmt: skip
def test_replicas_that_run_keep_their_names_and_new_ones_take_free_numbers(count, present, names):
    assert replica_names("m", count, present) == names


class FakeModules:
    """A module table that starts and stops at once, and a keeper beside it."""

    def __init__(self) -> None:
        self.running: dict[str, Any] = {}
        self.log: list[str] = []
        self.items: dict[str, Any] = {}
        self.keeper = self.events = self

    def all(self, kind: str) -> list[Any]:
        return [self.running[name] for name in sorted(self.running)]

    def find(self, kind: str, name: str) -> Any:
        return self.running.get(name)

    def keep(self, process: Any) -> None:
        pass

    def start_module(self, spec: ModuleSpec, name: str) -> None:
        self.log.append(f"start {name}")
        process = type("Process", (), {})()
        process.name, process.about = name, msgspec.to_builtins(spec)
        process.life = Life(state=State.READY)
        self.running[name] = process

    async def stop(self, process: Any, grace_s: float) -> None:
        self.log.append(f"stop {process.name}")
        del self.running[process.name]

    def put(self, key: str, value: dict[str, Any]) -> None:
        self.items[key] = (value, -1)

    def drop(self, key: str) -> None:
        self.items.pop(key, None)

    def add(self, event: str, **_: Any) -> None:
        pass


@pytest.fixture
def modules():
    return FakeModules()


@pytest.fixture
def scaling(modules):
    return started(modules)


def started(modules: FakeModules) -> Scaling:
    made = Scaling(modules, modules)

    async def withdraw(process: Any) -> None:
        modules.log.append(f"withdraw {process.name}")

    made.withdraw = withdraw
    return made


def spec(**more: Any) -> ModuleSpec:
    return msgspec.convert({"name": "m", "class": "a:B", **more}, ModuleSpec)


async def test_scale_up_and_down_touches_only_what_changes(modules, scaling):
    assert await scaling.apply(spec()) == "added"
    answer = await scaling.scale("m", 2)
    assert [row["name"] for row in answer["replicas"]] == ["m", "m-1"]
    await scaling.scale("m", 1)
    assert modules.log == ["start m", "start m-1", "withdraw m-1", "stop m-1"]


async def test_scale_holds_over_a_restart_and_an_apply_that_changes_nothing(modules, scaling):
    await scaling.apply(spec())
    await scaling.scale("m", 3)
    successor = started(modules)
    successor.restore(modules.items)
    assert await successor.apply(spec()) == "unchanged"
    assert sorted(modules.running) == ["m", "m-1", "m-2"] and successor.override_of("m") == 3


async def test_apply_that_changes_the_module_ends_the_scale(modules, scaling):
    await scaling.apply(spec())
    await scaling.scale("m", 3)
    assert await scaling.apply(spec(config={"x": 1})) == "changed"
    assert sorted(modules.running) == ["m"] and scaling.override_of("m") is None


async def test_apply_with_more_replicas_restarts_none(modules, scaling):
    await scaling.apply(spec())
    assert await scaling.apply(spec(replicas=2)) == "changed"
    assert modules.log == ["start m", "start m-1"]


async def test_drained_replica_stays_out_and_the_others_run_on(modules, scaling):
    await scaling.apply(spec(replicas=3))
    await scaling.drain("m-1", 1.0)
    assert sorted(modules.running) == ["m-0", "m-2"]
    assert await scaling.apply(spec(replicas=3)) == "unchanged"


async def test_module_scaled_to_none_can_come_back(modules, scaling):
    await scaling.apply(spec())
    answer = await scaling.scale("m", 0)
    assert answer["state"] == "stopped" and not modules.running
    await scaling.scale("m", 1)
    assert list(modules.running) == ["m"]


async def test_unknown_module_and_too_many_replicas_are_refused(modules, scaling):
    await scaling.apply(spec())
    with pytest.raises(errors.ConfigError, match=r"did you mean 'm'|known: m"):
        await scaling.scale("n", 1)
    with pytest.raises(errors.CapacityError, match="REPLICAS_MAX"):
        await scaling.scale("m", 65)
