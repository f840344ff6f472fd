"""A `Control` with fixed answers that records what it was asked, and a thread that serves it.

For the tests of the control API, of fabricctl and of anything else that talks to a daemon through them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import asdict
from typing import Any

from fabric import config, errors
from fabric.controlplane.api import server
from fabric.controlplane.rail_probe import Wish
from fabric.worker.probe_plan import Budget

STATUS = {
    "node": "a", "number": 1, "incarnation": 1_763_000_000_000_000_001, "state": "serving", "version": "0.1.0",
    "pid": 4_000_001, "keeper_pid": 4_000_000, "socket": "/run/a.sock", "control_socket": "/run/a.sock.ctl",
    "state_dir": "/state/a", "log": "/state/a/logs/fabricd.log", "listen": "127.0.0.1:7400", "registry": "a",
    "generation": 3, "uptime_s": 75.5, "ports": 3, "channels": 1, "modules": 1, "plugins": 1, "colour": "blue",
}  # fmt: skip
TOPOLOGY = {
    "generation": 3,
    "nodes": [
        {"name": "a", "number": 1, "address": "127.0.0.1:7400", "incarnation": 11, "state": "serving", "local": True},
        {"name": "b", "number": 2, "address": "127.0.0.2:7400", "incarnation": 22, "state": "suspect", "local": False},
    ],
    "links": [
        {"source": "a", "target": "b", "link": "tcp", "state": "up", "connections": 2, "bytes_sent": 3 << 20,
         "bytes_received": 1024, "rtt_us": 180},
    ],
    "ports": [
        {"port": 1 << 32 | 7, "name": "prefill", "node": "a", "kind": "module", "pid": 4321, "state": "ready"},
        {"port": 2 << 32 | 3, "name": "decode", "node": "b", "kind": "module", "pid": 4400, "state": "ready"},
    ],
    "channels": [
        {"name": "kv", "type": "kv.layer", "pattern": "stream", "delivery": "at_least_once", "class": "bulk",
         "route": None, "transforms": ["upper"],
         "endpoints": [
             {"endpoint": 1 << 32 | 1, "role": "sender", "port": 1 << 32 | 7, "name": "prefill", "node": "a",
              "stage": 0},
             {"endpoint": 2 << 32 | 1, "role": "receiver", "port": 2 << 32 | 3, "name": "decode", "node": "b",
              "stage": 1},
         ],
         "flows": [
             {"flow": 1 << 48 | 5, "source": "prefill", "target": "decode", "path": "tcp", "messages": 60,
              "bytes": 5 << 20, "outstanding": 2, "generation": 3},
         ]},
    ],
}  # fmt: skip
EVENTS = [
    {"number": 1, "at": 1_763_000_000.25, "kind": "messages dropped", "severity": "warning", "node": "a",
     "channel": "kv", "port": "prefill", "reason": "overflow_newest", "count": 144, "text": "144 of prefill dropped",
     "more": {}},
    {"number": 2, "at": 1_763_000_001.5, "kind": "view held", "severity": "warning", "node": "a", "channel": "kv",
     "port": "decode", "reason": "not released", "count": 1, "text": "decode holds 3", "more": {"age_s": 12.5}},
]  # fmt: skip
ROWS: dict[str, list[dict[str, Any]]] = {
    "node": [{"name": "a", "number": 1, "address": "127.0.0.1:7400", "state": "serving", "incarnation": 11}],
    "module": [
        {"name": "prefill", "node": "a", "state": "ready", "pid": 4321, "restarts": 0,
         "class": "fabric_modules.prefill:Prefill", "channels": {"prompts": "prompts"}},
    ],
    "channel": [
        {"name": "kv", "type": "kv.layer", "pattern": "stream", "delivery": "at_least_once", "class": "bulk",
         "route": None, "transforms": [], "senders": 1, "receivers": 1, "accepted": 60, "delivered": 58, "dropped": 0,
         "failed": 0, "in_flight": 2, "delivered_bytes": 59392},
    ],
    "plugin": [
        {"name": "upper", "path": "/p/upper.py", "state": "ready", "pid": 99, "restarts": 1, "version": 2,
         "exports": [{"kind": "transform", "name": "upper"}], "error": None},
    ],
}  # fmt: skip
AUDIT = {
    "verdict": "balanced", "duration_ms": 12.5, "differences": [],
    "channels": [{"name": "kv", "accepted": 60, "delivered": 58, "dropped": 0, "failed": 0, "in_flight": 2}],
}  # fmt: skip
BENCH = {
    "used": {"seconds": 4.2, "bytes": 900 << 20},
    "steps": [
        {"group": "tcp", "name": "64 B round trip, default wait", "p50_us": 25.5, "p99_us": 80.25, "messages": 40_000,
         "cpu_us": 20.5, "daemons_cpu_us": 14.5},
        {"group": "tcp", "name": "16 MiB loaned, window 8", "left_out": "needs 176.0 MiB of --memory"},
    ],
    "path": [
        {"channel": "bulk", "source": "a", "target": "b", "path": "tcp", "path_preferred": "ucx",
         "path_reason": "ucx is not there on node 'b'", "checksums": True, "rtt_us": 180},
    ],
    "load": [
        {"node": "a", "end": "near", "cores": 2, "load_1m": 0.5, "busy_percent": 12.5, "daemon_percent": 1.5},
    ],
}  # fmt: skip
RAILS = [
    {"source": "a", "peer": "b", "link": "tcp", "rail": 0, "state": "up", "is_primary": True, "pinned": False,
     "waits": True, "rate": 118_400_000, "rate_now": 118_400_000, "base_ns": 180_000, "inflight": 256 << 10,
     "window": 196 << 10, "finish_ns": 11_216_000, "silent_ns": 0, "delivered": 92 << 20, "resent": 0, "failures": 0,
     "penalty": 0.0, "held_ms": 0.0, "share": 0.92, "local": "10.0.1.1", "remote": "10.0.1.2", "interface": "veth0",
     "peer_interface": "eth0", "address": "10.0.1.2:7400", "last_error": ""},
    {"source": "a", "peer": "b", "link": "tcp", "rail": 1, "state": "down", "is_primary": False, "pinned": True,
     "waits": True, "rate": 0, "rate_now": 0, "base_ns": 0, "inflight": 0, "window": 0, "finish_ns": 0, "silent_ns": 0,
     "delivered": 8 << 20, "resent": 64 << 10, "failures": 2, "penalty": 1.5, "held_ms": 0.0, "share": 0.08,
     "local": "", "remote": "", "interface": "", "peer_interface": "", "address": "10.0.2.2:7400",
     "last_error": "10.0.2.2:7400 does not answer within 0.2 s"},
]  # fmt: skip
PATH_SHOWN = {
    "source": "a", "peer": "b", "path": "tcp", "path_preferred": "tcp",
    "path_reason": "the best that both nodes offer", "pinned": [1], "warning": "", "rails": RAILS,
    "changes": [
        {"rail": 1, "at": 1_763_000_000.25, "before": "up", "after": "suspect", "reason": "nothing was acknowledged"},
        {"rail": 1, "at": 1_763_000_000.5, "before": "suspect", "after": "down", "reason": "it stayed silent"},
    ],
    "decisions": [
        {"age_ms": 12.5, "pending": 8 << 20, "bytes": 64 << 10, "rail": 0, "why": "earliest",
         "finish_ns": [9_000_000, 12_000_000]},
        {"age_ms": 2.5, "pending": 8 << 20, "bytes": 0, "rail": None, "why": "no_rail", "finish_ns": [0, 0]},
    ],
}  # fmt: skip
_TERMS = {
    "reason": "it pays", "size": 589824, "queued": 1179648, "path_bytes_per_s": 118e6, "encode_bytes_per_s": 650e6,
    "decode_bytes_per_s": 1500e6, "ratio": 0.66, "raw_s": 0.005, "coded_s": 0.0033, "coded": True,
}  # fmt: skip
CODEC_WHY: list[dict[str, Any]] = [
    {
        "node": "a", "sender": "prefill", "endpoint": 1, "codec": "compress", "when": "pays", "where": "remote",
        "is_idle": False, "paths": {"2": 118e6},
        "counts": {"coded": 7, "raw": 1, "raw_bytes": 4718592, "wire_bytes": 3342336, "probes": 1},
        "decisions": [{**_TERMS, "at_ns": 1, "chosen": "compress", "message_bytes": 589824, "wire_bytes": 389283}],
    }
]  # fmt: skip
CODEC_BENCH: list[dict[str, Any]] = [
    {
        "node": "a", "sender": "prefill", "codec": "compress", "lossless": True, "messages": 8, "raw_bytes": 4718592,
        "ratio": 0.66, "encode_bytes_per_s": 650e6, "decode_bytes_per_s": 1500e6, "error": 0.0, "failed": "",
        "pays": [{"node": 2, **_TERMS}],
    }
]  # fmt: skip
PATH_WHY = {
    "path": "tcp", "path_preferred": "tcp", "path_reason": "wanted", "is_downgrade": False, "way": "chunks",
    "by": "scheduler", "pinned": [], "end_ns": 569_200_000, "fastest": 0,
    "rails": [
        {**RAILS[0], "carries": 64 << 20, "carries_share": 1.0, "is_fastest": True, "left_out": "",
         "score": "180.0 µs + (256.0 KiB in flight + 64.0 MiB) / 118.4 MB/s = 569.2 ms"},
        {**RAILS[1], "carries": 0, "carries_share": 0.0, "is_fastest": False, "score": "",
         "left_out": "down: it has no connection (10.0.2.2:7400 does not answer within 0.2 s)"},
    ],
    "words": ["64.0 MiB of class bulk go in chunks, each to the rail that is predicted to deliver it first: rail 0"
              " (veth0) 100 %; all delivered in 569.2 ms."],
}  # fmt: skip
PROBED = {
    **{key: RAILS[0][key] for key in ("rail", "state", "local", "remote", "interface")}, "rtt_us_min": 150.5,
    "rtt_us_p50": 210.25, "rtt_us_max": 900.0, "trips": 20, "tcp_rtt_us": 41.0, "retransmits": 0,
    "rate": 118_400_000, "bytes": 16 << 20, "seconds": 0.2,
}  # fmt: skip
PATH_PROBED = {
    "source": "a", "peer": "b", "seconds": 1.25, "bytes": 16 << 20,
    "rails": [PROBED, {"rail": 1, "state": "down", "failed": "10.0.2.2:7400 does not answer within 1 s"}],
}  # fmt: skip
PATH_BENCHED = {
    "source": "a", "peer": "b", "seconds": 4.5, "bytes": 700 << 20, "rails": [PROBED],
    "together": [
        {"name": "probes", "rate": 236_000_000, "of_sum": 0.99, "bytes": 100 << 20,
         "by_rail": [{"rail": 0, "rate": 118_000_000}, {"rail": 1, "rate": 118_000_000}]},
        {"name": "fabric, 16 MiB loaned, window 4", "rate": 234_000_000, "of_sum": 0.98, "bytes": 300 << 20,
         "by_rail": [{"rail": 0, "rate": 117_000_000}, {"rail": 1, "rate": 117_000_000}]},
    ],
    "words": ["At once the rails reach 99 % of their sum: they share no bottleneck."],
}  # fmt: skip
CHANGE = {
    "kind": "channel",
    "name": "kv",
    "action": "changed",
    "detail": "credit.messages 256 → 64",
}
HISTORY = [
    {"generation": 3, "outcome": "committed", "by": "0@a", "when_s": 1_763_000_000.0, "source": "f.yaml",
     "note": None, "why": None, "plugins": 0, "channels": 1, "modules": 0},
    {"generation": 2, "outcome": "rolled back", "by": "0@a", "when_s": 1_762_000_000.0, "source": "f.yaml",
     "note": None, "why": "module 'x' ended before it was ready", "plugins": 0, "channels": 1, "modules": 1},
]  # fmt: skip


class FakeControl:
    """Answers as `docs/ARCHITECTURE.md` says; set `failure` to make the next call raise it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failure: BaseException | None = None
        self.audit_answer: dict[str, Any] = dict(AUDIT)
        self.status_answer: dict[str, Any] = dict(STATUS)
        self.down_answer: dict[str, Any] = {"pids": []}
        self.path_probe_answer: dict[str, Any] = dict(PATH_PROBED)
        self.plan_changes: list[dict[str, Any]] = [dict(CHANGE)]

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if self.failure is not None:
            raise self.failure

    async def status(self) -> dict[str, Any]:
        self._note("status")
        return self.status_answer

    async def topology(self) -> dict[str, Any]:
        self._note("topology")
        return TOPOLOGY

    async def ls(self, kind: str) -> list[dict[str, Any]]:
        self._note("ls", kind)
        return ROWS[kind]

    async def show(self, kind: str, name: str) -> dict[str, Any]:
        self._note("show", kind, name)
        for row in ROWS[kind]:
            if row["name"] == name:
                return row
        raise errors.ConfigError(
            f"there is no {kind} '{name}'; did you mean '{ROWS[kind][0]['name']}'?", name=name
        )

    async def validate(self, spec: config.FabricSpec) -> dict[str, Any]:
        self._note("validate", spec)
        return {"problems": []}

    async def apply(self, spec: config.FabricSpec) -> dict[str, Any]:
        self._note("apply", spec)
        changes = [{"kind": "channel", "name": name, "action": "added"} for name in spec.channels]
        return {"generation": 4, "changes": changes}

    async def plan(self, spec: config.FabricSpec) -> dict[str, Any]:
        self._note("plan", spec)
        return {"generation": 3, "changes": self.plan_changes}

    async def diff(
        self, old: int | None = None, new: int | None = None, spec: config.FabricSpec | None = None
    ) -> dict[str, Any]:
        self._note("diff", old, new, spec)
        return {"from": old or 2, "to": new or 3, "changes": self.plan_changes}

    async def rollback(self, generation: int | None = None) -> dict[str, Any]:
        self._note("rollback", generation)
        return {"generation": 5, "changes": self.plan_changes}

    async def history(self) -> dict[str, Any]:
        self._note("history")
        return {"generation": 3, "live": [2, 3], "rows": HISTORY}

    async def plugin_load(
        self, path: str, source: str, channel: str | None = None, kind: str | None = None
    ) -> dict[str, Any]:
        self._note("plugin_load", path, source, channel, kind)
        exports = [
            {"kind": "transform", "name": "upper", "accepts": "demo.text", "produces": "demo.text"}
        ]
        return {"name": "upper", "exports": exports, "channel": channel, "generation": 5}

    async def plugin_change(self, verb: str, name: str, **fields: Any) -> dict[str, Any]:
        self._note("plugin_change", verb, name, fields)
        return {**ROWS["plugin"][0], "version": 2, "canary": None, "environment": {}}

    async def plugin_logs(self, name: str, lines: int) -> dict[str, Any]:
        self._note("plugin_logs", name, lines)
        return {"lines": ["loaded", "Traceback (most recent call last):"]}

    async def module_logs(self, name: str, lines: int) -> dict[str, Any]:
        self._note("module_logs", name, lines)
        return {"lines": ["ready"]}

    async def module_stop(self, name: str) -> dict[str, Any]:
        self._note("module_stop", name)
        return {"name": name, "state": "stopped"}

    async def module_drain(self, name: str, grace_s: float) -> dict[str, Any]:
        self._note("module_drain", name, grace_s)
        return {"name": name, "state": "stopped", "replicas": []}

    async def module_scale(self, name: str, replicas: int) -> dict[str, Any]:
        self._note("module_scale", name, replicas)
        rows = [{"name": f"{name}-{index}", "state": "starting"} for index in range(replicas)]
        return {"name": name, "state": "running", "replicas": rows, "override": replicas}

    async def module_add(self, spec: config.FabricSpec) -> dict[str, Any]:
        self._note("module_add", spec)
        changes = [{"kind": "module", "name": name, "action": "added"} for name in spec.modules]
        return {"changes": changes}

    async def bench_edge(self, source: str, target: str, budget: Budget) -> dict[str, Any]:
        self._note("bench_edge", source, target, budget)
        return {**BENCH, "source": source, "target": target, "budget": asdict(budget)}

    async def path_ls(self, source: str) -> list[dict[str, Any]]:
        self._note("path_ls", source)
        return RAILS

    async def path_show(
        self, peer: str, rail: int | None, size_bytes: int, source: str
    ) -> dict[str, Any]:
        self._note("path_show", peer, rail, size_bytes, source)
        return {**PATH_SHOWN, "size_bytes": size_bytes}

    async def path_why(
        self, source: str, target: str, size_bytes: int, klass: str
    ) -> dict[str, Any]:
        self._note("path_why", source, target, size_bytes, klass)
        about = {"source": source, "target": target, "size_bytes": size_bytes, "class": klass}
        return {**PATH_WHY, **about}

    async def codec_why(self, channel: str) -> list[dict[str, Any]]:
        self._note("codec_why", channel)
        return CODEC_WHY

    async def codec_bench(
        self, channel: str, codecs: Sequence[str], seconds: float
    ) -> list[dict[str, Any]]:
        self._note("codec_bench", channel, list(codecs), seconds)
        return CODEC_BENCH

    async def path_probe(
        self, peer: str, rail: int | None, wish: Wish, source: str
    ) -> dict[str, Any]:
        self._note("path_probe", peer, rail, wish, source)
        return self.path_probe_answer

    async def path_pin(self, peer: str, rails: Sequence[int]) -> dict[str, Any]:
        self._note("path_pin", peer, list(rails))
        warning = f"traffic to node {peer} waits: it is pinned to rail 1, and none of it is up"
        return {"peer": peer, "pinned": list(rails), "was_pinned": True, "warning": warning if rails else "",
                "rails": RAILS}  # fmt: skip

    async def bench_path(self, peer: str, budget: Budget) -> dict[str, Any]:
        self._note("bench_path", peer, budget)
        return {**PATH_BENCHED, "budget": asdict(budget)}

    async def events(self, **query: Any) -> dict[str, Any]:
        self._note("events", query)
        return {"events": [dict(row) for row in EVENTS], "next": {"a": 2}, "lost": {"a": 0}}

    async def metrics(self) -> dict[str, Any]:
        self._note("metrics")
        return {"text": "# HELP fabric_info A node.\nfabric_info 1.0\n"}

    async def audit(self) -> dict[str, Any]:
        self._note("audit")
        return self.audit_answer

    async def down(self) -> dict[str, Any]:
        self._note("down")
        return self.down_answer


class ServedControl:
    """A fake daemon: a `Control` served on a socket, in an event loop of its own thread, until `close`."""

    def __init__(self, control: server.ControlLike, path: str) -> None:
        self.control = control
        self.path = path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: server.ControlServer = self.run(server.serve(control, path))

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the loop of the server; at most 10 s."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def close(self) -> None:
        """End the server, its loop and its thread."""
        self.run(self._server.close(0.1))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
