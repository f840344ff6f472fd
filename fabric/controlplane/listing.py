"""Rows for `fabricctl`: what one node knows as plain dicts, and the joins over all nodes. Reads only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fabric import errors
from fabric.abc.link import PLAIN_CHUNKS
from fabric.controlplane.audit import END_DELIVERED, END_NAMES, ENDED
from fabric.registry.records import ArchivedCounts, ChannelRecord, RailRecord, View

if TYPE_CHECKING:
    from fabric.controlplane.daemon import Daemon
    from fabric.controlplane.modules import Process
    from fabric.controlplane.plugins import Plugin

_SUMS = ("accepted", "delivered", "dropped", "failed", "delivered_bytes")
_NODE_STATES = {"alive": "serving", "silent": "suspect", "dead": "dead"}


def summary(daemon: Daemon) -> dict[str, Any]:
    """Return this node's part of topology and listings."""
    node = daemon.context.name
    ledgers, outstanding, received = _ledgers(daemon)
    return {
        "ports": _port_rows(daemon),
        "flows": _flow_rows(daemon, outstanding),
        "links": _link_rows(daemon),
        "ledgers": ledgers,
        "received": received,
        "modules": [
            {**module_row(node, p), "scaled": daemon.scaling.override_of(p.about["name"])}
            for p in daemon.modules.all("module")
        ],
        "scaled": daemon.scaling.scaled(),
        "plugins": [
            plugin_row(node, p, daemon.modules.find("stage", p.name))
            | {"routes": daemon.stages.routes.costs(p.exported("route"))}
            for p in daemon.stages.all()
        ]
        + join_rows(daemon),
    }


def node_rows(view: View, own: int) -> list[dict[str, Any]]:
    """Return one row a node."""
    return [
        {
            "name": n.name,
            "number": n.number,
            "address": f"{n.host}:{n.port}" if n.port else None,
            "rails": [_rail(rail) for rail in n.addresses()],
            "incarnation": n.incarnation,
            "state": _NODE_STATES[n.state],
            "local": n.number == own,
        }
        for n in view.nodes
    ]


def _rail(rail: RailRecord) -> dict[str, Any]:
    return {
        "link": rail.link,
        "address": f"{rail.host}:{rail.port}",
        "interface": rail.interface,
        "bits_per_second": rail.bits_per_second,
    }


def module_row(node: str, process: Process) -> dict[str, Any]:
    """Return one row of a module."""
    about = process.about
    return {
        "name": process.name,
        "module": about.get("name"),
        "node": node,
        "state": process.life.state.value,
        "pid": process.pid,
        "restarts": process.life.restarts,
        "class": about.get("class"),
        "channels": about.get("channels", {}),
        "config": about.get("config", {}),
    }


def _stage_state(plugin: Plugin, process: Process | None) -> str:
    """Say what a plugin's host is doing, in one word."""
    if process is None:
        return "stopped"
    if plugin.is_leaving:
        return "leaving"
    return "debugged" if process.is_held else process.life.state.value


def plugin_row(node: str, plugin: Plugin, process: Process | None) -> dict[str, Any]:
    """Return one row of a plugin."""
    return {
        "name": plugin.name,
        "node": node,
        "path": plugin.path,
        "exports": plugin.exports,
        "error": plugin.error or None,
        "version": plugin.versions[-1]["number"] if plugin.versions else 0,
        "versions": plugin.versions,
        "canary": plugin.canary or None,
        "state": _stage_state(plugin, process),
        "pid": process.pid if process else 0,
        "restarts": process.life.restarts if process else 0,
        "running": [
            {"channel": channel, "transform": transform, "generation": generation}
            for channel, transform, generation in sorted(plugin.running)
        ],
    }


def join_rows(daemon: Daemon) -> list[dict[str, Any]]:
    """Return a row for each join of this node: as a plugin's, with what it counted."""
    node, counters = daemon.context.name, daemon.shared.join_counters()
    rows = []
    for process in daemon.modules.all("module"):
        if process.name not in counters:
            continue
        module = module_row(node, process)
        ends = module["channels"]
        inputs = ", ".join(name for field, name in ends.items() if field != "output")
        export = {
            "kind": "join",
            "name": process.name,
            "accepts": inputs,
            "produces": ends["output"],
        }
        about = {key: module[key] for key in ("name", "node", "state", "pid", "restarts")}
        rows.append(
            {
                **about,
                "path": module["class"],
                "exports": [export],
                "error": None,
                "running": [],
                "join": counters[process.name],
            }
        )
    return rows


def channel_rows(
    view: View, parts: list[dict[str, Any]], archived: Iterable[ArchivedCounts]
) -> list[dict[str, Any]]:
    """Return one row a channel, with counts of living and archived endpoints."""
    sums: dict[int, dict[str, int]] = {}
    seen = set()
    for part in parts:
        for row in part["ledgers"]:
            seen.add(row["endpoint"])
            total = sums.setdefault(row["channel"], dict.fromkeys(_SUMS, 0))
            for key in total:
                total[key] += row[key]
    for final in archived:
        if final.endpoint not in seen:
            total = sums.setdefault(final.channel, dict.fromkeys(_SUMS, 0))
            total["accepted"] += final.accepted
            total["delivered_bytes"] += final.delivered_bytes
            for end, _, number in final.counts:
                total[END_NAMES[end]] += number
    return [_channel_row(view, c, sums.get(c.number, {})) for c in view.channels]


