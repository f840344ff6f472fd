"""The process of one module: attach, bind channels, run handlers, drain, leave.

`python -m fabric.worker.host`, started by the supervisor with `FABRIC_MODULE*` in the environment. Each `In`
and `Serve` field with a handler has a thread; async handlers and an async `run` share one event loop in another.
The main thread waits for a stop (push of the daemon, SIGTERM, SIGINT) or for the first failure of `run`.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric import limits, steps
from fabric.abc.join import JOIN_GROUP, JOIN_PREFIX
from fabric.abc.transform import EXPORT_ATTRIBUTE
from fabric.errors import ClosedError, ConfigError, ContractError, EndOfChannel, FabricError
from fabric.worker.module import Call, Field, In, Module, Out, Serve, fields_of
from fabric.worker.stop_signals import on_stop_signals

log = logging.getLogger("fabric.worker.host")

HANDLERS_SHARE = 0.7
"""Part of a stop's grace that handlers and `run` may use; the rest is for `drain` and the last sends."""


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What the supervisor asks for."""

    module: str
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    channels: Mapping[str, str] = field(default_factory=dict)
    state_file: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> HostSettings:
        """Read `FABRIC_MODULE*`.

        Raises
        ------
        ConfigError
            A variable is missing or not JSON.
        """
        for key in ("FABRIC_MODULE", "FABRIC_MODULE_NAME"):
            if not environment.get(key):
                raise ConfigError(f"{key} is not set; module hosts are started by fabricd", key=key)
        state = environment.get("FABRIC_MODULE_STATE")
        return cls(
            environment["FABRIC_MODULE"],
            environment["FABRIC_MODULE_NAME"],
            _json_map(environment, "FABRIC_MODULE_CONFIG"),
            _json_map(environment, "FABRIC_MODULE_CHANNELS"),
            Path(state) if state else None,
        )


def load_module_class(name: str) -> type[Module]:
    """Import `package.module:Class` or `path/to/file.py:Class`.

    Raises
    ------
    ConfigError
        Nothing of that name, or it is no `fabric.Module`.
    """
    where, _, attribute = name.rpartition(":")
    if where == JOIN_PREFIX:
        return _joined(_installed_join(attribute))
    if not where:
        raise ConfigError(
            f"module class {name!r}: write package.module:Class or file.py:Class",
            key="class",
            found=name,
        )
    try:
        found = getattr(
            _load_file(Path(where)) if where.endswith(".py") else importlib.import_module(where),
            attribute,
        )
    except (ImportError, AttributeError, FileNotFoundError) as error:
        raise ConfigError(f"module class {name!r}: {error}", key="class", found=name) from error
    if hasattr(found, EXPORT_ATTRIBUTE):
        return _joined(found)
    if not (isinstance(found, type) and issubclass(found, Module)):
        raise ConfigError(
            f"module class {name!r} is not a subclass of fabric.Module, nor declared with @fabric.join",
            key="class",
            found=name,
        )
    return found


def _joined(found: Any) -> type[Module]:
    """Return the module that runs a join class."""
    from fabric.worker import join_host

    export = join_host.join_of(found)
    if export is None:
        raise ConfigError(
            f"{getattr(found, '__name__', found)!r} is no module and no join: decorate it with @fabric.join",
            key="class",
        )
    return join_host.module_of(found, export)


def _installed_join(name: str) -> Any:
    """Return the join class registered as `name`; raises `ConfigError` listing what is."""
    registered = {e.name: e for e in importlib.metadata.entry_points(group=JOIN_GROUP)}
    if name not in registered:
        listed = ", ".join(sorted(registered)) or "none"
        raise ConfigError(
            f"no installed join is called {name!r} (installed: {listed}): install it, or write file.py:Class",
            key="use",
            found=name,
        )
    return registered[name].load()


class ModuleHost:
    """Runs one module on an attached port.

    Parameters
    ----------
    port : fabric.Port
        Attached; the host does not close it.
    cls : type
        The module's class.
    settings : HostSettings
        Name, configuration, channel names.

    Notes
    -----
    `serve` is called once, from the main thread. `stop` may be called from any thread.
    """

    def __init__(self, port: Any, cls: type[Module], settings: HostSettings) -> None:
        self._port = port
        self._settings = settings
        self._fields = fields_of(cls)
        self.module = cls()
        self.module.name, self.module.config, self.module.port = (
            settings.name,
            settings.config,
            port,
        )
        self.module.stopping = threading.Event()
        self._wake = threading.Event()
        self._grace_s = limits.MODULE_STOP_GRACE_S
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None
        self._loop_lock = threading.Lock()

    def serve(self) -> int:
        """Run until stopped; returns the exit status (0 after a stop, 1 after a failure)."""
        self._bind()
        self._restore()
        self._call(self.module.start)
        self._start_threads()
        steps.at("module.started")
        self._port.ready()
        steps.at("module.ready")
        log.info("module %s is ready", self._settings.name)
        self._wake.wait()
        steps.at("module.stopping")
        self._finish(self._grace_s)
        if self._failure is not None:
            log.error("module %s failed", self._settings.name, exc_info=self._failure)
        return 1 if self._failure is not None else 0

    def stop(self, grace_s: float = limits.MODULE_STOP_GRACE_S) -> None:
        """Ask for a drain; returns at once."""
        self._grace_s = grace_s
        self.module.stopping.set()
        self._wake.set()

    def _bind(self) -> None:
        for item in self._fields:
            channel = self._settings.channels.get(item.name, item.name)
            setattr(self.module, item.name, item.kind(self._open(item, channel)))

    def _open(self, item: Field, channel: str) -> Any:
        opener = {
            In: self._port.receiver,
            Out: self._port.sender,
            Serve: self._port.responder,
            Call: self._port.requester,
        }
        return opener[item.kind](channel, *item.types)

    def _start_threads(self) -> None:
        for item in self._fields:
            handler = getattr(self.module, f"on_{item.name}", None)
            if handler is not None:
                self._spawn(f"on-{item.name}", functools.partial(self._receive, item, handler))
        run = getattr(self.module, "run", None)
        if run is not None:
            self._spawn("run", lambda: self._call(run))

    def _spawn(self, name: str, body: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                body()
            except (
                BaseException
            ) as error:  # any end of a thread that should go on ends the module, visibly
                self._failure = self._failure or error
                self.stop()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _receive(self, item: Field, handler: Callable[[Any], Any]) -> None:
        endpoint = getattr(self.module, item.name).endpoint
        manual = item.name in self.module.manual_ack or item.kind is Serve
        hands_back = getattr(endpoint, "delivery", "") == "at_least_once"
        while not self.module.stopping.is_set() or (not hands_back and endpoint.pending()):
            try:
                message = endpoint.receive(timeout=limits.MODULE_POLL_S)
            except (EndOfChannel, ClosedError):
                return
            if message is not None:
                self._handle(item, handler, message, manual)
        if hands_back and not manual:
            endpoint.close()  # what was not handed over goes to another consumer now

    def _handle(
        self, item: Field, handler: Callable[[Any], Any], message: Any, manual: bool
    ) -> None:
        try:
            self._call(handler, message)
            if not manual:
                message.ack()
        except Exception as error:  # one bad message must not end the module
            log.exception("module %s: on_%s raised", self._settings.name, item.name)
            if item.kind is Serve:
                message.fail(error)
            else:
                message.nack()
        finally:
            if not manual:
                message.release()

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        result = function(*args)
        if not inspect.isawaitable(result):
            return result
        return asyncio.run_coroutine_threadsafe(_await(result), self._event_loop()).result()

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        with self._loop_lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=self._loop.run_forever, name="module-loop", daemon=True
                ).start()
            return self._loop

    def _restore(self) -> None:
        path = self._settings.state_file
        if path is not None and path.exists():
            self.module.restore(path.read_bytes())

    def _finish(self, grace_s: float) -> None:
        """Wait for handlers, then drain: the drain keeps a share of the grace even when a handler overruns its own."""
        now = time.monotonic()
        deadline, handlers_deadline = now + grace_s, now + HANDLERS_SHARE * grace_s
        for thread in self._threads:
            thread.join(max(0.0, handlers_deadline - time.monotonic()))
            if thread.is_alive():
                log.warning(
                    "module %s: %s did not end within its grace", self._settings.name, thread.name
                )
        if self._failure is None:
            self._bounded_drain(deadline)
        if self._loop is not None and self._loop_thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop_thread.join(max(0.1, deadline - time.monotonic()))

    def _bounded_drain(self, deadline: float) -> None:
        def drain() -> None:
            self._call(self.module.drain)
            self._save(self.module.snapshot())
            for item in self._fields:
                if item.kind is Out:
                    getattr(self.module, item.name).endpoint.flush(
                        timeout=max(0.0, deadline - time.monotonic())
                    )

        self._threads.clear()
        self._spawn("drain", drain)
        self._threads[0].join(max(0.0, deadline - time.monotonic()))

    def _flush(self, item: Field, deadline: float) -> None:
        try:
            getattr(self.module, item.name).endpoint.flush(
                timeout=max(0.0, deadline - time.monotonic())
            )
        except (
            FabricError
        ) as error:  # the ledger says how those messages end; leaving is still right
            log.warning(
                "module %s leaves with messages on their way: %s", self._settings.name, error
            )

    def _save(self, state: bytes | None) -> None:
        path = self._settings.state_file
        if path is not None and state is not None:
            partial = path.with_name(path.name + ".partial")
            partial.write_bytes(state)
            os.replace(partial, path)


def main() -> int:
    """Run the module that the environment names; the process's exit status."""
    import fabric

    if sys.argv[1:2] == ["--describe"]:
        from fabric.worker import describe

        return describe.main(sys.argv[2:])

    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        settings = HostSettings.from_environment(os.environ)
        cls = load_module_class(settings.module)
        with fabric.attach(settings.name, token=os.environ.get("FABRIC_MODULE_TOKEN")) as port:
            host = ModuleHost(port, cls, settings)
            port.on_stop(host.stop)
            on_stop_signals(host.stop)
            status = host.serve()
            steps.at("module.drained")
            port.stopped()
            return status
    except (FabricError, ContractError) as error:
        log.error("%s: %s", error.code, error)
        return 1


async def _await(result: Any) -> Any:
    return await result


def _json_map(environment: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(environment.get(key) or "{}")
    except ValueError as error:
        raise ConfigError(f"{key} is not JSON: {error}", key=key) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{key} must be a JSON object, found {type(value).__name__}", key=key)
    return value


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"_fabric_module_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # get_type_hints looks annotations up there
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
