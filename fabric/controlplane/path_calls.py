"""`fabricctl path …` and `bench path`: what each rail to each node carries, why, and how to bind or measure it.

Reads the engine's terms and the control plane's addresses; decides nothing. A node answers for what *it* sends; asked
about another node it passes the question on. Belongs to the daemon's loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import difflib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fabric import errors, limits
from fabric.controlplane.path_probes import PathProbes
from fabric.controlplane.rail_changes import RailChanges
from fabric.controlplane.rail_pins import RailPins
from fabric.controlplane.rail_probe import Wish
from fabric.controlplane.rails import groups_of
from fabric.paths import dry_run, explain
from fabric.paths.choice import LOCAL, Path

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon
    from fabric.registry.records import NodeRecord

#: what other nodes ask of this one
CALLS = frozenset({"path_rows", "path_show", "path_why", "path_probe", "path_measure"})
CLASSES = ("control", "token", "embedding", "bulk")
TERMS_BYTES = 1 << 20  #: the size that listings show scores for
_NUMBERS = ("rate", "rate_now", "base_ns", "inflight", "window", "finish_ns", "silent_ns", "delivered", "resent",
            "failures", "penalty")  # fmt: skip


class PathCalls:
    """One per daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.pins = RailPins(daemon.context, daemon.gateway, self._name_of)
        self.changes = RailChanges(daemon.context, self._name_of, self._reason_of)
        self.probes = PathProbes(daemon)
        self.pins.restore(daemon.loaded.items)
        daemon.gateway.on_opened = self.pins.apply
        daemon.gateway.on_rail.append(self.changes.on_event)
        self.changes.on_downgrade = daemon.paths.count_downgrade

    # ---------------------------------------------------------------- what fabricctl asks
    async def ls(self, source: str = "") -> list[dict[str, Any]]:
        """Return a row a rail, of every node that this one (or `source`) reaches or should."""
        answer = await self._ask(source, "path_rows", {})
        rows: list[dict[str, Any]] = answer["rows"]
        return rows

    async def show(
        self, peer: str, rail: int | None, size_bytes: int, source: str = ""
    ) -> dict[str, Any]:
        """Return the terms of each rail to a node, its last changes and the scheduler's last decisions."""
        fields = {"peer": peer, "rail": rail, "size_bytes": size_bytes}
        return await self._ask(source, "path_show", fields)

    async def why(self, source: str, target: str, size_bytes: int, klass: str) -> dict[str, Any]:
        """Return where a message of this size and class would go from `source` to `target`, and why.

        Raises
        ------
        ConfigError
            There is no such node or class, or no message is as large as that.
        PathBrokenError
            `source` is not connected.
        """
        if klass not in CLASSES:
            raise errors.ConfigError(
                f"there is no class {klass!r}; use {', '.join(CLASSES)}", key="--class"
            )
        if not 0 < size_bytes <= limits.MESSAGE_BYTES_MAX:
            raise errors.ConfigError(
                f"--size is {size_bytes} bytes: a message has 1 to {limits.MESSAGE_BYTES_MAX}",
                key="--size",
            )
        self._node(target)
        fields = {"target": target, "size_bytes": size_bytes, "class": klass}
        return await self._ask(source, "path_why", fields)

    async def probe(
        self, peer: str, rail: int | None, wish: Wish, source: str = ""
    ) -> dict[str, Any]:
        """Measure each rail to a node (or one of them) by itself, one after another.

        Raises
        ------
        ConfigError
            There is no such node or rail, or the budget is outside its bounds.
        """
        wish.check()
        fields = {"peer": peer, "rail": rail, "wish": _fields(wish)}
        seconds = limits.RAILS_PER_PEER_MAX * (wish.seconds + 2 * limits.PATH_PROBE_WAIT_S)
        return await self._ask(source, "path_probe", fields, seconds)

    async def pin(self, peer: str, rails: Sequence[int]) -> dict[str, Any]:
        """Bind what this node sends to `peer` to some rails; without any, take the pin away."""
        node = self._node(peer)
        self._refuse_own(node)
        was_pinned = bool(self.pins.of(peer))
        if rails:
            self.pins.pin(node.number, rails, self.rows_to(node))
        else:
            was_pinned = self.pins.unpin(node.number)
        rows = self.rows_to(node)
        return {
            "peer": peer,
            "pinned": list(self.pins.of(peer)),
            "was_pinned": was_pinned,
            "warning": self.pins.waiting(peer, rows),
            "rails": rows,
        }

    def all_rows(self) -> list[dict[str, Any]]:
        """Return a row for each rail of this node."""
        return [row for node in self._peers() for row in self.rows_to(node)]

    def up(self, peer: str) -> tuple[NodeRecord, list[dict[str, Any]]]:
        """Return another node and its rails that are up.

        Raises
        ------
        ConfigError
            There is no such node, or it is this one.
        PathBrokenError
            No rail to it is up.
        """
        node = self._node(peer)
        self._refuse_own(node)
        rows = [row for row in self.rows_to(node) if row["state"] == "up"]
        if not rows:
            raise errors.PathBrokenError(
                f"no rail to node {peer!r} is up; see fabricctl path ls", node=peer
            )
        return node, rows

    def waiting(self) -> list[str]:
        """Return a warning for each node whose pinned rails are all out of use."""
        peers = [
            (node.name, self.rows_to(node)) for node in self._peers() if self.pins.of(node.name)
        ]
        return [said for name, rows in peers if (said := self.pins.waiting(name, rows))]

    # ---------------------------------------------------------------- what nodes ask of each other
    async def serve(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Serve one call of `CALLS`."""
        if op == "path_rows":
            return {"rows": self.all_rows()}
        if op == "path_show":
            return self._show(fields["peer"], fields["rail"], fields["size_bytes"])
        if op == "path_why":
            return await self._why(fields["target"], fields["size_bytes"], fields["class"])
        if op == "path_measure":
            return await self.probes.serve(fields)
        node = self._node(fields["peer"])
        self._refuse_own(node)
        rows = self._chosen(node, fields["rail"])
        return await self.probes.run(node, rows, Wish(**fields["wish"]))

    def rows_to(self, node: NodeRecord, size_bytes: int = TERMS_BYTES) -> list[dict[str, Any]]:
        """Return a row for each rail to a node, its terms for `size_bytes`."""
        found = self._daemon.rails_of(node.number, size_bytes)
        pinned = self.pins.of(node.name)
        total = sum(int(row.get("delivered", 0)) for row in found)
        waits = explain.is_waiting(found, pinned)
        path = self._daemon.paths.to(node.number)
        rows = []
        for row in found:
            kept = {**dict.fromkeys(_NUMBERS, 0), "is_primary": False, **row}
            held_ns = int(kept.pop("held_until_ns", 0)) - time.monotonic_ns()
            rows.append(
                {
                    "source": self._daemon.context.name,
                    "peer": node.name,
                    "link": path.taken,
                    **kept,
                    "held_ms": max(0.0, round(held_ns / 1e6, 1)),
                    "share": int(kept["delivered"]) / total if total else 0.0,
                    "pinned": row["rail"] in pinned,
                    "waits": waits,
                    "last_error": self._last_error(node.number, row),
                }
            )
        return rows

    # ---------------------------------------------------------------- answers
    def _show(self, peer: str, rail: int | None, size_bytes: int) -> dict[str, Any]:
        node = self._node(peer)
        self._refuse_own(node)
        rows = self._chosen(node, rail, size_bytes)
        numbers = {row["rail"] for row in rows}
        return {
            "source": self._daemon.context.name,
            "peer": peer,
            "size_bytes": size_bytes,
            **self._daemon.paths.row(node.number),
            "pinned": list(self.pins.of(peer)),
            "warning": self.pins.waiting(peer, rows),
            "rails": [{**row, "score": explain.term(row, size_bytes)} for row in rows],
            "changes": [
                {"rail": row["rail"], **change._asdict()}
                for row in rows
                for change in self.changes.of(node.number, row["rail"])
            ],
            "decisions": [
                row
                for row in self._decisions(node.number)
                if rail is None or row["rail"] in numbers
            ],
        }

    async def _why(self, target: str, size_bytes: int, klass: str) -> dict[str, Any]:
        node = self._node(target)
        own = self._daemon.context
        about = {"source": own.name, "target": target, "size_bytes": size_bytes, "class": klass}
        if node.number == own.number:
            return {**about, **_path(LOCAL), "way": "shm", "rails": [], "words": [_LOCAL_WORDS]}
        path = self._daemon.paths.to(node.number)
        rows = self.rows_to(node, size_bytes)
        pinned = self.pins.of(target)
        whole = explain.goes_whole(size_bytes)
        carrying = explain.usable(rows) if whole else explain.carrying(rows, pinned)
        usable = [dict(row) for row in carrying]
        fastest = _primary(explain.usable(rows))
        shares: dict[int, int] = {}
        end_ns, asked = 0, ""
        if usable and whole and fastest is not None:
            row = next(row for row in usable if row["rail"] == fastest)
            shares, end_ns, asked = {fastest: size_bytes}, row["finish_ns"], "terms"
        elif usable:
            shares, end_ns, asked = await self._split(usable, size_bytes)
        said = explain.words(rows, size_bytes, klass, fastest, shares, end_ns, pinned)
        return {
            **about,
            **_path(path),
            "way": "nothing" if not usable else "whole" if whole else "chunks",
            "by": asked,
            "pinned": list(pinned),
            "end_ns": end_ns,
            "fastest": fastest,
            "rails": [self._why_row(row, size_bytes, shares, fastest, pinned) for row in rows],
            "words": [*_path_words(path), *said],
        }

    def _why_row(
        self,
        row: dict[str, Any],
        size_bytes: int,
        shares: dict[int, int],
        fastest: int | None,
        pinned: Sequence[int],
    ) -> dict[str, Any]:
        carries = shares.get(row["rail"], 0)
        return {
            **row,
            "score": explain.term(row, size_bytes),
            "carries": carries,
            "carries_share": carries / size_bytes,
            "is_fastest": row["rail"] == fastest,
            "left_out": "" if carries else explain.why_not(row, pinned),
        }

    async def _split(
        self, usable: Sequence[dict[str, Any]], size_bytes: int
    ) -> tuple[dict[int, int], int, str]:
        """Return bytes by rail, ns until all are delivered, and who said so: a scheduler of this build."""
        scheduler = self._daemon.context.native.RailScheduler()
        found = await asyncio.to_thread(dry_run.split, scheduler, usable, size_bytes)
        return found.shares, found.end_ns, "scheduler"

    # ---------------------------------------------------------------- parts
    async def _ask(
        self, source: str, op: str, fields: dict[str, Any], at_least_s: float = 0.0
    ) -> dict[str, Any]:
        """Ask the node that sends: this one where none is named."""
        number = self._node(source).number if source else self._daemon.context.number
        timeout_s = max(limits.CONTROL_CALL_S, at_least_s)
        return await self._daemon.calls.call(number, op, fields, timeout_s)

    def _node(self, name: str) -> NodeRecord:
        nodes = {node.name: node for node in self._daemon.registry.view.nodes}
        found = nodes.get(name)
        if found is None:
            near = difflib.get_close_matches(name, nodes, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(nodes))}"
            raise errors.ConfigError(f"there is no node {name!r}; {hint}", node=name)
        return found

    def _refuse_own(self, node: NodeRecord) -> None:
        if node.number == self._daemon.context.number:
            raise errors.ConfigError(
                f"{node.name!r} is the node that was asked: within a node messages go through shared memory,"
                " without rails; name another node",
                node=node.name,
            )

    def _peers(self) -> list[NodeRecord]:
        own = self._daemon.context.number
        nodes = self._daemon.registry.view.nodes
        return [node for node in nodes if node.number != own and node.state != "dead"]

    def _chosen(
        self, node: NodeRecord, rail: int | None, size_bytes: int = TERMS_BYTES
    ) -> list[dict[str, Any]]:
        """Return the rows of one rail, or of all."""
        rows = self.rows_to(node, size_bytes)
        chosen = [row for row in rows if rail is None or row["rail"] == rail]
        if rail is not None and not chosen:
            known = ", ".join(str(row["rail"]) for row in rows) or "none now"
            raise errors.ConfigError(
                f"there is no rail {rail} to node {node.name!r}; there is {known}", rail=rail
            )
        return chosen

    def _last_error(self, number: int, row: dict[str, Any]) -> str:
        """Return why a rail is not up, or was last lost."""
        if row.get("last_error"):
            return str(row["last_error"])
        changes = self.changes.of(number, row["rail"])
        lost = [change.reason for change in changes if change.after != "up"]
        return lost[-1] if lost else ""

    def _decisions(self, number: int) -> list[dict[str, Any]]:
        """Return the scheduler's last decisions for a node, oldest first, by age: moments mean nothing elsewhere."""
        session, now_ns = self._daemon.gateway.session_of(number), time.monotonic_ns()
        found = self._daemon.gateway.engine.decisions(session) if session else ()
        return [
            {
                **{key: row[key] for key in ("pending", "bytes", "why", "finish_ns")},
                "rail": row["rail"] if row["rail"] < limits.RAILS_PER_PEER_MAX else None,
                "age_ms": round((now_ns - row["at_ns"]) / 1e6, 1),
            }
            for row in found
        ]

    def _reason_of(self, number: int, rail: int) -> str:
        """Return why a connection of a rail was lost last."""
        reasons = self._daemon.gateway.reasons
        return next((why for g in groups_of(rail) if (why := reasons.get((number, g)))), "")

    def _name_of(self, number: int) -> str:
        node = self._daemon.registry.view.node(number)
        return node.name if node is not None else ""


_LOCAL_WORDS = (
    "Both ends are on this node: messages go through shared memory, from the sender's arena to the receiver's view,"
    " without a rail and without a copy."
)


def _primary(usable: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the rail that records take; None where none is up."""
    primary = next((int(row["rail"]) for row in usable if row["is_primary"]), None)
    least = min(usable, key=lambda row: int(row["base_ns"]), default=None)
    return primary if primary is not None or least is None else int(least["rail"])


def _path(path: Path) -> dict[str, Any]:
    return {
        "path": path.taken,
        "path_preferred": path.preferred,
        "path_reason": path.reason,
        "is_downgrade": path.is_downgrade,
    }


def _path_words(path: Path) -> list[str]:
    """Say which link joins the nodes, where another was preferred."""
    if not path.taken:
        return [f"The nodes have no link in common ({path.reason}): nothing would go."]
    if path.is_downgrade:
        return [f"The link is {path.taken}, not the preferred {path.preferred}: {path.reason}."]
    return []


def _fields(wish: Wish) -> dict[str, Any]:
    return {field.name: getattr(wish, field.name) for field in dataclasses.fields(wish)}