def channel_view(view: View, channel: ChannelRecord, flows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a channel with its endpoints and flows, as topology shows it."""
    names = {n.number: n.name for n in view.nodes}
    ends = [
        {
            "endpoint": e.endpoint,
            "role": e.role,
            "port": e.port,
            "name": e.port_name,
            "node": names.get(e.node),
            "stage": e.stage
            if e.transform
            else (0 if e.role == "sender" else len(channel.transforms)),
            "transform": e.transform or None,
        }
        for e in view.endpoints
        if e.channel == channel.number
    ]
    mine = [
        {k: v for k, v in f.items() if k != "channel"}
        for f in flows
        if f["channel"] == channel.number
    ]
    return {**_about(channel), "endpoints": ends, "flows": mine}


def _about(channel: ChannelRecord) -> dict[str, Any]:
    return {
        "name": channel.name,
        "type": channel.type_name,
        "pattern": channel.pattern,
        "delivery": channel.delivery,
        "class": channel.klass,
        "route": channel.route,
        "transforms": list(channel.transforms),
        "generation": channel.generation,
    }


def _channel_row(view: View, channel: ChannelRecord, sums: dict[str, int]) -> dict[str, Any]:
    ends = [e for e in view.endpoints if e.channel == channel.number and not e.transform]
    counts = {key: sums.get(key, 0) for key in _SUMS}
    return {
        **_about(channel),
        "senders": sum(e.role == "sender" for e in ends),
        "receivers": sum(e.role == "receiver" for e in ends),
        **counts,
        "in_flight": counts["accepted"]
        - counts["delivered"]
        - counts["dropped"]
        - counts["failed"],
        "overflow": channel.overflow,
        "schema": channel.schema or None,
        "reply_schema": channel.reply_schema or None,
    }


def _port_rows(daemon: Daemon) -> list[dict[str, Any]]:
    return [
        {
            "port": p.port,
            "name": p.name,
            "node": daemon.context.name,
            "kind": p.kind,
            "pid": p.pid,
            "state": "dead" if not p.is_alive else ("suspect" if p.is_suspect else "ready"),
        }
        for p in daemon.ports
    ]


def _flow_rows(daemon: Daemon, outstanding: Counter[int]) -> list[dict[str, Any]]:
    owners = {e.endpoint: e.port_name for e in daemon.registry.view.endpoints}
    owners |= {
        e.reply_endpoint: e.port_name for e in daemon.registry.view.endpoints if e.reply_endpoint
    }
    rows = []
    for out in daemon.flows.outs.values():
        port = daemon.ports.get(out.port)
        rows.append(
            {
                "channel": out.channel,
                "flow": out.flow,
                "source": port.name if port else "",
                "target": owners.get(out.target_endpoint, ""),
                **daemon.paths.row(out.target_node),
                "generation": out.generation,
                "state": out.state,
                "is_reply": out.is_reply,
                "outstanding": outstanding[out.flow],
            }
        )
    return rows


def _link_rows(daemon: Daemon) -> list[dict[str, Any]]:
    groups_of_all = daemon.gateway.stats().get("groups", ())
    rows = []
    for number in daemon.membership.links.peers():
        node = daemon.registry.view.node(number)
        session = daemon.gateway.session_of(number)
        groups = [g for g in groups_of_all if g["session"] == session]
        rails = daemon.rails_of(number)
        up = [rail["rail"] for rail in rails if rail["connections"] == 2]
        rows.append(
            {
                "source": daemon.context.name,
                "target": node.name if node else str(number),
                "link": daemon.paths.to(number).taken,
                "preferred": daemon.paths.to(number).preferred,
                "reason": daemon.paths.to(number).reason,
                "state": "up" if up else "down",
                "connections": sum(rail["connections"] for rail in rails),
                "rails": rails,
                "bytes_sent": sum(g["bytes_out"] for g in groups),
                "bytes_received": sum(g["bytes_in"] for g in groups),
                "checksums": not any(g["features"] & PLAIN_CHUNKS for g in groups),
                "rtt_us": max((g["rtt_ns"] // 1000 for g in groups), default=0),
            }
        )
    return rows


def _ledgers(
    daemon: Daemon,
) -> tuple[list[dict[str, int]], Counter[int], list[tuple[int, int, int]]]:
    """Return the sums of each local ledger, outstanding messages by flow, and (flow, messages, bytes) received."""
    rows: list[dict[str, int]] = []
    outstanding: Counter[int] = Counter()
    received: list[tuple[int, int, int]] = []
    for port in daemon.ports:
        try:
            state = daemon.context.native.inspect_state(port.state_fd)
        except errors.FabricError as error:
            daemon.context.events.add("state unreadable", port=port.port, reason=str(error))
            continue
        received += [(row["flow"], row["drained"], row["payload_bytes"]) for row in state["flows"]]
        for ledger in state["ledgers"]:
            rows.append(_ledger_row(ledger, outstanding))
    return rows, outstanding, received


def _ledger_row(ledger: dict[str, Any], outstanding: Counter[int]) -> dict[str, int]:
    row = {
        "endpoint": ledger["endpoint"],
        "channel": ledger["channel"],
        "accepted": ledger["accepted"],
        "delivered": 0,
        "dropped": 0,
        "failed": 0,
        "delivered_bytes": ledger["delivered_bytes"],
    }
    for (end, _), number in ledger["counts"].items():
        if end >= END_DELIVERED:
            row[END_NAMES[end]] += number
    for entry in ledger["outstanding"]:
        if entry["state"] == ENDED:
            row[END_NAMES[entry["end"]]] += 1
            row["delivered_bytes"] += entry["payload_bytes"] if entry["end"] == END_DELIVERED else 0
        else:
            outstanding[entry["flow"]] += 1
    return row
