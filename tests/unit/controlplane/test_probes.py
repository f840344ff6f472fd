"""The ends of measurements on a node: bounded in number and time, and gone when who asked is gone."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from fabric import errors, limits
from fabric.controlplane.probes import Probes


class FakeModules:
    """A module table whose processes are ready at once and stop at once."""

    def __init__(self, folder: Any) -> None:
        self.folder = folder
        self.running: dict[str, Any] = {}
        self.starts_ready = True

    def all(self, kind: str) -> list[Any]:
        return list(self.running.values())

    def find(self, kind: str, name: str) -> Any:
        return self.running.get(name)

    def start_probe(self, name: str, class_path: str, config: dict[str, Any]) -> Any:
        process = SimpleNamespace(name=name, tag=f"probe-{name}", port=0, config=config)
        process.ready, process.ended = asyncio.Event(), asyncio.Event()
        if self.starts_ready:
            process.ready.set()
        self.running[name] = process
        self.log_path("probe", name).write_text("the first line\nthe last line\n")
        return process

    async def stop(self, process: Any, grace_s: float) -> None:
        self.running.pop(process.name, None)

    def log_path(self, kind: str, name: str) -> Any:
        return self.folder / f"{name}.log"


@pytest.fixture
def modules(tmp_path):
    return FakeModules(tmp_path)


@pytest.fixture
def probes(modules):
    return Probes(SimpleNamespace(modules=modules, ports=[], context=SimpleNamespace(name="a")))


def ask(name: str = "p", limit_s: float = 60.0) -> dict[str, Any]:
    return {"name": name, "role": "far", "counts_daemon": True, "limit_s": limit_s, "config": {}}


async def until(condition: Any) -> None:
    async with asyncio.timeout(5.0):
        while not condition():
            await asyncio.sleep(0.001)


def run(body: Any) -> None:
    asyncio.run(body)


@pytest.mark.promise("P8")
def test_one_end_too_many_is_refused_naming_the_limit(probes, modules):
    async def body():
        for number in range(limits.PROBES_MAX):
            await probes.serve("probe_start", ask(f"p{number}"))
        with pytest.raises(errors.CapacityError, match="PROBES_MAX"):
            await probes.serve("probe_start", ask("more"))
        await probes.serve("probe_stop", {"name": "p0"})
        await probes.serve("probe_start", ask("more"))

    run(body())


@pytest.mark.promise("P9")
def test_end_that_nobody_stops_leaves_at_its_time_limit(probes, modules):
    async def body():
        await probes.serve("probe_start", ask(limit_s=0.02))
        await until(lambda: not modules.running)
        await until(lambda: not list(modules.folder.iterdir()))  # its log too

    run(body())


@pytest.mark.promise("P9")
@pytest.mark.parametrize("op", ["probe_start", "probe_watch"])
def test_end_leaves_when_the_connection_of_who_asked_is_gone(probes, modules, op):
    async def body():
        modules.starts_ready = op != "probe_start"
        if op != "probe_start":
            await probes.serve("probe_start", ask())
        serving = asyncio.create_task(probes.serve(op, ask()))
        await until(lambda: modules.running)
        await asyncio.sleep(0)
        serving.cancel()  # what a closed connection does to its requests
        await until(lambda: not modules.running)

    run(body())


@pytest.mark.promise("P9")
def test_daemon_that_is_started_again_takes_the_ends_of_the_last_one_away(probes, modules):
    async def body():
        modules.start_probe("old", "", {})
        probes.resume()
        await until(lambda: not modules.running)

    run(body())


def test_end_that_dies_before_it_is_ready_is_told_with_its_last_line(probes, modules):
    async def body():
        modules.starts_ready = False
        starting = asyncio.create_task(probes.serve("probe_start", ask()))
        await until(lambda: modules.running)
        modules.running["p"].ended.set()
        with pytest.raises(errors.PeerLostError, match=r"p on node 'a' ended .*: the last line"):
            await starting

    run(body())


def test_stopping_twice_and_stopping_what_is_gone_are_fine(probes, modules):
    async def body():
        await probes.serve("probe_start", ask())
        stops = [probes.serve("probe_stop", {"name": "p"}) for _ in range(3)]
        assert await asyncio.gather(*stops) == [{}, {}, {}]
        with pytest.raises(errors.PeerLostError, match="p has ended"):
            await probes.serve("probe_watch", {"name": "p"})

    run(body())
