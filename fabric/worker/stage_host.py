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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fabric import limits
from fabric.abc.transform import AnyMessage, TransformExport
from fabric.abc.transform_checks import bound
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
from fabric.worker.policies import Policies
from fabric.worker.stage_apply import Applier
from fabric.worker.stage_bounds import (
    BoundedOutput,
    Watchdog,
    bound_memory,
    end_first_when_memory_is_short,
    end_forks,
)
from fabric.worker.stage_canary import Canary
from fabric.worker.stage_chain import Chain
from fabric.worker.stage_endpoints import StageInlet, StageOutlet
from fabric.worker.stage_guard import Guard
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
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)


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

    def __init__(self, port: Any, guard: Guard | None = None) -> None:
        self._port = port
        self.guard = guard or Guard(None, time.monotonic_ns())
        self._canary: Canary | None = None
        self._plugin: plugin_loader.Plugin | None = None
        self._policies = Policies({})
        self._running: dict[tuple[str, str, int], Running] = {}  # by channel, transform, generation
        self._lock = threading.Lock()
        self.ended = threading.Event()
        self.failure: BaseException | None = None
        self.is_bounded = False

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
            else plugin_loader.load_named(name, path)
        )
        policies = Policies(plugin.routes)
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
        guard = self.guard
        return {
            "exports": exports_of(plugin),
            "guard": {"deaths": guard.deaths, "reason": guard.reason, "rest_s": guard.rest_s},
        }

    def calls(self) -> list[Applier]:
        """Return what calls into the plugin, for the watchdog."""
        return [running.chain.applier for running in list(self._running.values())]

    def begin_canary(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Run ``{plugin, path, source}`` beside what runs, on copies; raises what loading it says."""
        self.end_canary({})
        canary = Canary(fields, self._plugin)
        with self._lock:
            self._canary = canary
            for running in self._running.values():
                canary.watch(running.chain.applier, running.inlet.type)
        return {}

    def look_canary(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Answer what the canary has found up to now."""
        canary = self._canary
        if canary is None:
            raise PluginError("no canary runs here: this stage host was started after it began")
        return canary.found()

    def end_canary(self, fields: dict[str, Any]) -> dict[str, Any]:
        """End the canary; without one nothing happens."""
        with self._lock:
            canary, self._canary = self._canary, None
            for running in self._running.values():
                running.chain.applier.shadow = None
        if canary is not None:
            canary.close()
        return {}

    def run(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Start ``{channel, transform, stage, generation, parameters}``: receive on hop `stage`, send on the next.

        Idempotent. `parameters` are what the channel gives the transform.
        """
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
            parameters = dict(fields.get("parameters") or {})
            running = self._open(plugin, bound(export, parameters), channel, stage)
            running.parameters = parameters
            self._running[key] = running
            if self._canary is not None:
                self._canary.watch(running.chain.applier, running.inlet.type)
        self._bound_memory()
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

    def _bound_memory(self) -> None:
        """Grant what the running transforms declare, beyond what the process has now."""
        if self.is_bounded:
            budgets = [r.chain.export.memory_budget_bytes for r in self._running.values()]
            bound_memory(sum(budgets))

    def decide(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Ask a routing policy; see `Policies.decide`."""
        return self._policies.decide(fields)

    def close(self) -> None:
        """Stop every chain, bounded by one drain time for all."""
        self.end_canary({})
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
        made = self._make(bound(new, running.parameters).factory, new.name)
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
        chain = Chain(
            made, plugin.name, channel, inlet, outlet, time.monotonic_ns, guard=self.guard
        )
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
            self.guard.dies(f"{running.chain.applier.label}: {error}", time.monotonic_ns())
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
        running.chain.applier.close()


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
                "tier": export.tier,
                "tensor_codec": export.is_tensor_codec,
                "lossless": export.lossless,
                "dtypes": list(export.dtypes),
                "parameters": list(export.parameters),
            }
        )
    found += [
        {
            "kind": "route", "name": route.name, "per": route.per, "fallback": route.fallback,
            "reads": list(route.reads),
        }
        for route in plugin.routes.values()
    ]  # fmt: skip
    found += [
        {"kind": "message", "name": name, "schema": _schema(cls)}
        for name, cls in plugin.messages.items()
    ]
    return found


def _label(cls: type) -> str:
    return "any" if cls is AnyMessage else message_type(cls).schema.label


def _schema(cls: type) -> str:
    return "" if cls is AnyMessage else message_type(cls).schema.text


def serve(port: Any, guard: Guard | None = None, is_foreground: bool = True) -> int:
    """Serve pushes on an attached port until told to stop; returns the exit status.

    In the foreground nothing of the plugin is bounded: a debugger may hold it as long as it likes.
    """
    host = StageHost(port, guard)
    host.is_bounded = not is_foreground
    watchdog = Watchdog(host.guard, host.calls)
    handlers = {
        "stage_load": host.load,
        "stage_run": host.run,
        "stage_stop": host.stop,
        "stage_canary": host.begin_canary,
        "stage_canary_look": host.look_canary,
        "stage_canary_end": host.end_canary,
        "route_decide": host.decide,
    }
    for op, handler in handlers.items():
        port.on_push(op, handler)
    port.on_stop(lambda *_: host.ended.set())
    on_stop_signals(host.ended.set)
    if host.is_bounded:
        watchdog.start()
    port.ready()
    host.ended.wait()
    host.close()
    watchdog.stop()
    if host.failure is None:
        host.guard.close(time.monotonic_ns())
    return 1 if host.failure is not None else 0


def _bound_process() -> None:
    """Bound what a plugin prints and forks; have the kernel end this process first when memory is short."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.stdout, sys.stderr = BoundedOutput(sys.stdout), BoundedOutput(sys.stderr)
    end_first_when_memory_is_short()
    end_forks()


def main(arguments: Sequence[str] = ()) -> int:
    """Attach with the supervisor's token and serve; the process's exit status."""
    import fabric

    is_foreground = "--foreground" in arguments
    guard = None
    if not is_foreground:
        _bound_process()
        path = os.environ.get("FABRIC_STAGE_GUARD")
        guard = Guard(Path(path) if path else None, time.monotonic_ns())
    name = os.environ.get("FABRIC_MODULE_NAME", "stage")
    try:
        with fabric.attach(name, token=os.environ.get("FABRIC_MODULE_TOKEN")) as port:
            return serve(port, guard, is_foreground)
    except FabricError as error:
        print(f"stage host {name!r}: {error.code}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
