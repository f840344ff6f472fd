"""The process of one plugin: attach, load it, run its transforms between hops, answer its routing policies.

`python -m fabric.worker.stage_host`, started and started again by the supervisor, which pushes what to load
and run. A chain has a thread; pushes come on threads of the client. What the plugin prints, and every
traceback, goes to standard output and error, which the supervisor keeps as the plugin's log.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
import traceback
from typing import Any

from fabric import limits
from fabric.abc.route import Header, Policy, Target, decide
from fabric.abc.transform import AnyMessage, TransformExport
from fabric.errors import (
    CapacityError,
    ClosedError,
    ContractError,
    EndOfChannel,
    FabricError,
    PluginError,
)
from fabric.messages import message_type
from fabric.worker import plugin_loader
from fabric.worker.stage_chain import Chain
from fabric.worker.stage_endpoints import StageInlet, StageOutlet
from fabric.worker.stop_signals import on_stop_signals

POLL_NS = 500_000_000  # an idle chain looks this often whether it is to stop
DRAIN_POLL_NS = 5_000_000


@dataclasses.dataclass(eq=False)
class Running:
    """One chain with its endpoints and thread."""

    chain: Chain
    inlet: StageInlet
    receiver: Any
    sender: Any
    stopping: threading.Event
    thread: threading.Thread | None = None


class StageHost:
    """Serves `stage_load`, `stage_run`, `stage_stop` and `route_decide` for one plugin.

    Parameters
    ----------
    port : fabric.Port
        Attached; the host opens endpoints on it and does not close it.

    Notes
    -----
    Thread-safe: `run` and `stop` of different channels may overlap; routing policies are asked one at a time.
    """

    def __init__(self, port: Any) -> None:
        self._port = port
        self._plugin: plugin_loader.Plugin | None = None
        self._policies: dict[str, Policy] = {}
        self._policy_lock = threading.Lock()
        self._running: dict[tuple[str, str, int], Running] = {}  # by channel, transform, generation
        self._lock = threading.Lock()
        self.ended = threading.Event()
        self.failure: BaseException | None = None

    def load(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Load ``{plugin, path, source}``, or the installed plugin of that name where source is empty.

        Loaded again, running transforms go on with the new code from their next batch; a version that no longer
        has one of them, or changed its types, is refused and nothing changes. With ``keep``, they go on with the code
        that they have, and what is run from now on has the new one: a plan changes code with its generation.
        """
        name, path, source = fields["plugin"], fields.get("path") or "", fields.get("source") or ""
        plugin = (
            plugin_loader.load_source(name, path, source)
            if source
            else plugin_loader.load_entry_point(name)
        )
        policies = {
            route.name: self._make(route.factory, route.name) for route in plugin.routes.values()
        }
        with self._lock:
            present = () if fields.get("keep") else self._running.values()
            replacements = [self._replacement(r, plugin) for r in present]
            for running, export in replacements:  # all were checked: from here on nothing fails
                running.inlet.type = (
                    running.inlet.type
                    if export.accepts is AnyMessage
                    else message_type(export.accepts)
                )
                running.chain.replace(export)
            old, self._plugin, self._policies = self._plugin, plugin, policies
        if old is not None and not fields.get("keep"):
            plugin_loader.unload(old)
        print(
            f"plugin {name!r} loaded from {plugin.path}: {', '.join(e['name'] for e in exports_of(plugin))}"
        )
        return {"exports": exports_of(plugin)}

    def run(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Start ``{channel, transform, stage, generation}``: receive on hop `stage`, send on the next. Idempotent."""
        channel, stage = fields["channel"], int(fields["stage"])
        plugin, export = self._export(fields["transform"])
        key = (channel, export.name, int(fields.get("generation") or 0))
        with self._lock:
            if key in self._running:
                return {}
            if len(self._running) >= limits.STAGES_PER_HOST_MAX:
                raise CapacityError(
                    f"plugin {plugin.name!r} runs STAGES_PER_HOST_MAX ({limits.STAGES_PER_HOST_MAX}) stages",
                    limit="STAGES_PER_HOST_MAX",
                )
            running = self._open(plugin, export, channel, stage)
            self._running[key] = running
        running.thread = threading.Thread(
            target=self._serve, args=(running,), name=f"stage-{channel}", daemon=True
        )
        running.thread.start()
        print(f"plugin {plugin.name!r}: {export.name} runs on {channel} hop {stage}")
        return {}

    def stop(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Drain and close ``{channel, transform, generation}`` within `limits.STAGE_DRAIN_S`; answers its counts."""
        key = (fields["channel"], fields["transform"], int(fields.get("generation") or 0))
        with self._lock:
            running = self._running.pop(key, None)
        if running is None:
            return {"stats": {}}
        self._finish(running, time.monotonic() + limits.STAGE_DRAIN_S)
        return {"stats": dict(running.chain.counts)}

    def decide(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Ask ``{policy, header, targets}``; answers the flows in order of preference, the first as `flow`."""
        policy = self._policies.get(fields["policy"])
        if policy is None:
            raise PluginError(
                f"no policy {fields['policy']!r} here: load the plugin that declares it"
            )
        header, targets = header_from(fields["header"]), [target_from(t) for t in fields["targets"]]
        try:
            with self._policy_lock:
                chosen = decide(fields["policy"], policy, header, targets)
        except Exception:
            print(
                f"route {fields['policy']!r} on {header.channel!r}:\n{traceback.format_exc()}",
                file=sys.stderr,
            )
            raise
        return {"flow": chosen[0].flow, "flows": [target.flow for target in chosen]}

    def close(self) -> None:
        """Stop every chain, bounded by one drain time for all."""
        deadline = time.monotonic() + limits.STAGE_DRAIN_S
        with self._lock:
            all_running = list(self._running.values())
            self._running.clear()
        for running in all_running:
            running.stopping.set()
        for running in all_running:
            self._finish(running, deadline)

    def _replacement(
        self, running: Running, plugin: plugin_loader.Plugin
    ) -> tuple[Running, TransformExport]:
        """Return the new version of a running transform, made; raises `PluginError` when it does not fit."""
        old = running.chain.export
        new = plugin.transforms.get(old.name)
        if new is None or (_schema(new.accepts), _schema(new.produces)) != (
            _schema(old.accepts),
            _schema(old.produces),
        ):
            raise ContractError(
                f"transform {old.name!r} runs on a channel, and this version "
                + ("lacks it" if new is None else "has other types")
                + ": give the new one another name",
                plugin=plugin.name,
            )
        made = self._make(new.factory, new.name)
        return running, dataclasses.replace(new, factory=lambda: made)

    def _make(self, factory: Any, name: str) -> Any:
        try:
            return factory()
        except Exception as error:
            raise PluginError(
                f"{name!r} cannot be made: {type(error).__name__}: {error}"
            ) from error

    def _export(self, name: str) -> tuple[plugin_loader.Plugin, TransformExport]:
        plugin = self._plugin
        export = plugin.transforms.get(name) if plugin else None
        if plugin is None or export is None:
            raise PluginError(f"no transform {name!r} here: load the plugin that declares it")
        if export.kind == "codec":
            raise ContractError(
                f"codec {name!r}: channels run maps and taps; declare kind='map' to run its apply alone"
            )
        return plugin, export

    def _open(
        self, plugin: plugin_loader.Plugin, export: TransformExport, channel: str, stage: int
    ) -> Running:
        accepts, produces = (
            None if t is AnyMessage else t for t in (export.accepts, export.produces)
        )
        transform = self._make(
            export.factory, export.name
        )  # before anything is opened: it may raise
        made = dataclasses.replace(export, factory=lambda: transform)
        receiver = self._port.receiver(channel, accepts, stage=stage, transform=export.name)
        try:
            sender = self._port.sender(channel, produces, stage=stage + 1, transform=export.name)
        except BaseException:
            receiver.close()
            raise
        inlet, outlet = StageInlet(receiver), StageOutlet(sender)
        chain = Chain(made, plugin.name, channel, inlet, outlet, time.monotonic_ns)
        return Running(chain, inlet, receiver, sender, threading.Event())

    def _serve(self, running: Running) -> None:
        """Run the chain until told to stop and empty; any other end ends the process, for the supervisor to see."""
        try:
            while not (
                running.stopping.is_set() and running.chain.idle and running.receiver.pending() == 0
            ):
                running.chain.turn(DRAIN_POLL_NS if running.stopping.is_set() else POLL_NS)
        except (ClosedError, EndOfChannel):
            return
        except BaseException as error:
            traceback.print_exc()
            self.failure = error
            self.ended.set()

    def _finish(self, running: Running, deadline: float) -> None:
        running.stopping.set()
        if running.thread is not None:
            running.thread.join(max(0.0, deadline - time.monotonic()))
            if running.thread.is_alive():
                running.chain.stop()
        try:
            running.sender.flush(timeout=max(0.0, deadline - time.monotonic()))
        except FabricError as error:
            print(
                f"{running.chain.export.name} stops with messages under way: {error}",
                file=sys.stderr,
            )
        running.receiver.close()
        running.sender.close()


def exports_of(plugin: plugin_loader.Plugin) -> list[dict[str, Any]]:
    """Return what a plugin exports, as the daemon records it; an empty schema stands for any type."""
    found: list[dict[str, Any]] = []
    for export in plugin.transforms.values():
        found.append(
            {
                "kind": "transform",
                "name": export.name,
                "transform_kind": export.kind,
                "accepts": _label(export.accepts),
                "produces": _label(export.produces),
                "accepts_schema": _schema(export.accepts),
                "produces_schema": _schema(export.produces),
                "max_expansion": float(export.max_expansion),
                "on_error": export.on_error,
            }
        )
    found += [{"kind": "route", "name": name} for name in plugin.routes]
    found += [
        {"kind": "message", "name": name, "schema": _schema(cls)}
        for name, cls in plugin.messages.items()
    ]
    return found


def _label(cls: type) -> str:
    return "any" if cls is AnyMessage else message_type(cls).schema.label


def _schema(cls: type) -> str:
    return "" if cls is AnyMessage else message_type(cls).schema.text


def header_from(fields: dict[str, Any]) -> Header:
    """Build the header that a policy sees from a push."""
    return Header(
        fields["channel"],
        fields.get("key"),
        fields.get("class", "token"),
        int(fields.get("size", 0)),
        fields.get("fields") or {},
    )


def target_from(fields: dict[str, Any]) -> Target:
    """Build one target from a push; unknown fields are left out."""
    known = {
        key: fields[key]
        for key in ("flow", "endpoint", "node", "module", "outstanding")
        if key in fields
    }
    return Target(**known)


def serve(port: Any) -> int:
    """Serve pushes on an attached port until told to stop; returns the exit status."""
    host = StageHost(port)
    handlers = {
        "stage_load": host.load,
        "stage_run": host.run,
        "stage_stop": host.stop,
        "route_decide": host.decide,
    }
    for op, handler in handlers.items():
        port.on_push(op, handler)
    port.on_stop(lambda *_: host.ended.set())
    on_stop_signals(host.ended.set)
    port.ready()
    host.ended.wait()
    host.close()
    return 1 if host.failure is not None else 0


def main() -> int:
    """Attach with the supervisor's token and serve; the process's exit status."""
    import fabric

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    name = os.environ.get("FABRIC_MODULE_NAME", "stage")
    try:
        with fabric.attach(name, token=os.environ.get("FABRIC_MODULE_TOKEN")) as port:
            return serve(port)
    except FabricError as error:
        print(f"stage host {name!r}: {error.code}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
