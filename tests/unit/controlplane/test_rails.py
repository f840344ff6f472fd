"""Which addresses are rails, which of them carry, and what is told of each."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from fabric import limits
from fabric.controlplane import rails as rails_module
from fabric.controlplane.rail_dial import Dial
from fabric.controlplane.rails import Ends, Rails, with_join
from fabric.errors import PathBrokenError
from fabric.links.addresses import LocalAddress
from fabric.registry.records import NodeRecord, RailRecord, View
from fabric.telemetry.events import EventLog

NEAR, FAR, REGISTRY = 2, 3, 1
TWO = (RailRecord(host="10.1.0.9", port=7400), RailRecord(host="10.2.0.9", port=7400))
HERE = (
    LocalAddress("eth0", "10.1.0.5", 24, index=2),
    LocalAddress("eth1", "10.2.0.5", 24, index=3),
)


def node(number: int, *rails: RailRecord, **more: Any) -> NodeRecord:
    about = {"name": f"n{number}", "incarnation": 1, "host": "10.1.0.9", "port": 7400, **more}
    return NodeRecord(number=number, rails=rails, **about)


class Gateway:
    """Knows which connections are up, and what the engine says of rails."""

    def __init__(self) -> None:
        self.up: set[tuple[int, int]] = set()
        self.said: list[dict[str, Any]] = []

    def rails(self, number: int, size_bytes: int = 0) -> list[dict[str, Any]]:
        return self.said


@pytest.fixture
def made(monkeypatch):
    """Rails of a node that listens nowhere, on a machine with two interfaces."""
    monkeypatch.setattr(rails_module.addresses, "local_addresses", lambda: HERE)
    view = View(nodes=(node(NEAR, *TWO), node(FAR, state="dead"), node(REGISTRY, *TWO)))
    daemon: Any = SimpleNamespace(
        loaded=SimpleNamespace(items={}),
        registry=SimpleNamespace(view=view),
        options=SimpleNamespace(join=None),
        gateway=Gateway(),
        context=SimpleNamespace(events=EventLog()),
    )
    return Rails(daemon), daemon


def bring_up(rails: Rails, daemon: Any, *groups: int) -> None:
    for group in groups:
        daemon.gateway.up.add((NEAR, group))
        rails.connected(NEAR, group, Ends(f"10.{1 + group // 2}.0.5", TWO[group // 2].host, 7400))


def told(daemon: Any) -> list[tuple[str, int]]:
    return [(row["event"], row["rail"]) for row in daemon.context.events.rows()]


# -------------------------------------------------------------------- addresses
def test_registry_is_dialled_where_it_says_when_the_operators_address_is_one_of_those():
    assert with_join(TWO, ("10.2.0.9", 7400), None) == TWO
    assert with_join(TWO, ("head", 7400), ("10.2.0.9", 7400)) == TWO, "a name of its second rail"


def test_registry_behind_a_forwarding_is_dialled_where_the_operator_said():
    found = with_join(TWO, ("gate", 9000), ("203.0.113.5", 9000))
    assert [(r.host, r.port) for r in found] == [("gate", 9000), ("10.2.0.9", 7400)]
    assert [r.host for r in with_join((), ("gate", 9000), None)] == ["gate"]


def test_dead_node_and_stranger_have_no_address(made):
    rails, _ = made
    assert rails.addresses_of(FAR, REGISTRY) == () == rails.addresses_of(77, REGISTRY)
    assert rails.addresses_of(NEAR, REGISTRY) == TWO


def test_node_that_knows_one_address_has_one_rail(made):
    rails, daemon = made
    daemon.registry.view = View(nodes=(node(NEAR),))
    assert rails.addresses_of(NEAR, REGISTRY) == (RailRecord(host="10.1.0.9", port=7400),)


@pytest.mark.promise("P8")
def test_peer_that_names_too_many_addresses_is_dialled_at_the_first_few(made):
    rails, daemon = made
    many = tuple(RailRecord(host=f"10.1.0.{n}", port=1) for n in range(1, 40))
    daemon.registry.view = View(nodes=(node(NEAR, *many),))
    assert rails.addresses_of(NEAR, REGISTRY) == many[: limits.RAILS_PER_PEER_MAX]


def test_each_rail_is_dialled_over_its_own_interface(made):
    rails, _ = made
    targets = rails.targets(TWO)
    assert [(t.local, t.device) for t in targets] == [("10.1.0.5", "eth0"), ("10.2.0.5", "eth1")]


def test_rail_that_never_was_up_is_also_tried_without_its_interface(made):
    rails, _ = made
    devices = [rails.target(TWO, 1, Dial(failures=n)).device for n in range(4)]
    assert devices == ["eth1", "", "eth1", ""]
    known = {rails.target(TWO, 1, Dial(failures=n, took_s=0.01)).device for n in range(4)}
    assert known == {"eth1"}, "else it would go over the other rail when its own is down"


# -------------------------------------------------------------------- health
def test_rails_that_carry_come_first_and_the_one_to_leave_last(made):
    rails, daemon = made
    bring_up(rails, daemon, 2, 3)
    assert rails.ranked(NEAR, 2) == [1, 0]
    bring_up(rails, daemon, 0, 1)
    assert rails.ranked(NEAR, 2, avoid=0) == [1, 0]
    daemon.gateway.said = [{"rail": 0, "state": "suspect"}, {"rail": 1, "state": "up"}]
    assert rails.ranked(NEAR, 2) == [1, 0]


def test_rail_half_up_is_none_to_go_to(made):
    rails, daemon = made
    bring_up(rails, daemon, 0, 1, 2)
    assert not rails.has_other(NEAR, 2, avoid=0)
    bring_up(rails, daemon, 3)
    assert rails.has_other(NEAR, 2, avoid=0)
    daemon.gateway.said = [{"rail": 1, "state": "suspect"}]
    assert not rails.has_other(NEAR, 2, avoid=0)


@pytest.mark.promise("P5")
def test_rail_that_is_not_reached_is_told_of_once_and_again_when_it_is(made):
    rails, daemon = made
    for _ in range(rails_module.TELL_AFTER + 5):
        for group in (2, 3):
            rails.failed(NEAR, group, OSError("no route"), 2)
    assert told(daemon) == [("rail not reached", 1)]
    row = rails.rows(NEAR, TWO, is_dialled=True)[1]
    assert (row["state"], row["dial"], row["last_error"]) == ("down", "dialling", "no route")
    bring_up(rails, daemon, 2)
    assert told(daemon) == [("rail not reached", 1)], "one of its two connections is no rail yet"
    bring_up(rails, daemon, 3)
    assert told(daemon) == [("rail not reached", 1), ("rail reached", 1)]
    assert rails.dial_of(NEAR, 2).failures == 0


def test_rows_join_what_the_engine_says_with_addresses_and_dialling(made):
    rails, daemon = made
    bring_up(rails, daemon, 0, 1)
    daemon.gateway.said = [{"rail": 0, "state": "up", "rate": 1e8}]
    first, second = rails.rows(NEAR, TWO, is_dialled=True)
    assert (first["state"], first["rate"], first["dial"]) == ("up", 1e8, "up")
    assert (first["local"], first["remote"], first["interface"]) == ("10.1.0.5", "10.1.0.9", "eth0")
    assert (second["state"], second["connections"], second["address"]) == (
        "down",
        0,
        "10.2.0.9:7400",
    )
    daemon.gateway.up.discard((NEAR, 0))
    rails.disconnected(NEAR, 0)
    assert rails.rows(NEAR, TWO, is_dialled=False)[0]["losses"] == 1
    rails.forget(NEAR)
    assert rails.rows(NEAR, TWO, is_dialled=False)[0]["losses"] == 0


# -------------------------------------------------------------------- interfaces
def on_machine(monkeypatch, *found: LocalAddress) -> None:
    monkeypatch.setattr(rails_module.addresses, "local_addresses", lambda: found)


UNPLUGGED = LocalAddress("eth1", "10.2.0.5", 24, is_usable=False, index=3)


async def test_connections_of_an_interface_that_goes_are_named(made, monkeypatch):
    rails, daemon = made
    bring_up(rails, daemon, 0, 1, 2, 3)
    assert rails.look_at_interfaces().gone == []
    on_machine(monkeypatch, HERE[0], UNPLUGGED)
    look = rails.look_at_interfaces()
    assert look.gone == [(NEAR, 2, "eth1"), (NEAR, 3, "eth1")]
    assert look.is_down, "the kernel may tell late of its return"
    on_machine(monkeypatch, HERE[0])
    look = rails.look_at_interfaces()
    assert [group for _, group, _ in look.gone] == [2, 3], "it was removed"
    assert not look.is_down


async def test_peer_beyond_an_interface_that_returns_is_nudged_once(made, monkeypatch):
    rails, daemon = made
    bring_up(rails, daemon, 0, 1, 2, 3)
    on_machine(monkeypatch, HERE[0], UNPLUGGED)
    rails.look_at_interfaces()
    for group in (2, 3):
        rails.disconnected(NEAR, group)
    on_machine(monkeypatch, *HERE)
    back = rails.look_at_interfaces().back
    assert [(t.host, t.local, t.device) for t in back] == [("10.2.0.9", "10.2.0.5", "eth1")]
    assert rails.look_at_interfaces().back == []


def test_interface_that_is_down_is_not_dialled_over(made, monkeypatch):
    rails, _ = made
    owner = [("10.1.0.5", 7400), ("10.2.0.5", 7400)]
    monkeypatch.setattr(rails, "listening", lambda: owner)
    on_machine(monkeypatch, HERE[0], UNPLUGGED)
    with pytest.raises(PathBrokenError, match="interface eth1 is down"):
        rails.target(TWO, 1, Dial())
    assert rails.target(TWO, 0, Dial()).device == "eth0"


@pytest.mark.parametrize(
    "ends",
    [Ends("10.1.0.5", "10.1.0.5"), Ends("fd00::5", "fd00::9"), Ends("", "")],
    ids=["within this machine", "IPv6", "broken already"],
)
async def test_connection_that_no_interface_speaks_for_is_left_alone(made, monkeypatch, ends):
    rails, _ = made
    rails.connected(NEAR, 0, ends)
    on_machine(monkeypatch, LocalAddress("eth0", "10.1.0.5", 24, is_usable=False, index=2))
    assert rails.look_at_interfaces().gone == []


async def test_who_waits_to_dial_tries_at_once_when_an_interface_comes_and_only_then(
    made, monkeypatch
):
    rails, _ = made
    on_machine(monkeypatch, HERE[0])
    rails.look_at_interfaces()
    waiting = asyncio.create_task(rails.pause(60.0))
    await asyncio.sleep(0)
    rails.look_at_interfaces()
    await asyncio.sleep(0)
    assert not waiting.done(), "nothing changed"
    on_machine(monkeypatch, *HERE)
    rails.look_at_interfaces()
    await asyncio.wait_for(waiting, 5.0)


def test_listening_sockets_are_rails_in_the_keepers_order(made, monkeypatch):
    rails, daemon = made
    servers = [socket.create_server((host, 0)) for host in ("127.0.0.1", "127.0.0.2")]
    daemon.loaded.items = {
        "listen/tcp/1": ({}, servers[1].fileno()),
        "listen/tcp": ({}, servers[0].fileno()),
    }
    assert [host for host, _ in rails.listening()] == ["127.0.0.1", "127.0.0.2"]
    loopback = LocalAddress("lo", "127.0.0.1", 8, True, True, 1)
    monkeypatch.setattr(rails_module.addresses, "local_addresses", lambda: (loopback,))
    assert [r.interface for r in rails.own()] == ["lo", "lo"]
    for server in servers:
        server.close()


def test_connection_that_is_lost_soon_is_counted_until_one_lasts(made, monkeypatch):
    rails, daemon = made
    now = [100.0]
    monkeypatch.setattr(rails_module.time, "monotonic", lambda: now[0])
    shorts = []
    for lasted_s in (0.1, 0.2, 5.0, 0.1):
        bring_up(rails, daemon, 0)
        now[0] += lasted_s
        rails.disconnected(NEAR, 0)
        shorts.append(rails.dial_of(NEAR, 0).short)
    assert shorts == [1, 2, 0, 1]


def test_connection_that_had_carried_is_dialled_at_once_however_short_it_lasted(made):
    rails, daemon = made
    shorts = []
    for carried in (0, 0, rails_module.CARRIED_BYTES, 0):
        bring_up(rails, daemon, 0)
        rails.disconnected(NEAR, 0, carried)
        shorts.append(rails.dial_of(NEAR, 0).short)
    assert shorts == [1, 2, 0, 1]


async def test_node_is_unheard_only_while_every_interface_to_it_is_down(made, monkeypatch):
    rails, daemon = made
    assert rails.unheard() == set(), "of a node that no connection ever led to nothing is known"
    bring_up(rails, daemon, 0, 1, 2, 3)
    on_machine(monkeypatch, HERE[0], UNPLUGGED)
    rails.look_at_interfaces()
    assert rails.unheard() == set()
    both = (LocalAddress("eth0", "10.1.0.5", 24, is_usable=False, index=2), UNPLUGGED)
    on_machine(monkeypatch, *both)
    rails.look_at_interfaces()
    for group in range(4):
        rails.disconnected(NEAR, group)
    assert rails.unheard() == {NEAR}
    rails.forget(NEAR)
    assert rails.unheard() == set()
