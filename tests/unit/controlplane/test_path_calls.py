"""What `fabricctl path` is answered: rows of rails with their terms, reasons, pins that last, changes that are told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from fabric import _native, errors, limits
from fabric.controlplane.path_calls import PathCalls
from fabric.controlplane.rail_changes import CHANGED, DOWNGRADED, RESTORED, RailChanges
from fabric.paths.choice import Path
from fabric.registry.records import NodeRecord, View
from fabric.telemetry.events import EventLog

pytestmark = pytest.mark.promise("P5")
MIB = 1 << 20
GBIT = 125_000_000


def rail(number: int, state: str = "up", **more: Any) -> dict[str, Any]:
    return {
        "rail": number, "state": state, "rate": float(GBIT), "rate_now": float(GBIT), "base_ns": 200_000, "inflight": 0,
        "window": 212_500, "finish_ns": 8_588_608, "silent_ns": 0, "delivered": 3 * MIB if number == 0 else MIB,
        "resent": 0, "failures": 0, "penalty": 0.0, "held_until_ns": 0, "is_primary": number == 0,
        "interface": f"veth{number}", "local": f"10.0.{number}.1", "remote": f"10.0.{number}.2:7400", **more,
    }  # fmt: skip


class FakeDaemon:
    """What `PathCalls` reads of a daemon: three nodes, two rails to b, none to c, an engine and a keeper that note."""

    def __init__(self, items: dict[str, Any] | None = None) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.rails = {2: [rail(0), rail(1)]}
        self.sessions = {2: 77}
        self.path = Path("tcp", "tcp", "the best that both nodes offer")
        events = EventLog()
        keeper = SimpleNamespace(
            put=lambda key, value: self.log.append(("put", key, value)),
            drop=lambda key: self.log.append(("drop", key)),
        )
        self.context = SimpleNamespace(
            name="a", number=1, events=events, keeper=keeper, native=_native
        )
        engine = SimpleNamespace(
            pin=lambda session, mask: self.log.append(("pin", session, mask)),
            decisions=lambda session: [
                {"at_ns": 5, "pending": MIB, "bytes": 65536, "rail": 1, "why": "earliest", "finish_ns": [9, 7]},
                {"at_ns": 6, "pending": MIB, "bytes": 0, "rail": 2**32 - 1, "why": "no_rail", "finish_ns": [0, 0]},
            ],
        )  # fmt: skip
        self.gateway = SimpleNamespace(
            engine=engine,
            session_of=lambda number: self.sessions.get(number, 0),
            on_rail=[],
            reasons={},
            on_opened=None,
        )
        names = ((1, "a"), (2, "b"), (3, "c"))
        nodes = [NodeRecord(number=n, name=name, incarnation=n) for n, name in names]
        self.registry = SimpleNamespace(view=View(nodes=tuple(nodes)))
        self.downgrades = 0
        self.paths = SimpleNamespace(
            to=lambda number: self.path, row=lambda number: {}, count_downgrade=self._downgrade
        )
        self.calls = SimpleNamespace(call=self._call)
        self.loaded = SimpleNamespace(items=items or {})

    def rails_of(self, number: int, size_bytes: int) -> list[dict[str, Any]]:
        return [dict(row) for row in self.rails.get(number, [])]

    def _downgrade(self) -> None:
        self.downgrades += 1

    async def _call(
        self, node: int, op: str, fields: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        self.log.append(("call", node, op))
        assert node == 1, "only the fake itself answers"
        answer: dict[str, Any] = await self.calls_of.serve(op, fields)
        return answer

    calls_of: PathCalls


def made(items: dict[str, Any] | None = None) -> tuple[FakeDaemon, PathCalls]:
    daemon = FakeDaemon(items)
    daemon.calls_of = PathCalls(daemon)  # type: ignore[arg-type]
    return daemon, daemon.calls_of


def ask(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


# ------------------------------------------------------------------ ls, show
def test_row_has_addresses_state_terms_and_its_share_of_the_bytes():
    _, calls = made()
    rows = ask(calls.ls())
    assert [(r["peer"], r["rail"], r["state"], r["share"]) for r in rows] == [
        ("b", 0, "up", 0.75),
        ("b", 1, "up", 0.25),
    ]
    assert rows[1]["local"] == "10.0.1.1" and rows[1]["interface"] == "veth1"
    assert rows[0]["is_primary"] and not rows[0]["pinned"]


def test_rail_without_an_engine_session_has_a_row_with_its_last_error():
    daemon, calls = made()
    daemon.rails[3] = [{"rail": 0, "state": "down", "last_error": "10.0.3.2:7400 refused"}]
    row = ask(calls.ls())[-1]
    assert (row["peer"], row["state"], row["rate"], row["share"]) == ("c", "down", 0, 0.0)
    assert row["last_error"] == "10.0.3.2:7400 refused"


def test_show_has_scores_changes_and_decisions_by_age():
    daemon, calls = made()
    event = {"rail": 1, "from": "up", "to": "suspect", "reason": "nothing was acknowledged"}
    for told in daemon.gateway.on_rail:
        told(2, event)
    shown = ask(calls.show("b", None, MIB))
    assert shown["rails"][0]["score"].startswith(
        "200.0 µs + (0 B in flight + 1.0 MiB) / 125.0 MB/s"
    )
    assert [(c["rail"], c["after"]) for c in shown["changes"]] == [(1, "suspect")]
    assert shown["rails"][1]["last_error"] == "nothing was acknowledged"
    assert [d["rail"] for d in shown["decisions"]] == [1, None]
    assert all(d["age_ms"] > 0 and "at_ns" not in d for d in shown["decisions"])
    assert [d["rail"] for d in ask(calls.show("b", 1, MIB))["decisions"]] == [1]


@pytest.mark.parametrize(
    ("peer", "rail_number", "said"),
    [
        ("x", None, "there is no node 'x'; known: a, b, c"),
        ("a", None, "'a' is the node that was asked"),
        ("b", 5, "there is no rail 5 to node 'b'; there is 0, 1"),
    ],
)
def test_what_is_not_there_is_refused_by_name(peer, rail_number, said):
    _, calls = made()
    with pytest.raises(errors.ConfigError, match=said):
        ask(calls.show(peer, rail_number, MIB))


# ------------------------------------------------------------------ why
def test_large_message_is_split_by_the_scheduler_itself():
    _, calls = made()
    found = ask(calls.why("a", "b", 64 * MIB, "bulk"))
    assert (found["way"], found["by"], found["path"]) == ("chunks", "scheduler", "tcp")
    assert [round(r["carries_share"], 1) for r in found["rails"]] == [0.5, 0.5]
    assert sum(r["carries"] for r in found["rails"]) == 64 * MIB
    assert found["end_ns"] == pytest.approx(32 * MIB * 8, rel=0.05)
    assert "go in chunks" in found["words"][0]


def test_small_message_goes_whole_over_the_primary_rail():
    _, calls = made()
    found = ask(calls.why("a", "b", 64, "token"))
    assert (found["way"], found["fastest"]) == ("whole", 0)
    assert [r["carries"] for r in found["rails"]] == [64, 0]
    assert "goes whole over rail 0" in found["words"][0]


def test_rail_that_is_down_carries_nothing_and_says_why():
    daemon, calls = made()
    daemon.rails[2][1] = rail(1, "down", last_error="the interface is gone")
    found = ask(calls.why("a", "b", 64 * MIB, "bulk"))
    assert [r["carries"] for r in found["rails"]] == [64 * MIB, 0]
    assert found["rails"][1]["left_out"] == "down: it has no connection (the interface is gone)"


def test_within_a_node_there_are_no_rails():
    _, calls = made()
    found = ask(calls.why("a", "a", MIB, "bulk"))
    assert (found["way"], found["path"], found["rails"]) == ("shm", "shm", [])
    assert "shared memory" in found["words"][0]


def test_worse_link_is_said_first():
    daemon, calls = made()
    daemon.path = Path("tcp", "ucx", "ucx is not there on node 'b'")
    found = ask(calls.why("a", "b", MIB, "bulk"))
    assert found["is_downgrade"]
    assert found["words"][0] == (
        "The link is tcp, not the preferred ucx: ucx is not there on node 'b'."
    )


def test_without_a_rail_nothing_goes():
    _, calls = made()
    found = ask(calls.why("a", "c", MIB, "bulk"))
    assert (found["way"], found["words"]) == (
        "nothing",
        ["There is no rail to this node: it waits until one is connected."],
    )


@pytest.mark.parametrize(
    ("size", "klass", "said"),
    [
        (0, "bulk", "--size is 0 bytes"),
        (2 << 30, "bulk", "--size is"),
        (1, "big", "no class 'big'"),
    ],
)
def test_message_that_cannot_be_is_refused(size, klass, said):
    _, calls = made()
    with pytest.raises(errors.ConfigError, match=said):
        ask(calls.why("a", "b", size, klass))


# ------------------------------------------------------------------ pins
def test_pin_is_kept_and_in_force_at_once():
    daemon, calls = made()
    answer = ask(calls.pin("b", [1]))
    assert answer["pinned"] == [1] and answer["warning"] == ""
    assert ("put", "pin/b", {"peer": "b", "rails": [1]}) in daemon.log
    assert ("pin", 77, 2) in daemon.log
    assert [r["pinned"] for r in ask(calls.ls())] == [False, True]


def test_pin_of_the_last_daemon_is_in_force_when_its_session_opens():
    daemon, calls = made({"pin/b": ({"peer": "b", "rails": [0, 1]}, -1), "node": ({}, -1)})
    assert calls.pins.of("b") == (0, 1)
    daemon.gateway.on_opened(2)
    assert daemon.log[-1] == ("pin", 77, 3)


def test_pin_to_a_node_without_a_session_waits_for_one():
    daemon, calls = made()
    daemon.sessions = {}
    ask(calls.pin("b", [0]))
    assert not [entry for entry in daemon.log if entry[0] == "pin"]


def test_pin_to_a_rail_that_does_not_exist_is_refused_and_changes_nothing():
    daemon, calls = made()
    with pytest.raises(errors.ConfigError, match="there is no rail 3, 6 to node 'b'; it has 0, 1"):
        ask(calls.pin("b", [6, 0, 3]))
    assert daemon.log == [] and calls.pins.of("b") == ()


def test_pin_whose_rails_are_all_down_is_taken_and_warned_of_everywhere():
    daemon, calls = made()
    daemon.rails[2][1] = rail(1, "down")
    answer = ask(calls.pin("b", [1]))
    assert "what goes to node b in chunks waits: it is pinned to rail 1" in answer["warning"]
    assert calls.waiting() == [answer["warning"]]
    assert all(row["waits"] for row in ask(calls.ls()))
    assert ask(calls.why("a", "b", MIB, "bulk"))["way"] == "nothing"
    small = ask(calls.why("a", "b", 64, "token"))
    assert (small["way"], small["fastest"]) == ("whole", 0), "records go on"


def test_unpin_forgets_it_and_says_whether_there_was_one():
    daemon, calls = made()
    ask(calls.pin("b", [1]))
    assert ask(calls.pin("b", []))["was_pinned"] is True
    assert daemon.log[-2:] == [("drop", "pin/b"), ("pin", 77, 0)]
    assert ask(calls.pin("b", []))["was_pinned"] is False


# ------------------------------------------------------------------ changes
def change(calls: PathCalls, number: int, before: str, after: str, reason: str = "r") -> None:
    calls.changes.on_event(2, {"rail": number, "from": before, "to": after, "reason": reason})


def kinds(daemon: FakeDaemon) -> list[str]:
    return [row["event"] for row in daemon.context.events.rows()]


def test_connecting_is_told_and_is_no_downgrade():
    daemon, calls = made()
    change(calls, 0, "absent", "up")
    change(calls, 1, "absent", "up")
    assert kinds(daemon) == [CHANGED, CHANGED] and daemon.downgrades == 0


def test_lost_rail_is_one_downgrade_until_it_is_back():
    daemon, calls = made()
    for number in (0, 1):
        change(calls, number, "absent", "up")
    change(calls, 1, "up", "suspect", "nothing was acknowledged")
    change(calls, 1, "suspect", "down", "it stayed silent")
    told = [r for r in daemon.context.events.rows() if r["event"] == DOWNGRADED]
    assert [(r["taken"], r["preferred"], r["rail"]) for r in told] == [
        ("1 of 2 rails", "2 rails", 1)
    ]
    assert told[0]["reason"] == "rail 1 is silent: nothing was acknowledged"
    assert daemon.downgrades == 1
    change(calls, 1, "down", "up", "connected")
    assert kinds(daemon)[-1] == RESTORED
    assert calls.changes.entered["b", 1, "up"] == 2


def test_rail_that_is_left_out_is_told_and_is_no_downgrade():
    daemon, calls = made()
    for number in (0, 1):
        change(calls, number, "absent", "up")
    change(calls, 1, "up", "left_out", "adds nothing (without it 125.0 MB/s, with it 96.2 MB/s)")
    told = daemon.context.events.rows()[-1]
    assert (told["event"], told["severity"], told["after"]) == (CHANGED, "info", "left_out")
    assert told["reason"].startswith("adds nothing")
    change(calls, 1, "left_out", "up", "it adds (without it 125.0 MB/s, with it 250.0 MB/s)")
    assert kinds(daemon)[2:] == [CHANGED, CHANGED] and daemon.downgrades == 0
    assert calls.changes.entered["b", 1, "left_out"] == 1


def test_lost_rail_says_why_its_connection_went():
    daemon, calls = made()
    daemon.gateway.reasons[2, 3] = "interface r1 is down"
    change(calls, 1, "up", "down", "its connection is gone")
    assert calls.changes.of(2, 1)[-1].reason == "interface r1 is down"
    assert daemon.context.events.rows()[-1]["reason"] == "rail 1 is down: interface r1 is down"
    assert ask(calls.ls())[1]["last_error"] == "interface r1 is down"


@pytest.mark.promise("P8")
def test_rail_that_flaps_does_not_push_everything_else_out_of_the_log_and_is_told_when_it_settles():
    events, now, due = EventLog(), [100.0], list[Any]()
    context: Any = SimpleNamespace(events=events)
    changes = RailChanges(
        context, lambda _: "b", lambda *_: "", lambda: now[0], lambda _, call: due.append(call)
    )
    for _ in range(500):
        changes.on_event(2, {"rail": 1, "from": "up", "to": "suspect", "reason": "silent"})
        changes.on_event(2, {"rail": 1, "from": "suspect", "to": "up", "reason": "it answered"})
    told = [row["event"] for row in events.rows()]
    assert told.count("rail flaps") == 1 and len(told) <= 2 * limits.RAIL_CHANGES_TOLD + 1
    assert changes.entered["b", 1, "suspect"] == 500, "counted all the same"
    due.pop()()
    assert len(events.rows()) == len(told) and len(due) == 1, "it looks again later"
    now[0] += 2 * limits.RAIL_CHANGES_TOLD_S
    due.pop()()
    settled, restored = events.rows()[-2:]
    assert (settled["after"], settled["reason"]) == ("up", "settled: it answered")
    assert restored["event"] == RESTORED and due == []


def test_last_rail_lost_leaves_no_path():
    daemon, calls = made()
    change(calls, 0, "absent", "up")
    change(calls, 0, "up", "down", "reset by peer")
    told = daemon.context.events.rows()[-1]
    assert (told["taken"], told["preferred"]) == ("none", "1 rail")


def test_changes_that_are_kept_are_bounded():
    _, calls = made()

    async def body() -> None:
        for _ in range(limits.RAIL_CHANGES_KEPT):
            change(calls, 0, "up", "down")
            change(calls, 0, "down", "up")

    ask(body())
    assert len(calls.changes.of(2, 0)) == limits.RAIL_CHANGES_KEPT
    for number in range(3, limits.NODES_MAX * limits.RAILS_PER_PEER_MAX + 4):
        calls.changes.on_event(number, {"rail": 0, "from": "absent", "to": "up", "reason": ""})
    assert calls.changes.of(2, 0) == [], "of nodes that came and went"
    assert calls.changes.of(number, 0)
